"""The manifest of checkpoints, where a process ends between an entry and the file that it is of."""

from pathlib import Path

import pytest

from dpo_lightning.runs.checkpoint_files import LAST, CheckpointFiles, find_checkpoint_of_run


def make_checkpoint(step):
    return {"global_step": step, "state_dict": {}, "optimizer_states": []}


@pytest.mark.parametrize("ends", [1, 6])
def test_a_checkpoint_that_is_not_replaced_is_known(tmp_path, monkeypatch, ends):
    """Also where several processes have ended there, one after the other."""
    files, replace = CheckpointFiles(), Path.replace
    files.save_checkpoint(make_checkpoint(1), tmp_path / LAST)

    def end_at_checkpoints(path, target):
        if Path(target).suffix == ".ckpt":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", end_at_checkpoints)
    for step in range(2, 2 + ends):
        with pytest.raises(KeyboardInterrupt):
            files.save_checkpoint(make_checkpoint(step), tmp_path / LAST)
    found = find_checkpoint_of_run(tmp_path)
    assert (found.path, found.damaged) == (tmp_path / LAST, [])
