"""One run's folder: refused where it holds something; left as it was by a run that fails early."""

import shutil
import tempfile
from pathlib import Path

import pytest
from support.command_line import fail_at_start, refused, watch_loading

from dpo_lightning.errors import UserError
from dpo_lightning.runs.run_folder import RunFolder


@pytest.fixture
def used(bench):
    """A folder that holds something."""
    folder = bench.folder / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("old: true\n")
    return folder


def tree(folder):
    """Every path below a folder with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


def test_a_used_folder_is_refused_before_anything_is_loaded(bench, used, monkeypatch):
    loaded, before = watch_loading(monkeypatch), tree(bench.folder)
    ran = bench.fit()
    refused(ran, 73, "already holds a run at output_dir", str(used)[:60], "--output_dir NAME", "--fresh")
    assert (loaded, tree(bench.folder)) == ([], before)


def test_an_empty_folder_is_as_good_as_none(bench):
    (bench.folder / "run").mkdir()
    assert bench.fit("--trainer.max_steps", "1").code == 0


def test_fresh_moves_the_old_run_aside(bench, used):
    """Nothing of it is lost, and where it lies is said."""
    ran = bench.fit("--fresh", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    (aside,) = bench.folder.glob("run.*")
    assert f"the old run is now {aside}\n" in ran.out
    assert tree(aside) == {aside / "config.yaml": b"old: true\n"}
    assert "old: true" not in (used / "config.yaml").read_text()


def test_fresh_twice_in_a_second_keeps_both(tmp_path):
    """The name of the time is taken, and another is found."""
    for content in ("first", "second", "third"):
        folder = RunFolder(str(tmp_path / "run"))
        folder.check(fresh=True)
        folder.claim(fresh=True)
        folder.write_config(content)
        folder.release()
    assert sorted(path.read_text() for path in tmp_path.glob("run*/config.yaml")) == ["first", "second", "third"]


def test_files_of_no_run_are_not_called_one(bench):
    """Nor is it advised to move them aside."""
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "thesis.txt").touch()
    ran = bench.fit()
    refused(ran, 73, "the folder holds files that are not of a run at output_dir", "fix: --output_dir NAME")
    assert "--fresh" not in ran.err
    refused(bench.fit("--fresh"), 73, "the folder holds files that are not of a run at output_dir")


@pytest.mark.parametrize("key", ["model.policy.path", "data.train", "data.eval", "model.reference"])
def test_fresh_does_not_move_what_the_run_reads(bench, used, key):
    """A second stage that is given the first one's folder would lose its model from under it."""
    place = used / "final_model"
    options = {"model.reference": ["FrozenCopy", "--model.reference.path", place]}.get(key, [place])
    if key.startswith("data"):
        place.write_bytes(getattr(bench, key.removeprefix("data.")).read_bytes())
    else:
        shutil.copytree(bench.model, place)
    before = tree(bench.folder)
    refused(bench.fit("--fresh", f"--{key}", *options), 73, "--fresh would move files that the run reads", str(place))
    assert tree(bench.folder) == before


@pytest.mark.parametrize("name", [".", ".."])
def test_fresh_does_not_move_the_folder_one_stands_in(bench, monkeypatch, name):
    (bench.folder / "below").mkdir()
    (bench.folder / "below" / "file").touch()
    monkeypatch.chdir(bench.folder / "below")
    before = tree(bench.folder)
    refused(bench.fit("--fresh", "--output_dir", name), 64, "--fresh cannot rename this folder", f"  | {name}\n")
    refused(bench.fit("--output_dir", name), 73, "holds files that are not of a run")
    assert tree(bench.folder) == before


@pytest.mark.parametrize("name", ["", "  "])
def test_a_name_is_needed(bench, name):
    refused(bench.fit(f"--output_dir={name}"), 64, "not the name of a file or folder at output_dir")
    with pytest.raises(UserError, match="not the name of a file or folder"):
        RunFolder("a\0b")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("a bug"), 70),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 74),
        (OSError(28, "No space left on device"), 74),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_run_that_fails_before_its_first_step_leaves_nothing(bench, monkeypatch, error, code):
    """But the encoded rows, for further runs."""
    monkeypatch.setattr(tempfile, "tempdir", str(bench.folder))
    fail_at_start(monkeypatch, error)
    ran = bench.fit(out="a/b/run")
    assert ran.code == code, ran
    assert "Traceback" not in ran.err
    assert [entry.name for entry in (bench.folder / "a/b").iterdir()] == ["encoded"]


def test_a_failing_run_leaves_an_empty_folder_empty(bench, monkeypatch):
    (bench.folder / "run").mkdir()
    fail_at_start(monkeypatch, KeyboardInterrupt())
    assert bench.fit().code == 130
    assert tree(bench.folder / "run") == {}


def test_a_failing_fresh_run_gives_the_old_one_back(bench, used, monkeypatch):
    fail_at_start(monkeypatch, KeyboardInterrupt())
    before = tree(bench.folder)
    ran = bench.fit("--fresh")
    assert (ran.code, f"renamed back to {used}" in ran.out) == (130, True)
    after = tree(bench.folder)
    assert {path: after[path] for path in after if bench.folder / "encoded" not in (path, *path.parents)} == before


def test_a_run_that_fails_later_is_kept(bench, monkeypatch):
    """What was written may be looked at."""
    from dpo_lightning.callbacks.reward_margins import RewardMargins

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RewardMargins, "on_train_batch_end", fail)
    assert bench.fit().code == 130
    assert (bench.folder / "run" / "config.yaml").exists()


def test_a_checkpoint_of_the_folder_goes_on_in_it(bench):
    """With its own config beside the first, and a new final model."""
    assert bench.fit().code == 0
    run = bench.folder / "run"
    first, weights = (run / "config.yaml").read_text(), (run / "final_model" / "model.safetensors").read_bytes()
    more = ("--trainer.max_epochs", "2", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    refused(bench.fit("--fresh", *more), 64, "--fresh would move this checkpoint aside at ckpt_path")
    ran = bench.fit(*more)
    assert ran.code == 0, ran
    assert bench.json("metrics.json")["step"] == 4
    assert (run / "config.yaml").read_text() == first
    assert "max_epochs: 2" in (run / "config-2.yaml").read_text()
    assert (run / "final_model" / "model.safetensors").read_bytes() != weights
    assert not list(run.glob(".final_model*"))


def test_a_failing_continuation_keeps_the_run(bench, monkeypatch):
    assert bench.fit().code == 0
    run = bench.folder / "run"
    before = {path.name for path in run.iterdir()}
    fail_at_start(monkeypatch, KeyboardInterrupt())
    ran = bench.fit("--trainer.max_epochs", "2", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert ran.code == 130
    assert (run / "final_model").exists()
    assert before <= {path.name for path in run.iterdir()}


def test_a_checkpoint_of_another_folder_does_not_open_this_one(bench, used):
    assert bench.fit(out="other").code == 0
    more = ("--trainer.max_epochs", "2", "--ckpt_path", bench.folder / "other/checkpoints/last.ckpt")
    refused(bench.fit(*more), 73, "already holds a run")
    folder = RunFolder(str(used))
    assert not folder.holds(None)
    assert folder.holds(str(used / "last.ckpt"))
    assert folder.holds(str(used / "checkpoints" / "deep" / ".." / "last.ckpt"))
    assert not folder.holds(str(used / "checkpoints" / ".." / ".." / "last.ckpt"))
    (used / "inner").mkdir()
    (used / "inner" / "config.yaml").touch()
    assert not folder.holds(str(used / "inner" / "checkpoints" / "last.ckpt"))
