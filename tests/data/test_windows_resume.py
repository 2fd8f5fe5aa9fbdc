"""Checkpoints from anywhere in an accumulation window: each gives the weights of a run that was never stopped."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from support import whole_runs
from support.two_ranks import run_on_two_ranks
from support.window_runs import CUTS, EPOCHS, HOOKS, STEPS, WINDOW, Everywhere, parts, same, train

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.runs.resume import check_progress


@pytest.fixture(scope="module")
def whole(tiny_llama, tmp_path_factory):
    """The weights of a run that is never stopped, and what it saw, by the kind of batch."""
    folder = tmp_path_factory.mktemp("whole")
    return {cut: train(tiny_llama, folder / cut, cut=cut) for cut in CUTS}


def steps_of(path):
    """The optimizer step of a checkpoint, and the batches of its epoch that it counts as done."""
    content = torch.load(path, weights_only=True)
    (place,) = content["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return content["global_step"], place


@pytest.mark.parametrize(
    ("cut", "options"),
    [
        ("rows", {}),
        ("rows", {"max_steps": STEPS}),
        ("tokens", {"check_val_every_n_epoch": None, "val_check_interval": 4}),
    ],
)
def test_a_checkpoint_from_anywhere_gives_the_weights_of_the_whole_run(cut, options, whole, tiny_llama, tmp_path):
    """And what was evaluated before it is not evaluated again: an early stop counts every evaluation once."""
    saver = Everywhere(tmp_path)
    expected, seen = train(tiny_llama, tmp_path / "a", callbacks=[saver], cut=cut, **options)
    assert same(expected, whole[cut][0])
    assert {hook for _, hook, _ in saver.made} == set(HOOKS)
    batches, evaluations = parts(seen)
    for path, hook, evaluated in saver.made:
        assert steps_of(path)[1]["batches"] in (0, WINDOW), path.name
        weights, again = train(tiny_llama, tmp_path / "b", path, cut=cut, **options)
        assert same(weights, expected), path.name
        left, later = parts(again)
        assert left == batches[len(batches) - len(left) :], path.name
        assert later == evaluations[len(evaluations) - len(later) :], path.name
        if hook in ("on_validation_end", "on_train_batch_start"):
            assert later == evaluations[evaluated:], path.name


WAYS = {
    "every step, by a metric": {"monitor": "eval/loss", "every_n_train_steps": 1, "save_top_k": -1},
    "always": {"train_time_interval": timedelta(0), "save_top_k": -1},
    "an evaluation": {"monitor": "eval/loss", "save_top_k": -1, "save_on_train_epoch_end": False},
    "an evaluation, the last": {"save_last": True, "save_top_k": 0},
    "an epoch": {"save_on_train_epoch_end": True, "save_top_k": -1},
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_checkpoint_is_written_for(way, whole, tiny_llama, tmp_path):
    """Its weights are those of its own optimizer step, also where a metric was measured within a window."""
    steps = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    written = ModelCheckpoint(tmp_path / "way", "{step}", **WAYS[way])
    train(tiny_llama, tmp_path / "a", callbacks=[steps, written])
    made = sorted((tmp_path / "way").iterdir())
    assert len(made) == {"always": STEPS, "an epoch": EPOCHS, "an evaluation, the last": 1}.get(way, len(made))
    for path in made:
        step, _ = steps_of(path)
        if step:
            stored = torch.load(tmp_path / "steps" / f"step={step}.ckpt", weights_only=True)
            content = torch.load(path, weights_only=True)
            assert same(content["state_dict"], stored["state_dict"]), path.name
        weights, _ = train(tiny_llama, tmp_path / "b", path)
        assert same(weights, whole["rows"][0]), path.name


@pytest.mark.parametrize("window", [1, WINDOW])
@pytest.mark.parametrize("part", ["the update", "what follows it"])
def test_half_an_optimizer_step_is_no_place_to_go_on_from(part, window, tiny_llama, tmp_path):
    """An error within the update itself leaves some weights new and some old."""

    def step(optimizer, *_, **__):
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].add_(1)
        raise RuntimeError("a failure of the test")

    module = whole_runs.dpo(tiny_llama)
    if part == "the update":
        module.optimizer = type("Torn", (torch.optim.SGD,), {"step": lambda self, closure: (closure(), step(self))})
    else:
        module.optimizer_zero_grad = lambda *_: None
        real = module.optimizer_step

        def late(*args, **options):
            real(*args, **options)
            raise RuntimeError("a failure of the test")

        module.optimizer_step = late
    with pytest.raises(RuntimeError, match="a failure of the test"):
        train(
            tiny_llama,
            tmp_path / "a",
            callbacks=[OnExceptionCheckpoint(tmp_path)],
            module=module,
            accumulate_grad_batches=window,
        )
    with pytest.raises(UserError, match="written while an optimizer step changed the weights") as told:
        train(tiny_llama, tmp_path / "b", tmp_path / "on_exception.ckpt", accumulate_grad_batches=window)
    assert told.value.code == ExitCode.INPUT_MISSING


@pytest.fixture(scope="module")
def within(tiny_llama, tmp_path_factory):
    """A run's checkpoints, one after each batch."""
    folder = tmp_path_factory.mktemp("within")
    saver = Everywhere(folder)
    train(tiny_llama, folder / "a", callbacks=[saver])
    return [path for path, hook, _ in saver.made if hook == "on_train_batch_end"]


def rewritten(path, target, change):
    """A checkpoint with another place."""
    content = torch.load(path, weights_only=True)
    state = content["loops"]["fit_loop"]["state_dict"]
    done = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    state["combined_loader"] = [change(place, done) for place in state["combined_loader"]]
    content["PreferenceDataModule"] = state["combined_loader"][0]
    torch.save(content, target)
    return target


@pytest.mark.parametrize("batch", [0, 1, 3, 5, 8])
def test_a_place_within_a_window_is_taken_back_to_its_start(batch, within, whole, tiny_llama, tmp_path):
    """Earlier versions wrote it: the batches behind the window's start would not count in its step."""

    def older(place, done):
        return {"epoch": place["epoch"], "batches": done, "order": place["order"]}

    weights, seen = train(tiny_llama, tmp_path / "b", rewritten(within[batch], tmp_path / "old.ckpt", older))
    assert same(weights, whole["rows"][0])
    assert parts(seen)[0][0][1] == batch % 5 // WINDOW * WINDOW


def test_a_window_of_another_checkpoint_without_a_place_is_refused(within, tiny_llama, tmp_path):
    """Plain Lightning's: the gradients are not there, and the rows are not to be found again."""
    content = torch.load(within[3], weights_only=True)
    content["loops"]["fit_loop"]["state_dict"].pop("combined_loader")
    content.pop("PreferenceDataModule")
    torch.save(content, tmp_path / "plain.ckpt")
    for go_on in (
        lambda: train(tiny_llama, tmp_path / "b", tmp_path / "plain.ckpt"),
        lambda: check_progress(content, {"trainer.accumulate_grad_batches": WINDOW}),
    ):
        with pytest.raises(UserError, match="after 1 of 3 micro-batches of a step") as told:
            go_on()
        assert "an epoch's end" in told.value.fix


def test_windows_of_another_size_do_not_begin_there(within, tiny_llama, tmp_path):
    """Where no config of the run is beside the checkpoint, or where a callback changes the accumulation."""
    with pytest.raises(UserError, match="accumulate_grad_batches is 2, but was 3 in the checkpoint's epoch"):
        train(tiny_llama, tmp_path / "b", within[3], accumulate_grad_batches=2)
    train(tiny_llama, tmp_path / "c", within[4], accumulate_grad_batches=2)  # an epoch's end


def main(model: str, folder: str, rank: str) -> None:
    """One of two ranks: a whole run, and one from each of some checkpoints of it."""
    torch.set_num_threads(1)
    here, shared = Path(folder) / rank, Path(folder) / "checkpoints"
    options = {"devices": 2, "strategy": "ddp"}
    CUTS["rows"] = {"batch_size": 1}
    saver = Everywhere(shared)
    expected, _ = train(model, here, callbacks=[saver], **options)
    made = [path for path, hook, _ in saver.made if hook == "on_train_batch_end"]
    results = [train(model, here, path, **options)[0] for path in made[:5]]
    if rank == "0":
        torch.save({"whole": expected, "resumed": results}, Path(folder) / "two.pt")


def test_on_two_ranks(tiny_llama, tmp_path):
    """The gradients of a window are each rank's own until its step."""
    found = run_on_two_ranks(__file__, tiny_llama, tmp_path)
    assert len(found["resumed"]) == 5
    assert all(same(weights, found["whole"]) for weights in found["resumed"])


if __name__ == "__main__":
    main(*sys.argv[1:])
