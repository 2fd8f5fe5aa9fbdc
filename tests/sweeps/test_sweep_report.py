"""The report of a sweep: table, JSON, page and TensorBoard's HParams, from the files that points leave."""

import json
import math
from html.parser import HTMLParser

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from dpo_lightning.errors import UserError
from dpo_lightning.sweeps.grid import make_points
from dpo_lightning.sweeps.manifest import Manifest
from dpo_lightning.sweeps.marks import Mark, PointFiles
from dpo_lightning.sweeps.report import format_interval, make_report, to_plain, to_terminal, write_report
from dpo_lightning.sweeps.results import KL, WIN_RATE, Interval

HELD_OUT = KL["held_out"]
RIGHT = {"0.01": 36, "0.1": 33, "0.5": 20}


def leave_point(folder, point, state="done", margins=()):
    """What a point leaves in the sweep's folder."""
    files = PointFiles(folder, point.name)
    files.model.mkdir(parents=True)
    right, drift = sum((margin or 0) > 0 for margin in margins), 0.01 / float(point.overrides["model.loss.beta"])
    measures = {
        "accuracy/reward": {"estimate": right / 40, "low": right / 40 - 0.1, "high": right / 40 + 0.1, "count": 40},
        HELD_OUT: {"estimate": drift, "low": 0.9 * drift, "high": 1.1 * drift, "count": 900},
        "length/tokens": {"estimate": 12.5, "low": None, "high": None, "count": 40},
        "perplexity/chosen": {"estimate": None, "low": None, "high": None, "count": 0},
    }
    files.summary.write_text(json.dumps({"format": 1, "measures": measures}))
    (files.run / "eval.json").write_text(json.dumps([{"logratio_margin": margin, "margin": 1.0} for margin in margins]))
    files.write_mark(Mark(state, "fit", "" if state == "done" else "no | <memory>"))


@pytest.fixture
def sweep(tmp_path):
    """A sweep of three betas and two seeds, of which one point failed."""
    folder = tmp_path / "out"
    points = make_points({"model.loss.beta": list(RIGHT)}, [1, 2])
    for point in points:
        right = RIGHT[point.overrides["model.loss.beta"]]
        state = "failed" if point.name == "beta-0.5_seed-2" else "done"
        leave_point(folder, point, state, [0.1] * right + [0.0] * 2 + [None] + [-0.1] * (37 - right))
    return folder, Manifest(points, [{}] * len(points))


def test_records_are_what_the_evaluations_say(sweep):
    report = make_report(*sweep, HELD_OUT)
    first, *_, last = report.records
    assert first.measures["accuracy/reward"] == pytest.approx((0.9, 0.8, 1.0))
    assert math.isnan(first.measures["length/tokens"].low)
    assert "perplexity/chosen" not in first.measures
    assert first.outcomes == [1.0] * 36 + [0.5] * 2 + [0.0]
    assert (last.state, last.measures, last.error) == ("failed", {}, "no | <memory>")
    assert [(setting.label, len(setting.records)) for setting in report.settings] == [
        ("beta 0.01", 2),
        ("beta 0.1", 2),
        ("beta 0.5", 1),
    ]
    assert (report.recommendation.setting, report.recommendation.best) == ("beta 0.1", "beta 0.01")
    assert report.correlation.points == 5


def test_a_win_rate_beside_the_evaluation_is_read(sweep):
    folder, manifest = sweep
    rate = {"estimate": 0.6, "low": 0.5, "high": 0.7, "judge": "a person"}
    for point in manifest.points:
        (folder / "points" / point.name / "win_rate.json").write_text(json.dumps(rate))
    report = make_report(folder, manifest, HELD_OUT)
    assert report.records[0].measures[WIN_RATE] == (0.6, 0.5, 0.7)
    assert (report.records[0].judge, report.recommendation.measure) == ("a person", WIN_RATE)


def test_the_table_in_the_terminal_and_as_markdown(sweep):
    folder, _ = sweep
    report = make_report(*sweep, HELD_OUT)
    lines = to_terminal(report)
    assert "  beta  seed  state   held-out accuracy     KL held-out              tokens" in lines
    assert "  0.01  1     done    0.900 [0.800, 1.00]   1.00 [0.900, 1.10]       12.5" in lines
    assert "  0.5   2     failed" in lines
    assert "1 of 6 points are not done; run the command again to continue." in lines
    write_report(folder, report)
    text = (folder / "sweep.md").read_text()
    assert "| 0.01 | 1 | done | 0.900 [0.800, 1.00] | 1.00 [0.900, 1.10] | 12.5 |" in text
    assert "![frontier](frontier.png)" in text
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    written = {file: (folder / file).read_bytes() for file in ("sweep.md", "sweep.json", "frontier.svg", "index.html")}
    write_report(folder, make_report(*sweep, HELD_OUT))
    assert written == {file: (folder / file).read_bytes() for file in written}


def test_json_without_nan(sweep):
    folder, _ = sweep
    write_report(folder, make_report(*sweep, HELD_OUT))

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((folder / "sweep.json").read_text(), parse_constant=refuse)
    assert [point["name"] for point in content["points"]][:2] == ["beta-0.01_seed-1", "beta-0.01_seed-2"]
    assert content["points"][0]["measures"]["length/tokens"] == {"estimate": 12.5, "low": None, "high": None}
    assert content["recommendation"]["setting"] == "beta 0.1"
    assert content["correlation"]["rho"]["estimate"] < -0.9


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_page_that_loads_nothing_and_shows_errors_as_text(sweep):
    folder, _ = sweep
    write_report(folder, make_report(*sweep, HELD_OUT))
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    sources = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "memory" not in {tag for tag, _ in page.tags}
    assert "beta-0.5_seed-2: no | <memory>" in page.text
    assert "Recommended: beta 0.1." in page.text
    assert len([tag for tag, _ in page.tags if tag == "tr"]) == 1 + 6 + 1 + 3


def test_tensorboard_finds_overrides_and_measures_of_each_point(sweep):
    folder, _ = sweep
    for _ in range(2):  # written anew, not twice
        write_report(folder, make_report(*sweep, HELD_OUT))
    events = EventMultiplexer().AddRunsFromDirectory(str(folder / "hparams"))
    events.Reload()
    assert sorted(events.Runs()) == [f"beta-{beta}_seed-{seed}" for beta, seed in
                                     (("0.01", 1), ("0.01", 2), ("0.1", 1), ("0.1", 2), ("0.5", 1))]  # fmt: skip
    content = events.SummaryMetadata("beta-0.1_seed-2", metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert {name: value.number_value for name, value in values.items()} == {
        "model.loss.beta": 0.1,
        "seed_everything": 2,
    }
    assert events.Scalars("beta-0.1_seed-2", HELD_OUT)[0].value == pytest.approx(0.1)


def test_a_sweep_of_which_nothing_is_done_has_a_report(tmp_path):
    points = make_points({"model.loss.beta": ["0.1"]}, [])
    report = make_report(tmp_path, Manifest(points, [{}]), HELD_OUT)
    write_report(tmp_path, report)
    assert to_terminal(report)[-1] == "1 of 1 points are not done; run the command again to continue."
    assert not (tmp_path / "frontier.png").exists()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.9, 0.8, 1.0), "0.900 [0.800, 1.00]"),
        (Interval(123.4, math.nan, math.nan), "123"),
        (Interval(1e300, 1e290, math.nan), "1.00e+300"),
        (Interval(0.00001234, 0, 1), "1.23e-05 [0.00, 1.00]"),
        (None, ""),
    ],
)
def test_numbers_have_three_digits(interval, text):
    assert format_interval(interval) == text


@pytest.mark.parametrize("file", ["eval.summary.json", "eval.json", "win_rate.json"])
@pytest.mark.parametrize(
    "text",
    ["", "5", "[5]", "{}", "[" * 100_000, '{"measures": []}', '{"measures": {"a": {"estimate": "x"}}}',
     '{"measures": {"a": {"estimate": Infinity}}}', '{"estimate": 0.5, "low": "0"}', '[{"logratio_margin": "1"}]'],
    ids=range(10),
)  # fmt: skip
def test_a_point_whose_files_were_changed_is_named(sweep, file, text):
    folder, manifest = sweep
    path = folder / "points" / manifest.points[0].name / file
    path.write_text(text)
    if (file, text) == ("eval.json", "{}"):  # no rows
        assert make_report(folder, manifest, HELD_OUT).records[0].outcomes == []
        return
    with pytest.raises(UserError, match="the file of a point is damaged") as caught:
        make_report(folder, manifest, HELD_OUT)
    assert caught.value.code == 65
    assert str(path) in str(caught.value)


def test_a_value_with_anchors_is_not_expanded():
    laughs = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a]"
    assert to_plain(laughs) == laughs
    assert to_plain("[" * 100_000) == "[" * 100_000
    assert to_plain("1e-5") == 1e-5
