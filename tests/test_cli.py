"""`fit`, `validate`, `test` and `predict` on a tiny model: results, what is said, and mistakes in time."""

import json
import re

import pytest
from support.command_line import Bench, fail_at_start, json_lines, pairs, refused, run, watch_loading

from dpo_lightning.hardware import choose_precision

FIELDS = {
    "file",
    "line",
    "index",
    "loss",
    "chosen_reward",
    "rejected_reward",
    "margin",
    "chosen_logps",
    "rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama):
    """A bench with a finished run; tests only read it."""
    bench = Bench(tmp_path_factory.mktemp("trained"), tiny_llama)
    ran = bench.fit()
    assert ran.code == 0, ran
    return bench


@pytest.fixture
def bench(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, trained.model)


@pytest.fixture
def checkpoint(trained):
    return trained.folder / "run" / "checkpoints" / "last.ckpt"


def table(ran):
    """The metrics that lightning prints."""
    cells = re.findall(r"((?:eval|test)/[\w/]+)[^\w-]+(-?[\d.]+(?:e-\d+)?)", ran.out)
    return {name: float(value) for name, value in cells}


def predictions(folder):
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("command", "stage"), [("validate", "eval"), ("test", "test")])
def test_validate_measures_a_checkpoint(trained, bench, checkpoint, recwarn, command, stage):
    """The numbers of the run's own last evaluation, under the stage's name."""
    ran = bench.run(command, "--ckpt_path", checkpoint)
    assert ran.code == 0, ran
    shown, metrics = table(ran), trained.json("metrics.json")
    names = {name for name in metrics if name.startswith("eval/")} - {"eval/pairs", "eval/rewards/accuracies_ci95"}
    assert {name.replace(f"{stage}/", "eval/") for name in shown} == names
    assert not [warning for warning in recwarn if "logger" in str(warning.message)]
    for name, value in shown.items():
        assert value == pytest.approx(metrics[name.replace(f"{stage}/", "eval/")], rel=1e-5, abs=1e-7), name


def test_validate_without_a_checkpoint_measures_the_model_itself(bench):
    """Policy and reference are one: every pair is a tie, and a tie is no win."""
    shown = table(bench.run("validate"))
    assert (shown["eval/rewards/margins"], shown["eval/rewards/ties"], shown["eval/rewards/accuracies"]) == (0, 1, 0)
    assert shown["eval/loss"] == pytest.approx(0.6931472)


def test_predict_writes_a_line_for_every_row(trained, bench, checkpoint):
    """In the order of the file, with the line each came from; the numbers are those of the evaluation."""
    ran = bench.run("predict", "--ckpt_path", checkpoint)
    assert ran.code == 0, ran
    lines, metrics = predictions(bench.folder / "run"), trained.json("metrics.json")
    assert f"predictions: {bench.folder / 'run' / 'predictions.jsonl'}" in ran.out
    assert [(line["file"], line["line"], line["index"]) for line in lines] == [
        (str(bench.eval), i + 1, i) for i in range(5)
    ]
    for line in lines:
        assert set(line) == FIELDS
        assert line["margin"] == pytest.approx(line["chosen_reward"] - line["rejected_reward"], abs=1e-7)
        ratio = line["chosen_logps"] - line["reference_chosen_logps"]
        assert line["chosen_reward"] == pytest.approx(0.1 * ratio, abs=1e-5)
    for name, key in (("eval/rewards/margins", "margin"), ("eval/loss", "loss"), ("eval/logps/chosen", "chosen_logps")):
        assert metrics[name] == pytest.approx(sum(line[key] for line in lines) / 5, rel=1e-5), name
    assert metrics["eval/rewards/accuracies"] == pytest.approx(sum(line["margin"] > 0 for line in lines) / 5)
    assert {path.name for path in (bench.folder / "run").iterdir()} == {"predictions.jsonl"}


def test_predictions_do_not_depend_on_the_batch_size(bench, checkpoint):
    """Nor on which rows share a batch: padding is not seen."""
    found = []
    for size in (1, 2, 3):
        assert bench.run("predict", "--ckpt_path", checkpoint, "--data.batch_size", size, out=f"p{size}").code == 0
        found.append(predictions(bench.folder / f"p{size}"))
    for others in zip(*found, strict=True):
        for name in FIELDS - {"file"}:
            values = [line[name] for line in others]
            assert max(values) - min(values) <= 1e-5 * max(1, *map(abs, values)), name


def test_predict_of_sft_has_log_probabilities(bench):
    rows = json_lines(bench.folder / "sft.jsonl", [{"prompt": f"p{i}", "completion": "c" * (i + 1)} for i in range(3)])
    options = ("--model", "SFTModule", "--data", "SFTDataModule", "--trainer.callbacks", "TokenLoss")
    ran = bench.run("predict", *options, "--data.eval", rows)
    assert ran.code == 0, ran
    fields = {"file", "line", "index", "logps", "tokens"}
    assert [set(line) for line in predictions(bench.folder / "run")] == [fields] * 3


def test_an_open_precision_is_chosen_and_said(bench):
    """And stands in the run's config."""
    options = [option for option in bench.options() if option not in ("--trainer.precision", "32-true")]
    ran = run("fit", *options, "--trainer.max_steps", "1")
    word, reason = choose_precision("cpu")
    assert ran.code == 0, ran
    assert f"precision: {word} ({reason})\n" in ran.out
    assert f"precision: {word}\n" in (bench.folder / "run" / "config.yaml").read_text()
    assert "precision:" not in bench.fit("--trainer.max_steps", "1", out="named").out


@pytest.mark.parametrize(
    ("flags", "plan"),
    [
        ([], "8 training rows, 5 held out; 4 rows a step, 2 steps"),
        (["--trainer.max_steps", "1"], "2 steps; capped at 1 by trainer.max_steps"),
        (["--trainer.max_steps", "2"], "4 rows a step, 2 steps\n"),
        (["--trainer.accumulate_grad_batches", "2"], "8 rows a step, 1 steps\n"),
        (["--data.batch_size", "3"], "3 rows a step, 3 steps\n"),
        (["--trainer.max_epochs", "3", "--trainer.max_steps", "5"], "6 steps; capped at 5 by trainer.max_steps"),
        (["--trainer.max_epochs", "-1", "--trainer.max_steps", "3"], "unlimited steps; capped at 3"),
    ],
)
def test_the_plan_is_told_before_it_is_run(bench, monkeypatch, flags, plan):
    """How many steps there will be, and what caps them."""
    fail_at_start(monkeypatch, KeyboardInterrupt())
    ran = bench.fit(*flags)
    assert ran.code == 130
    assert plan in ran.out


def test_the_first_of_cap_and_epochs_ends_the_run(bench):
    for more, steps in ((["--trainer.max_steps", "1"], 1), (["--trainer.max_steps", "9"], 2)):
        assert bench.fit(*more, out=f"run{steps}").code == 0
        assert bench.json("metrics.json", f"run{steps}")["step"] == steps


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--trainer.accumulate_grad_batches", "0"], 64, "at trainer.accumulate_grad_batches"),
        (["--trainer.accumulate_grad_batches", "-1"], 64, "at trainer.accumulate_grad_batches"),
        (["--data.batch_size", "0"], 64, "batch_size=0 is less than 1 at data.batch_size"),
        (["--data.batch_size", "-1"], 64, "at data.batch_size"),
        (["--data.max_length", "1"], 64, "at data.max_length"),
        (["--data.max_length", "100000"], 64, "exceeds the model's 256 positions at data.max_length"),
        (["--trainer.max_steps", "0"], 64, "max_steps=0 is less than 1 at trainer.max_steps"),
        (["--trainer.max_steps", "-2"], 64, "at trainer.max_steps"),
        (["--trainer.max_epochs", "0"], 64, "at trainer.max_epochs"),
        (["--trainer.log_every_n_steps", "0"], 64, "at trainer.log_every_n_steps"),
        (["--trainer.accelerator", "abacus"], 64, "invalid accelerator name"),
        (["--trainer.strategy", "hope"], 64, "invalid strategy name"),
        (["--trainer.profiler", "eyes"], 64, "profiler"),
        (["--trainer.limit_val_batches", "-1"], 64, "limit_val_batches"),
        (["--trainer.devices", "0"], 64, "devices"),
        (["--data.batch_size", "9"], 65, "8 training rows are fewer than one batch"),
        (["--model.policy.path", "nowhere/at/all"], 66, "the model folder does not exist"),
        (["--model.policy.path", "."], 67, "no config.json"),
    ],
)
def test_a_wrong_number_or_name_leaves_no_folder(bench, flags, code, said):
    refused(bench.fit(*flags), code, said)
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
@pytest.mark.parametrize("precision", [[], ["--trainer.precision", "32-true"]])
def test_a_device_that_is_not_there(bench, monkeypatch, name, precision):
    """Asked for by name, with or without a precision: 69, and where to look."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    loaded = watch_loading(monkeypatch)
    options = [option for option in bench.options() if option not in ("--trainer.precision", "32-true")]
    refused(run("fit", *options, *precision, "--trainer.accelerator", name), 69, "python -m dpo_lightning doctor")
    assert not loaded


ROWS = pairs(3)


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ([*ROWS, '{"prompt": '], 65, "train.jsonl:4"),
        ([*ROWS, {"prompt": "p", "chosen": "c"}, {"prompt": "p"}], 65, "train.jsonl:5"),
        ([*ROWS, {**ROWS[0], "chosen": ""}], 65, "train.jsonl:4"),
        ([*ROWS, {"prompt": "p", "chosen": "same", "rejected": "same"}], 65, "train.jsonl:4"),
        ([*ROWS, {**ROWS[0], "chosen": 3}], 65, "train.jsonl:4"),
        ([*ROWS, {**ROWS[0], "chosen": ROWS[0]["rejected"], "rejected": ROWS[0]["chosen"]}], 65, "train.jsonl"),
        ([{"topic": "q", "pro": "g", "con": "b"}] * 3, 65, "topic, pro, con"),
        ([], 65, "train.jsonl"),
        (None, 66, "train.jsonl"),
    ],
)
def test_bad_rows_are_named_before_a_tokenizer_is_loaded(bench, monkeypatch, rows, code, said):
    """With file and line, and without a trace in the folder."""
    loaded = watch_loading(monkeypatch)
    if rows is None:
        bench.train.unlink()
    else:
        json_lines(bench.train, rows)
    refused(bench.fit(), code, said)
    assert not loaded
    assert not (bench.folder / "run").exists()


def test_a_checkpoint_is_evaluated_without_advice_to_list_the_runs_own_callbacks(bench, tmp_path, recwarn):
    assert bench.fit().code == 0
    recwarn.clear()
    ran = run(
        "validate", "--config", tmp_path / "run/config.yaml", "--ckpt_path", tmp_path / "run/checkpoints/last.ckpt"
    )
    assert ran.code == 0, ran
    assert [str(each.message) for each in recwarn if "callbacks" in str(each.message)] == []


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_bad_held_out_rows_are_named_too(bench, monkeypatch, command):
    loaded = watch_loading(monkeypatch)
    json_lines(bench.eval, [*pairs(2, 70), "["])
    refused(bench.run(command), 65, "eval.jsonl:3")
    assert not loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize(("command", "missing"), [("fit", "train"), ("validate", "eval"), ("predict", "eval")])
def test_rows_are_needed(bench, command, missing):
    refused(bench.run(command, f"--data.{missing}", "null"), 64, f"`{command}` needs {missing} rows at data.{missing}")


def test_an_interval_beyond_the_epoch_still_evaluates_every_row(bench):
    """A warning and an evaluation at the end, in place of a run without one."""
    ran = bench.fit("--trainer.val_check_interval", "1000")
    assert ran.code == 0, ran
    assert "warning: val_check_interval=1000 exceeds the 2 batches of an epoch" in ran.out
    assert bench.json("metrics.json")["eval/pairs"] == 5


def test_rows_of_fewer_than_a_batch_are_all_evaluated(bench):
    json_lines(bench.eval, pairs(2, 50))
    assert bench.fit("--trainer.max_steps", "1").code == 0
    assert bench.json("metrics.json")["eval/pairs"] == 2


def test_a_callback_of_the_config_takes_the_place_of_the_runs_own(bench):
    """Its options are honoured, and its numbers are those of the summary."""
    ran = bench.fit("--trainer.callbacks+=SelfCheck", "--trainer.callbacks.enabled=false")
    assert ran.code == 0, ran
    assert "self-check: left out (switched off)" in ran.out
    assert "self-check: passed" not in ran.out
    assert "train/loss" in bench.json("metrics.json")


def test_one_callback_needs_no_list(bench):
    assert bench.fit("--trainer.callbacks", "Samples", "--trainer.max_steps", "1").code == 0


def test_print_config_is_a_config(bench):
    """What it prints, saved, is accepted and prints the same again."""
    printed = bench.fit("--print_config")
    assert printed.code == 0
    again = run("fit", *bench.overlay(printed.out), "--print_config")
    assert again.out == printed.out
    assert not (bench.folder / "run").exists()


def test_nothing_but_fit_claims_the_folder(bench):
    """`validate` and `test` write nothing at all, `predict` its lines only, into a run's folder or a new one."""
    for command in ("validate", "test"):
        assert bench.run(command).code == 0
        assert not (bench.folder / "run").exists()
    assert bench.run("predict").code == 0
    assert [path.name for path in (bench.folder / "run").iterdir()] == ["predictions.jsonl"]
    assert bench.run("predict").code == 0
