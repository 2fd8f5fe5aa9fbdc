"""The figures of a sweep, by what is in them: panels, marks, bars, labels that do not cover one another, and curves."""

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from support.sweep_records import BETAS, make_records

from dpo_lightning.sweeps.plots import draw_curves, draw_frontier, plot_style, read_curves, to_bytes
from dpo_lightning.sweeps.results import KL, Record, group

HELD_OUT = KL["held_out"]
RIGHT = dict(zip(BETAS, (36, 34, 33, 32, 24), strict=True))
WIDE = dict(zip(BETAS, (0.5, 0.1, 0.05, 0.02, 0.01), strict=True))
NARROW = dict(zip(BETAS, (0.014, 0.013, 0.012, 0.011, 0.01), strict=True))


def frontier(*args, **options):
    with plot_style():
        return draw_frontier(group(make_records(*args, **options)), HELD_OUT)


def marks(axis):
    """Size and place of each mark."""
    lines = [line for line in axis.lines if line.get_marker() in "os"]
    return [(line.get_markersize(), *np.ravel(line.get_xydata())) for line in lines]


def test_a_mark_with_both_intervals_for_each_point():
    figure = frontier(RIGHT, WIDE)
    (axis,) = figure.axes
    assert [(x, y) for _, x, y in marks(axis)] == [(WIDE[beta], RIGHT[beta] / 40) for beta in BETAS]
    assert axis.get_xscale() == "log"
    # One horizontal and one vertical bar each.
    segments = [collection.get_segments() for collection in axis.collections]
    (x0, _), (x1, _) = segments[0][0]
    assert (x0, x1) == pytest.approx((0.45, 0.55))
    assert len(segments) == 10
    assert sorted(text.get_text() for text in axis.texts) == [f"beta {beta}" for beta in BETAS]


def test_seeds_are_small_and_their_means_large():
    (axis,) = frontier(RIGHT, NARROW, seeds=[1, 2, 3]).axes
    assert axis.get_xscale() == "linear"
    sizes = [size for size, *_ in marks(axis)]
    assert (sizes.count(4), sizes.count(10)) == (15, 5)
    largest = [place for size, *place in marks(axis) if size == 10]
    assert largest[0] == pytest.approx([0.014 * 1.02, 0.9])


def test_a_second_panel_where_there_are_win_rates():
    figure = frontier(RIGHT, WIDE, wins=dict.fromkeys(BETAS, 20))
    first, second = figure.axes
    assert first.get_shared_x_axes().joined(first, second)
    assert len(marks(second)) == 5
    assert "win rate" in second.get_title()


@pytest.mark.parametrize("drift", [WIDE, NARROW, dict.fromkeys(BETAS, 0.01)])
def test_labels_cover_neither_one_another_nor_marks(drift):
    figure = frontier(RIGHT, drift, wins=dict.fromkeys(BETAS, 20))
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        overlaps = [a for place, a in enumerate(boxes) for b in boxes[:place] if a.overlaps(b)]
        assert overlaps == []


def test_nothing_to_draw():
    assert draw_frontier([], HELD_OUT) is None
    assert draw_curves({}, []) is None


def test_the_same_figure_is_the_same_bytes():
    with plot_style():
        first, second = (to_bytes(frontier(RIGHT, WIDE), "svg") for _ in range(2))
    assert first == second
    assert first.startswith(b"<?xml")


def write_curve(folder, values, first=1):
    """A run's file of TensorBoard, of steps from `first` on."""
    logger = TensorBoardLogger(str(folder), "tensorboard", "")
    for step, value in enumerate(values, first):
        logger.log_metrics({"train/loss": value, "train/rewards/margins": 1 - value}, step)
    logger.log_metrics({"eval/loss": values[-1]}, first + len(values) - 1)
    logger.finalize("success")


def test_curves_of_all_points_and_steps_that_were_trained_again(tmp_path):
    records = make_records({"0.01": 30, "0.1": 31, "0.5": 20}, {"0.01": 0.2, "0.1": 0.1, "0.5": 0.01})
    folders = {record.point.name: tmp_path / record.point.name for record in records}
    for record in records:
        write_curve(folders[record.point.name], [0.7, 0.6, 0.5])
    write_curve(folders["beta-0.1"], [0.65, 0.4], first=2)
    assert read_curves(folders["beta-0.1"])["train/loss"] == pytest.approx({1: 0.7, 2: 0.65, 3: 0.4})
    unfinished = Record(records[0].point, "failed")
    with plot_style():
        figure = draw_curves(folders, group([*records, unfinished]))
    loss, margin = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["loss", "margin of rewards"]
    lines = [line.get_ydata().tolist() for line in loss.lines if len(line.get_xdata()) == 3]
    assert lines == [pytest.approx(values) for values in ([0.7, 0.6, 0.5], [0.7, 0.65, 0.4], [0.7, 0.6, 0.5])]
    assert sorted(text.get_text() for text in margin.texts) == ["beta 0.01", "beta 0.1", "beta 0.5"]
    for axis in figure.axes:
        assert all(tick == round(tick) for tick in axis.get_xticks())


def test_the_line_of_chance_is_drawn_where_it_is_in_sight():
    for right, lines in ((36, 0), (20, 1)):
        (axis,) = frontier(dict.fromkeys(BETAS, right), WIDE).axes
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert len(dashed) == lines
