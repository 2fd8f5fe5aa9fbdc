"""Which paths of a config are outside of its run, by the functions themselves; `test_output_paths.py` has commands."""

from pathlib import Path

import pytest
from jsonargparse import Namespace

from dpo_lightning.config.output_paths import (
    find_places,
    find_reference_files,
    is_inside,
    is_name,
    on_command_line,
    parse_flags,
)

OPTIONS = {
    "callbacks.ModelCheckpoint": "dirpath filename",
    "callbacks.SpikeDetection": "exclude_batches_path",
    "loggers.CSVLogger": "save_dir root_dir name version",
    "loggers.TensorBoardLogger": "sub_dir filename_suffix",
    "loggers.WandbLogger": "dir checkpoint_name",
    "loggers.MLFlowLogger": "experiment_name run_name tracking_uri artifact_location",
    "strategies.DeepSpeedStrategy": "nvme_path",
}


@pytest.mark.parametrize("given", ["init_args", "dict_kwargs"])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in OPTIONS.items() for name in names.split()])
def test_every_option_that_names_a_place(kind, name, given):
    """In whatever it lies; a path object is one as well."""
    around = "lightning.pytorch.callbacks.LambdaCallback"
    for value in ("../x", Path("../x")):
        part = {"class_path": f"lightning.pytorch.{kind}", given: {name: value}}
        within = {"class_path": around, "init_args": {"parts": ({"part": [part]},)}}
        for whole in (part, Namespace(part), within):
            ((key, text, inside),) = find_places(whole, "trainer", "run")
            assert key.startswith("trainer.")
            assert (key.rpartition(".")[2], text, inside) == (name, "../x", False)


def test_what_names_no_place():
    """A class of the user's own, a mapping that is none of a class, and an option left as it is."""
    version = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"version": None, "prefix": "../x"}}
    default = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": None}}
    named = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"name": "lightning_logs"}}
    for value in ({"dir": "../x", "name": ".."}, version, default, named, 3, None):
        assert list(find_places(value, "trainer", "run")) == []


def test_names_and_folders(tmp_path):
    """The two questions by themselves."""
    for name in ("{step}", "{epoch:02d}-{eval/loss:.2f}", "a.b..c", "x/y", "v1"):
        assert is_name(name), name
    for name in (
        "..",
        "a/../b",
        "{../x}",
        "x/{..}",
        "a\\..\\b",
        "/a",
        "~a",
        "{a:{b}}",
        "{step:.>3}",
        "{a!r}:x}",
        "$HOME",
        "{",
        "memory://a",
    ):
        assert not is_name(name), name
    assert is_inside(str(tmp_path / "a" / "b"), str(tmp_path / "a"))
    assert is_inside(str(tmp_path / "a"), str(tmp_path / "a"))
    assert not is_inside(str(tmp_path / "ab"), str(tmp_path / "a"))
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_inside(str(tmp_path / "link" / "a"), str(tmp_path / "link"))
    for elsewhere in ("file:a/b", "memory://a/b", "~/x", "$HOME/x"):
        assert not is_inside(elsewhere, "."), elsewhere


def test_where_log_probabilities_may_lie(place):
    """In the run's folder, where they lie by default, and in a file that is there; `path` of another class is read."""

    def found(name, path):
        reference = {"class_path": f"dpo_lightning.references.{name}", "init_args": {"path": path}}
        return [
            inside for _, _, inside in find_reference_files({"model": {"init_args": {"reference": reference}}}, "run")
        ]

    (place / "victim").mkdir()
    (place / "victim" / "there").touch()
    for path in ("run/x", "outputs/reference/x", "victim/there"):
        assert found("Precomputed", path) == [True], path
    assert found("Precomputed", "victim/x") == [False]
    assert found("Precomputed", None) == found("FrozenCopy", "victim/x") == []


@pytest.mark.parametrize(
    "args",
    [
        ("--trainer.callbacks.dirpath", "/a"),
        ("--trainer.callbacks.dirpath=/a",),
        ("--trainer.callbacks.init_args.dirpath=/a",),
        ("--trainer.callbacks.dict_kwargs.dirpath", "/a"),
        ("--trainer.callbacks+=[{class_path: X, init_args: {dirpath: /a}}]",),
        ("--trainer", "{callbacks: [{init_args: {dirpath: /a}}]}"),
    ],
)
def test_what_a_flag_gives(args):
    """Also a text that YAML would take for another."""
    assert on_command_line("trainer.name", "../a #1", list(parse_flags(["fit", "--trainer.name=../a #1"])))
    assert on_command_line("trainer.callbacks.dirpath", "/a", list(parse_flags(["fit", *args])))


@pytest.mark.parametrize(
    "args",
    [
        ("--trainer.callbacks.dirpath", "/b"),
        ("--trainer.callbacks.filename=/a",),
        ("--trainer.logger=[{init_args: {dirpath: /a}}]",),
        ("--trainer.callback", "/a"),
        ("--trainer.callbacks", "[/a"),
        ("--output_dir", "--trainer.callbacks.dirpath"),
        ("--output_dir", "xxtrainer.callbacks.dirpath=/a"),
    ],
)
def test_what_no_flag_gives(args):
    assert not on_command_line("trainer.callbacks.dirpath", "/a", list(parse_flags(["fit", *args])))
