"""The measures of an evaluation out of its items: what counts as a win, and figures beyond the range of a float."""

import json

import pytest

from dpo_lightning.evaluation.report import format_lines, list_measures, write_page
from dpo_lightning.evaluation.result_file import write_result
from dpo_lightning.evaluation.summary import summarize

ORIGIN = {"file": "rows.jsonl", "line": 1, "group": "", "language": "", "chosen": "a", "rejected": "b"}


def item(logratio_margin=None, margin=None, chosen=-10.0, tokens=(10, 3)):
    own = {"margin": margin, "logratio_margin": logratio_margin}
    logps = {"chosen_logps": chosen, "rejected_logps": -4.0, "chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}
    return {name: value for name, value in own.items() if value is not None} | logps | {"prompt": "Hi"}


def estimates(items):
    measures, slices = summarize(items)
    parts = slices["length difference"].values()
    return {name: found["estimate"] for name, found in measures.items()}, [
        part["accuracy"]["estimate"] for part in parts
    ]


def test_accuracy_against_a_reference_is_by_log_ratios():
    """Whatever the loss compares: its own reward may be a mean over tokens, or without the reference."""
    items = [item(1.0, -0.5), item(2.0, -0.5), item(0.0, -0.5), item(-1.0, 0.5)]
    measures, by_length = estimates(items)
    assert (measures["accuracy/reward"], measures["ties/reward"], by_length) == (0.5, 0.25, [0.5])
    assert measures["accuracy/loss"] == 0.25
    assert measures["margin/reward"] == -0.25
    assert measures["margin/nats"] == 0.5


def test_where_the_reward_of_the_loss_ranks_alike_it_has_no_accuracy_of_its_own():
    measures, _ = estimates([item(1.0, 0.1), item(0.0, 0.0), item(-1.0, -0.1)])
    assert measures["accuracy/reward"] == pytest.approx(1 / 3)
    assert "accuracy/loss" not in measures


def test_without_a_reference_no_accuracy_is_by_implicit_reward():
    measures, by_length = estimates([item(margin=-0.5), item(margin=-0.5)])
    assert not {"accuracy/reward", "ties/reward", "margin/nats"} & measures.keys()
    assert (measures["accuracy/loss"], measures["accuracy/likelihood"], by_length) == (0.0, 0.0, [0.0])


@pytest.mark.parametrize(("rows", "nats"), [(3, 2000.0), (9, 2000.0), (9, 450.0)])
def test_the_perplexity_of_a_diverged_model(tmp_path, rows, nats):
    """exp of it is no float, or that of its upper bound is none; the file has null for it."""
    items = [item(chosen=-nats * (1 + k % 2), tokens=(1, 3)) for k in range(rows)]
    measures, slices = summarize(items)
    made_by = {"model": {"path": "m"}, "reference": None, "data": {}}
    summary = {"made_by": made_by, "measures": measures, "slices": slices}
    result = write_result(tmp_path / "eval.json", [one | ORIGIN for one in items], summary)
    stored = json.loads((tmp_path / "eval.summary.json").read_text())["measures"]["perplexity/chosen"]
    assert (stored["estimate"] is None, stored["high"]) == (nats > 1000, None)
    assert "perplexity of chosen answers" in dict(list_measures(result.summary))
    assert format_lines(result)[-1].split()[4:] == ["–" if nats > 1000 else f"{stored['estimate']:.4g}"]
    assert "perplexity of chosen answers" in write_page(result).read_text("utf-8")
