"""What a checkpoint may bring into a run: never a hyperparameter; going on is going on as if nothing had been."""

import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_models
from support.command_line import Bench, refused, run, watch_loading

from dpo_lightning.errors import UserError
from dpo_lightning.runs.resume import check_checkpoint, differences, other_rates, read_checkpoint, run_config
from dpo_lightning.runs.run_folder import LOCK

CANARY = []


class Code:
    """An object that runs something where it is unpickled."""

    def __reduce__(self):
        return CANARY.append, ("unpickled",)


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_llama):
    """A bench with a run of one epoch; tests read it and run beside it."""
    bench = Bench(tmp_path_factory.mktemp("resume"), tiny_llama)
    ran = bench.fit("--trainer.gradient_clip_val", "0.5")
    assert ran.code == 0, ran
    return bench


@pytest.fixture
def bench(first, tmp_path, monkeypatch):
    """The same rows, another place for what is run."""
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, first.model, rows=first)


@pytest.fixture
def checkpoint(first):
    return first.folder / "run" / "checkpoints" / "last.ckpt"


def go_on(bench, checkpoint, *more, epochs=2, out="run"):
    """Continue the first run with more epochs, in a new folder."""
    epochs = ("--trainer.max_epochs", epochs, "--trainer.gradient_clip_val", "0.5")
    return bench.fit(*epochs, "--ckpt_path", checkpoint, *more, out=out)


def test_going_on_is_the_same_as_never_having_stopped(bench, first, checkpoint, tmp_path):
    """Same rows in the same order, same optimizer state: the weights agree to the bit."""
    ran = go_on(bench, checkpoint)
    assert ran.code == 0, ran
    assert "self-check: left out (the run goes on)" in ran.out
    ran = bench.fit("--trainer.gradient_clip_val", "0.5", "--trainer.max_epochs", "2", out="whole")
    assert ran.code == 0, ran
    runs = (tmp_path / "run", tmp_path / "whole", first.folder / "run")
    resumed, uninterrupted, earlier = (load_file(run / "final_model" / "model.safetensors") for run in runs)
    assert resumed.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(resumed[name], value), name
    assert not torch.equal(earlier["model.embed_tokens.weight"], resumed["model.embed_tokens.weight"])
    for name in ("eval/loss", "eval/rewards/margins", "step"):
        assert bench.json("metrics.json")[name] == bench.json("metrics.json", "whole")[name], name


def test_going_on_from_the_saved_config(first, bench, checkpoint):
    """`--config RUN/config.yaml` is the way on that errors name."""
    config = first.folder / "run" / "config.yaml"
    options = ("--output_dir", bench.folder / "run", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2")
    ran = run("fit", "--config", config, *options)
    assert ran.code == 0, ran
    assert bench.json("metrics.json")["step"] == 4


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("https://a.example/last.ckpt", 64, "a checkpoint is a local .ckpt file"),
        ("hf://org/last.ckpt", 64, "a checkpoint is a local .ckpt file"),
        ("last", 64, "--model.policy.path outputs/RUN/final_model"),
        *((word, 64, "a checkpoint is a local .ckpt file") for word in ("best", "run", "")),
        ("run/checkpoints/lost.ckpt", 66, "the checkpoint does not exist at ckpt_path"),
        ("run/checkpoints/lost.ckpt", 66, "last.ckpt"),
        ("nowhere/lost.ckpt", 66, "checkpoints in this folder: none"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_what_is_no_checkpoint(bench, first, monkeypatch, command, path, code, said):
    """A URL would be fetched and unpickled; a folder or a word is guessed at by lightning."""
    loaded = watch_loading(monkeypatch)
    full = path if "://" in path or "/" not in path else first.folder / path
    refused(bench.run(command, "--ckpt_path", full), code, said)
    assert not loaded
    assert not (bench.folder / "run").exists()


DIRECTORY = {"a name that is no text": (46, 0xFF), "another compression": (10, 8), "a third": (10, 14)}
"""A byte of the archive's last entry in its directory, for which `zipfile` raises errors of many kinds."""


def damage(checkpoint, target, kind):
    """A file that is not quite the checkpoint."""
    content = bytearray(checkpoint.read_bytes())
    if kind == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        content[len(content) // 2] ^= 0xFF
        target.write_bytes(content)
    elif kind in DIRECTORY:
        place, value = DIRECTORY[kind]
        content[content.rfind(b"PK\1\2") + place] = value
        target.write_bytes(content)
    elif kind == "empty":
        target.touch()
    elif kind == "a zip":
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("a/b", "c")
    elif kind == "other tensors":
        torch.save({"weight": torch.zeros(2)}, target)
    elif kind == "a list":
        torch.save([1], target)
    else:
        torch.save({**torch.load(checkpoint, weights_only=True), "more": Code()}, target)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut", "the checkpoint is damaged"),
        ("flipped", "the checkpoint is damaged"),
        ("empty", "the checkpoint is damaged"),
        *((kind, "the checkpoint is damaged") for kind in DIRECTORY),
        ("a zip", "this is not a checkpoint of a run"),
        ("other tensors", "this is not a checkpoint of a run"),
        ("a list", "this is not a checkpoint of a run"),
        ("code", "pickled objects, which may run code"),
    ],
)
def test_a_damaged_checkpoint(bench, checkpoint, monkeypatch, kind, said):
    """Found before the model is loaded, and never silently a start from scratch."""
    loaded = watch_loading(monkeypatch)
    damage(checkpoint, bench.folder / "bad.ckpt", kind)
    refused(go_on(bench, bench.folder / "bad.ckpt"), 66, said, "ckpt_path")
    assert not CANARY
    assert not loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("place", ["a link to itself", "a name too long", "a folder"])
def test_a_checkpoint_that_cannot_be_opened(bench, monkeypatch, command, place):
    loaded = watch_loading(monkeypatch)
    path = bench.folder / ("n" * 300 + ".ckpt" if "long" in place else "odd.ckpt")
    if place == "a link to itself":
        path.symlink_to(path.name)
    elif place == "a folder":
        path.mkdir()
    said = {"a folder": "the checkpoint does not exist"}.get(place, "the checkpoint cannot be read: ")
    refused(bench.run(command, "--ckpt_path", path), 66, said, "at ckpt_path", "checkpoints in this folder: none")
    with pytest.raises(UserError, match="the checkpoint is damaged"):  # it became so after it was looked at
        read_checkpoint(path)
    assert not loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value", "old"),
    [
        ("model.learning_rate", "0.0001", "0.001"),
        ("model.loss.beta", "0.9", "0.1"),
        ("model.policy.dtype", "bfloat16", "float32"),
        ("model.policy.lora.r", "4", "None"),
        ("data.max_tokens", "150", "None"),
        ("data.max_length", "100", "128"),
        ("seed_everything", "1", "42"),
        ("trainer.gradient_clip_val", "0.7", "0.5"),
        ("trainer.precision", "bf16-mixed", "32-true"),
    ],
)
def test_other_hyperparameters_are_refused_with_the_difference(bench, checkpoint, monkeypatch, flag, value, old):
    """Neither the flag nor the checkpoint wins in silence."""
    loaded = watch_loading(monkeypatch)
    ran = go_on(bench, checkpoint, f"--{flag}", value)
    shown = value if value[0].isdigit() else repr(value)
    refused(ran, 64, f"{flag} is {shown}, the checkpoint's run had ", old, "config.yaml", "--config")
    assert not loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("place", ["checkpoints/step=2-eval/rewards/accuracies=0.50", "best/step=2", "step=2"])
def test_a_checkpoint_is_of_the_run_that_it_lies_in(bench, first, tmp_path, place):
    """Wherever below: a name with `{eval/rewards/accuracies}` makes folders. Another file of the name is no run's."""
    shutil.copytree(first.folder / "run", tmp_path / "before" / "run")
    (tmp_path / "config.yaml").write_text("- another: program's\n")
    (tmp_path / "before" / "config.yaml").write_text("jobs: 3\n")
    file = tmp_path / "before" / "run" / f"{place}.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tmp_path / "before" / "run" / "checkpoints" / "last.ckpt", file)
    refused(go_on(bench, file, "--model.loss.beta", "0.9"), 64, "model.loss.beta is 0.9, the checkpoint's run had 0.1")
    ran = go_on(bench, file, out="before/run")
    assert ran.code == 0, ran
    assert "note: " not in ran.out


def test_a_configuration_that_cannot_be_read_counts_in_the_folder_of_a_run_only(tmp_path):
    (tmp_path / "config.yaml").write_text("jobs: [")
    assert run_config(tmp_path / "checkpoints" / "last.ckpt") is None
    (tmp_path / LOCK).touch()
    with pytest.raises(UserError, match=r"config\.yaml"):
        run_config(tmp_path / "checkpoints" / "last.ckpt")


def test_every_difference_is_named_at_once(bench, checkpoint):
    ran = go_on(bench, checkpoint, "--model.loss", "IPOLoss", "--data.max_length", "64")
    refused(ran, 64, "model.loss.class_path is 'dpo_lightning.losses.IPOLoss'", "data.max_length is 64")


@pytest.mark.parametrize("option", ["data.batch_size", "trainer.accumulate_grad_batches"])
def test_another_number_of_rows_a_step_is_refused(bench, checkpoint, option):
    refused(go_on(bench, checkpoint, f"--{option}", "2"), 64, "the number of rows of an optimizer step has changed")


def test_what_does_not_train_may_differ(bench, checkpoint, first):
    """Held-out rows, workers, the logging; and a precision that is left open is no other precision."""
    (bench.folder / "eval.jsonl").write_bytes(first.eval.read_bytes())
    more = ("--data.eval", bench.folder / "eval.jsonl", "--trainer.log_every_n_steps", "2")
    ran = go_on(bench, checkpoint, *more)
    assert ran.code == 0, ran
    config = {"trainer.precision": "32-true", "trainer.max_epochs": 1}
    assert not list(differences(config, {"trainer.precision": None, "trainer.max_epochs": 2}, "f"))
    assert len(list(differences(config, {"trainer.precision": "16-mixed"}, "f"))) == 1


def test_validate_may_differ(bench, checkpoint):
    """Nothing is trained: only the weights are taken."""
    assert bench.run("validate", "--ckpt_path", checkpoint, "--data.batch_size", "2").code == 0


def test_a_checkpoint_of_another_model_is_refused(bench, checkpoint, tmp_path):
    """Also by a command that compares no hyperparameters."""
    wider = tiny_models.make_llama(hidden_size=24)
    other = tiny_models.save(tmp_path / "other", wider, tiny_models.make_chat_tokenizer())
    ran = bench.run("validate", "--ckpt_path", checkpoint, "--model.policy.path", other)
    refused(ran, 64, "the checkpoint was trained against another reference")


def test_the_rate_of_a_moved_checkpoint_is_not_taken_in_silence(bench, checkpoint):
    """Without its run's config beside it, the optimizer's state would still bring its learning rate along."""
    moved = shutil.copy(checkpoint, bench.folder / "moved.ckpt")
    refused(go_on(bench, moved, "--model.learning_rate", "0.002"), 64, "is 0.002, the checkpoint's run had 0.001")
    ran = go_on(bench, moved)
    assert ran.code == 0, ran
    assert "only the learning rate was compared" in ran.out


def test_a_schedule_keeps_the_rate_that_it_began_with():
    """`lr` of a scheduled optimizer has moved; `initial_lr` has not."""
    state = {"optimizer_states": [{"param_groups": [{"lr": 1e-5, "initial_lr": 1e-3}]}]}
    now = {"model.init_args.learning_rate": 1e-3}
    assert not list(other_rates(state, now))
    assert len(list(other_rates({"optimizer_states": [{"param_groups": [{"lr": 1e-5}]}]}, now))) == 1


def test_a_schedule_goes_on_where_it_was(bench, first, tmp_path):
    """Its steps are counted on, and its rate is neither reset nor refused."""
    schedule = ("--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size", "1")
    schedule = (*schedule, "--model.lr_scheduler.gamma", "0.5")
    assert bench.fit(*schedule, out="half").code == 0
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    assert bench.fit(*schedule, "--trainer.max_epochs", "2", "--ckpt_path", last).code == 0
    assert bench.fit(*schedule, "--trainer.max_epochs", "2", out="whole").code == 0
    rates, models = [], []
    for name in ("run", "whole"):
        saved = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        rates.append(saved["optimizer_states"][0]["param_groups"][0]["lr"])
        models.append(load_file(tmp_path / name / "final_model" / "model.safetensors"))
    assert rates == [1e-3 * 0.5**4] * 2
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_a_checkpoint_is_checked_without_a_command(checkpoint, tmp_path):
    """The function itself: what is compared, and that an unknown file is told."""
    check_checkpoint(str(checkpoint), {}, compare=False)
    with pytest.raises(UserError, match="the checkpoint's run had"):
        check_checkpoint(str(checkpoint), {}, compare=True)
    with pytest.raises(UserError, match="the checkpoint does not exist"):
        check_checkpoint(str(tmp_path / "a.ckpt"), {}, compare=False)


@pytest.mark.parametrize("key", ["loops", "optimizer_states", "callbacks"])
def test_a_checkpoint_with_values_of_other_types(bench, checkpoint, key):
    """As another program could have written it."""
    target = bench.folder / "changed.ckpt"
    torch.save({**torch.load(checkpoint, weights_only=True), key: 5}, target)
    refused(go_on(bench, target), 66, "going on from the checkpoint failed before a step was trained", str(target))
