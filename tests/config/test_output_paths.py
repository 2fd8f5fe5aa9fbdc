"""Where a config may have files written, and what the command line may name besides, by commands."""

import sys

import pytest
from support.command_line import refused, watch_loading

from dpo_lightning.errors import UserError
from dpo_lightning.runs.run_folder import RunFolder


@pytest.fixture
def victim(bench):
    """A folder of the user's own, and a link to it within the place where runs lie."""
    folder = bench.folder / "victim"
    folder.mkdir()
    (folder / "important.ckpt").write_text("mine")
    (bench.folder / "link").symlink_to(folder)
    return folder


def callback(kind, options):
    return f"trainer: {{callbacks: [{{class_path: lightning.pytorch.callbacks.{kind}, init_args: {{{options}}}}}]}}"


def part(section, kind, options):
    path = f"lightning.pytorch.{section}s.{kind}"
    return f"trainer: {{{section}: {{class_path: {path}, init_args: {{{options}}}}}}}"


OUTSIDE = {
    "a checkpoint over another": (
        callback("ModelCheckpoint", "dirpath: victim, filename: important"),
        "callbacks.dirpath",
    ),
    "an absolute folder": (callback("ModelCheckpoint", "dirpath: VICTIM"), "callbacks.dirpath"),
    "the folder of a user's home": (callback("ModelCheckpoint", "dirpath: ~/x"), "callbacks.dirpath"),
    "a folder by a variable": (callback("ModelCheckpoint", "dirpath: $PWD/x"), "callbacks.dirpath"),
    "a link": (callback("ModelCheckpoint", "dirpath: link"), "callbacks.dirpath"),
    "a way up": (callback("ModelCheckpoint", "dirpath: RUN/../victim"), "callbacks.dirpath"),
    "a URL": (callback("ModelCheckpoint", "dirpath: 'memory://x'"), "callbacks.dirpath"),
    "a name that leads up": (callback("ModelCheckpoint", "filename: ../../victim/important"), "callbacks.filename"),
    "a metric that leads up": (callback("ModelCheckpoint", "filename: '{../../victim/x:d}'"), "callbacks.filename"),
    "a number that becomes a dot": (
        callback("ModelCheckpoint", "filename: '{step:c}{step:c}/x'"),
        "callbacks.filename",
    ),
    "an absolute name": (callback("ModelCheckpoint", "filename: VICTIM/important"), "callbacks.filename"),
    "on an exception": (callback("OnExceptionCheckpoint", "dirpath: victim"), "callbacks.dirpath"),
    "a class by another path": (
        "trainer: {callbacks: [{class_path: dpo_lightning.default_callbacks.ModelCheckpoint, "
        "init_args: {dirpath: victim}}]}",
        "callbacks.dirpath",
    ),
    "curves by another path": (
        "trainer: {logger: {class_path: dpo_lightning.callbacks.samples.TensorBoardLogger, "
        "init_args: {save_dir: victim}}}",
        "logger.save_dir",
    ),
    "a list of bad batches": (
        callback("SpikeDetection", "exclude_batches_path: victim/x.json"),
        "exclude_batches_path",
    ),
    "a table": (part("logger", "CSVLogger", "save_dir: ."), "logger.save_dir"),
    "a table's name": (part("logger", "CSVLogger", "save_dir: RUN, name: ../victim"), "logger.name"),
    "a table's version": (part("logger", "CSVLogger", "save_dir: RUN, version: ../../victim"), "logger.version"),
    "curves": (part("logger", "TensorBoardLogger", "save_dir: victim"), "logger.save_dir"),
    "curves below": (part("logger", "TensorBoardLogger", "save_dir: RUN, sub_dir: ../../../victim"), "logger.sub_dir"),
    "curves by a variable": (part("logger", "TensorBoardLogger", "save_dir: RUN, name: $HOME"), "logger.name"),
    "a profile": (part("profiler", "SimpleProfiler", "dirpath: victim, filename: x"), "profiler.dirpath"),
    "another profile": (part("profiler", "AdvancedProfiler", "dirpath: victim, dump_stats: true"), "profiler.dirpath"),
    "a profile's name": (part("profiler", "SimpleProfiler", "filename: ../victim/x"), "profiler.filename"),
    "log-probabilities": (
        "model: {init_args: {reference: {class_path: Precomputed, init_args: {path: victim/x.safetensors}}}}",
        "model.reference.path",
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_file_names_no_place_outside_of_the_run(bench, victim, monkeypatch, case):
    """Before anything is loaded; the key and the way on are named."""
    loaded = watch_loading(monkeypatch)
    text, key = OUTSIDE[case]
    text = text.replace("VICTIM", str(victim)).replace("RUN", str(bench.folder / "run"))
    refused(bench.fit(*bench.overlay(text)), 64, "the path is outside of output_dir", f"{key}\n", "command line")
    assert [path.name for path in victim.iterdir()] == ["important.ckpt"]
    assert (victim / "important.ckpt").read_text() == "mine"
    assert not (bench.folder / "run").exists()
    assert not loaded


def test_a_file_names_no_place_for_log_probabilities(bench, victim):
    """The file of `precompute` has an option of its own."""
    overlay = bench.overlay("out: victim/x.safetensors")
    refused(bench.run("precompute", *overlay), 64, "outside of output_dir", "at out\n  | victim/x.safetensors")
    assert [path.name for path in victim.iterdir()] == ["important.ckpt"]


def test_the_command_line_may_name_any_place(bench):
    """By a flag of its own, and in YAML that is written out; a file that a flag names is a file."""
    entry = f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {bench.folder}/a}}}}"
    text = f"trainer: {{callbacks: [{{class_path: ModelCheckpoint, init_args: {{dirpath: {bench.folder}/b}}}}]}}"
    steps = ("--trainer.max_steps", "1")
    ran = bench.fit(f"--trainer.callbacks=[{entry}]", *steps)
    assert ran.code == 0, ran
    assert list((bench.folder / "a").glob("*.ckpt"))
    flag = ("--trainer.callbacks.dirpath", bench.folder / "b")
    ran = bench.fit(*bench.overlay(text), *flag, *steps, out="second")
    assert ran.code == 0, ran
    assert list((bench.folder / "b").glob("*.ckpt"))
    (bench.folder / "callbacks.yaml").write_text(f"[{entry}]\n")
    refused(bench.fit("--trainer.callbacks", bench.folder / "callbacks.yaml", out="third"), 64, "callbacks.dirpath")


OWN_CALLBACKS = """
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

class Kept(ModelCheckpoint):
    def __init__(self, **options):
        super().__init__(**options)

class Noted(Callback):
    def __init__(self, dir: str):
        self.dir = dir
"""


def test_a_class_of_the_users_own_is_no_way_around(bench, victim, monkeypatch):
    """What it hands to a class of lightning is looked at; its other options are its own."""
    (bench.folder / "own_callbacks.py").write_text(OWN_CALLBACKS)
    monkeypatch.syspath_prepend(str(bench.folder))
    text = "trainer: {callbacks: [{class_path: own_callbacks.KIND, init_args: {OPTION}}]}"
    allow = ("--allow-class-path", "own_callbacks", "--trainer.max_steps", "1")
    hostile = text.replace("KIND", "Kept").replace("OPTION", f"dirpath: {victim}")
    harmless = text.replace("KIND", "Noted").replace("OPTION", f"dir: {victim}")
    try:
        refused(bench.fit(*bench.overlay(hostile), *allow), 64, "at trainer.callbacks.dirpath")
        ran = bench.fit(*bench.overlay(harmless), *allow)
    finally:
        sys.modules.pop("own_callbacks", None)
    assert ran.code == 0, ran


def test_places_in_the_run_are_free(bench):
    """Loggers and profilers of a file, and a name with a metric's slash."""
    run = bench.folder / "run"
    text = (
        f"trainer:\n  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {run}}}}}\n"
        f"  profiler: {{class_path: lightning.pytorch.profilers.SimpleProfiler, init_args: {{filename: times}}}}\n"
        "  callbacks+:\n  - class_path: ModelCheckpoint\n    init_args:\n      monitor: eval/loss\n"
        f"      dirpath: {run}/best\n      filename: '{{step}}-{{eval/loss:.2f}}'\n"
    )
    ran = bench.fit(*bench.overlay(text))
    assert ran.code == 0, ran
    assert list((run / "best").rglob("*.ckpt"))
    assert list(run.rglob("metrics.csv"))
    assert list(run.rglob("*times*"))


@pytest.mark.parametrize("name", ["~/run", "$SCRATCH/run", "${HOME}", "s3://bucket/run", "a\x1b[2Jb"])
def test_a_folder_is_named_as_it_stands(name):
    """Some loggers would expand what others would not, and write into another folder."""
    with pytest.raises(UserError, match="may not contain"):
        RunFolder(name)


@pytest.mark.parametrize("name", ["outputs/dpo", "/scratch/me/run", "../run", "a$", "실험 1"])
def test_a_new_folder_may_lie_anywhere(name):
    """A config's own as well: a folder that holds something is refused, so that nothing is written over."""
    assert str(RunFolder(name).path) == name


def test_a_file_moves_no_folder(bench):
    """`fresh` counts on the command line alone; the saved config of a run with it is no trap."""
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "config.yaml").touch()
    refused(bench.fit(*bench.overlay("fresh: true\n")), 73, "already holds a run", "--fresh")
    assert (bench.folder / "run" / "config.yaml").exists()


@pytest.mark.parametrize("place", ["checkpoints/step=9.ckpt", "checkpoints", "predictions.jsonl"])
def test_nothing_is_written_through_a_link(bench, victim, place):
    """A run's folder that came from elsewhere may hold links to what is not its own."""
    run = bench.folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    if place == "checkpoints":
        (run / "checkpoints").rename(victim / "checkpoints")
    (run / place).symlink_to(victim / "important.ckpt" if "." in place else victim / "checkpoints")
    folder = RunFolder(str(run))
    with pytest.raises(UserError, match="a link leads out of the folder") as caught:
        folder.check_links()
    assert caught.value.code == 73
    (run / place).unlink()
    (run / "inside").symlink_to(run / "config.yaml")
    folder.check_links()
