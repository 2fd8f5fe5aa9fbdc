"""Options of a file that a flag or a later file drops with their class: a warning names them, and defaults apply."""

import pytest
import yaml


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.loss", "IPOLoss"], "--model.loss IPOLoss replaces DPOLoss; dropped options of the file: label"),
        (["--model.loss", "HingeLoss"], "HingeLoss replaces DPOLoss; dropped options of the file: label_smoothing"),
        (["--model.optimizer", "torch.optim.Adafactor"], "--model.optimizer Adafactor replaces AdamW"),
    ],
)
def test_options_that_a_switch_drops_are_named(bench, flags, said):
    """The parser forgets them without a word."""
    ran = bench.fit(*flags, "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    (warning,) = (line for line in ran.out.splitlines() if line.startswith("warning: "))
    assert said in warning
    assert "beta" not in warning  # it is carried over


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("SimPOLoss", "dropped options of the file: label_smoothing=0.0, beta=0.1 (SimPOLoss uses 2.0)"),
        ("RobustLoss", "dropped options of the file: label_smoothing=0.0 (RobustLoss uses 0.1)"),
    ],
)
def test_a_loss_has_its_own_defaults_and_not_those_of_the_files_loss(bench, loss, said):
    """The parser would keep them: SimPO with DPO's beta would hardly train, robust DPO without smoothing is DPO."""
    ran = bench.fit("--model.loss", loss, "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert said in ran.out
    written = (bench.folder / "run" / "config.yaml").read_text()
    assert ("beta: 2.0" in written) == (loss == "SimPOLoss")


def test_an_option_beside_the_loss_stays(bench):
    """As a flag, and in a later file."""
    ran = bench.fit("--model.loss", "SimPOLoss", "--model.loss.beta", "0.1", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert "beta: 0.1" in (bench.folder / "run" / "config.yaml").read_text()
    overlay = "model:\n  init_args:\n    loss:\n      class_path: SimPOLoss\n      init_args: {beta: 0.1, gamma: 0.3}\n"
    ran = bench.fit(*bench.overlay(overlay), "--trainer.max_steps", "1", "--fresh")
    assert ran.code == 0, ran
    assert "beta: 0.1" in (bench.folder / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("flags", [[], ["--model.loss", "DPOLoss"], ["--model.loss", "AOTLoss"]])
def test_nothing_is_said_where_nothing_is_dropped(bench, flags):
    ran = bench.fit(*flags, "--model.loss.beta", "0.3", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert "warning" not in ran.out


def test_a_file_after_a_file_is_watched_as_well(bench):
    overlay = "model:\n  init_args:\n    loss:\n      class_path: IPOLoss\n      init_args: {normalization: sum}\n"
    ran = bench.fit(*bench.overlay(overlay), "--trainer.max_steps", "1")
    assert "warning: --model.loss IPOLoss replaces DPOLoss; dropped" in ran.out
    assert "normalization: sum" in (bench.folder / "run" / "config.yaml").read_text()


def test_a_model_without_the_part_says_so(bench):
    """SFT over a recipe of DPO: its loss is not used."""
    rows = bench.folder / "sft.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{i}", "completion": "c{i}"}}\n' for i in range(8)))
    data = ("--model", "SFTModule", "--data", "SFTDataModule", "--data.train", rows, "--data.eval", "null")
    ran = bench.fit(*data, "--trainer.callbacks", "TokenLoss", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert "warning: --model SFTModule does not use the file's loss: DPOLoss" in ran.out


RECIPE = "a later trainer.callbacks replaces the file's list; dropped: "


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("callbacks: [{class_path: ProgressLog}]", "Samples "),
        ("callbacks: []", "Samples "),
        ("callbacks: {class_path: SelfCheck, init_args: {enabled: false}}", "Samples "),
        ("callbacks: [{class_path: Samples, init_args: {num_prompts: 0}}]", ""),
        ("callbacks+: [{class_path: ProgressLog}]", ""),
        ("max_steps: 1", ""),
    ],
)
def test_callbacks_that_an_overlay_drops_are_named(bench, text, dropped):
    """Measures are not among them: each module adds its own again."""
    ran = bench.fit(*bench.overlay(f"trainer: {{{text}}}"), "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    lines = [line for line in ran.out.splitlines() if RECIPE in line]
    assert [line.partition("dropped: ")[2].partition("(")[0] for line in lines] == ([dropped] if dropped else [])


def test_options_of_a_callback_that_comes_back_by_itself_are_named(bench):
    options = "{class_path: RunCheckpoints, init_args: {every_n_steps: 1}}"
    first = bench.overlay(f"trainer: {{callbacks+: [{options}]}}")
    ran = bench.fit(*first, "--trainer.callbacks", "ProgressLog", "--trainer.max_steps", "1")
    assert f"{RECIPE}Samples, RunCheckpoints (its options) " in ran.out


def test_the_last_file_wins_however_it_is_given(bench):
    """Attached to its flag or beside it: the loss of the second file has its own defaults."""
    second = bench.overlay("model: {init_args: {loss: {class_path: SimPOLoss}}}")
    ran = bench.fit(*second, "--trainer.max_steps", "1")  # the recipe is given as --config=FILE
    assert ran.code == 0, ran
    assert "SimPOLoss replaces DPOLoss" in ran.out
    assert (
        yaml.safe_load((bench.folder / "run/config.yaml").read_text())["model"]["init_args"]["loss"]["init_args"][
            "beta"
        ]
        == 2.0
    )
