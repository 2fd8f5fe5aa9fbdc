"""Loaders: budgets of tokens through whole runs, what is refused, and what a loader leaves alone."""

import json
import pickle

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from support import whole_runs
from support.command_line import Bench, fail_at_start, refused
from torch.optim import SGD

from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.data.datamodules import PreferenceDataModule, RankedDataModule, SFTDataModule, UnpairedDataModule
from dpo_lightning.dpo import DPOModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.kto import KTOModule
from dpo_lightning.listwise import ListwiseDPOModule
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.sft import SFTModule

KINDS = {"PreferenceDataModule": PreferenceDataModule, "SFTDataModule": SFTDataModule}
PAIRINGS = {
    DPOModule: PreferenceDataModule,
    SFTModule: SFTDataModule,
    KTOModule: UnpairedDataModule,
    ListwiseDPOModule: RankedDataModule,
}


class Batches(Callback):
    """The rows and the tokens of each batch."""

    def __init__(self):
        self.rows, self.tokens, self.held_out = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(batch.indices.tolist())
        self.tokens.append(batch.input_ids.numel())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.held_out.append(batch.indices.tolist())
        self.tokens.append(batch.input_ids.numel())


def fit(kind, model, folder, module=None, rows=10, **options):
    """Train on rows; what was seen, the module and the data."""
    make, data_kind, make_rows = whole_runs.KINDS[kind]
    files = [whole_runs.write_rows(folder, name, make_rows(n, i)) for name, n, i in (("t", rows, 0), ("e", 5, 53))]
    named = {name: options.pop(name) for name in ("batch_size", "max_tokens", "collator", "shuffle") if name in options}
    data, seen = data_kind(*files, max_length=64, **named), Batches()
    made = make(model, optimizer=SGD, learning_rate=whole_runs.SGD_RATE, **(module or {}))
    whole_runs.fit(made, data, folder, callbacks=[seen], **options)
    return seen, made, data


def flat(batches):
    """The rows of all batches."""
    return [row for batch in batches for row in batch]


# Budgets of tokens


@pytest.mark.parametrize("collator", [None, Padded()], ids=["PackedSharedPrefix", "Padded"])
@pytest.mark.parametrize("kind", whole_runs.KINDS)
def test_no_batch_has_more_tokens_than_the_budget(kind, collator, tiny_llama, tmp_path, capsys):
    """In the layout that the model takes, held-out rows as well."""
    most = {"dpo": 200, "listwise": 300, "sft": 90}[kind]
    seen, _, data = fit(kind, tiny_llama, tmp_path, max_tokens=most, collator=collator, max_epochs=2)
    assert sorted(flat(seen.rows)) == sorted([*range(10)] * 2)
    assert sorted(flat(seen.held_out)) == sorted([*range(5)] * 2)
    assert max(seen.tokens) <= most
    assert max(len(batch) for batch in seen.rows) > 1
    name = type(data.collator).__name__
    assert name == ("Padded" if collator else "PackedSharedPrefix")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batches: ")]
    batches = len(seen.rows) // 2
    assert line.startswith(f"batches: {name}, ")
    assert line.endswith(f"rows each; {batches} an epoch, {2 * batches} steps")


@pytest.mark.parametrize("kind", whole_runs.KINDS)
def test_batches_by_tokens_give_the_gradient_of_one_batch(kind, tiny_llama, tmp_path):
    """Pairs, or tokens, count the same, however many of them a micro-batch holds."""
    most = {"dpo": 160, "listwise": 240, "sft": 90}[kind]
    seen, many, _ = fit(kind, tiny_llama, tmp_path, max_tokens=most, accumulate_grad_batches=10)
    assert len({len(batch) for batch in seen.rows}) > 1
    alone, one, _ = fit(kind, tiny_llama, tmp_path, batch_size=10)
    assert len(alone.rows) == 1
    start = CausalLM(str(tiny_llama)).build().state_dict()
    moved = 0.0
    for name, value in whole_runs.weights(one).items():
        torch.testing.assert_close(whole_runs.weights(many)[name], value, rtol=1e-5, atol=1e-6)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3


def test_evaluation_of_some_batches_takes_the_files_first_rows(tiny_llama, tmp_path):
    seen, _, _ = fit("dpo", tiny_llama, tmp_path, max_tokens=120, limit_val_batches=2)
    assert flat(seen.held_out) == [0, 1, 2]  # a batch ends where the next row does not fit
    seen, _, data = fit("dpo", tiny_llama, tmp_path, max_tokens=120)
    tokens = [data.collator.tokens(row) for row in data.encoded["eval"]]
    assert [tokens[row] for row in flat(seen.held_out)] == sorted(tokens, reverse=True) != tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 0, -1])
def test_a_budget_of_nothing_is_refused(kind, most):
    with pytest.raises(UserError, match=f"max_tokens={most} is less than 2 at data.max_tokens") as told:
        KINDS[kind](train="t", max_tokens=most)
    assert told.value.code == ExitCode.CONFIG


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cpus", "most"), [(4, 64), (96, 96), (None, 64)])
def test_more_workers_than_are_of_use_are_refused(kind, cpus, most, monkeypatch):
    """Each is a process: a thousand take all of the memory. A recipe of a large machine works there."""
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert KINDS[kind](train="t", num_workers=most).num_workers == most
    with pytest.raises(UserError, match=f"num_workers={most + 1} is more than {most} processes") as told:
        KINDS[kind](train="t", num_workers=most + 1)
    assert (told.value.code, told.value.fix) == (ExitCode.CONFIG, "--data.num_workers 0")


@pytest.mark.parametrize("kind", whole_runs.KINDS)
@pytest.mark.parametrize("name", ["t", "e"])
def test_a_row_beyond_the_budget_is_refused_before_weights_are_loaded(kind, name, tiny_llama, tmp_path, monkeypatch):
    """Whatever the layout will be: the one that takes the fewest tokens does not take the row."""
    make, data_kind, rows = whole_runs.KINDS[kind]
    files = [whole_runs.write_rows(tmp_path, file, rows(n, i)) for file, n, i in (("t", 3, 0), ("e", 3, 50))]
    long = {**rows(1)[0], "prompt": "What is it? " * 15}
    whole_runs.write_rows(tmp_path, name, [*rows(2, 9), long])
    monkeypatch.setattr(CausalLM, "build", lambda _: pytest.fail("weights are loaded"))
    module, data = make(tiny_llama), data_kind(*files, max_tokens=70, max_length=200)
    with pytest.raises(UserError, match=f"more than max_tokens=70 at .*{name}.jsonl:3\nfix: --data.max_tok") as told:
        data.prepare("fit", module)
    assert told.value.code == ExitCode.DATA
    least = int(told.value.fix.split()[1])
    for most in (least - 1, least):
        data = data_kind(*files, max_tokens=most, max_length=200)
        if most == least:
            data.prepare("fit", module)
        else:
            with pytest.raises(UserError, match=f"the row has {least} tokens"):
                data.prepare("fit", module)


def test_a_row_beyond_the_budget_in_the_models_own_layout_is_refused_too(tiny_llama, tmp_path):
    """Padded batches repeat the prompt; that the model takes no others is known once it is loaded."""
    eager = {"module": {"policy": CausalLM(str(tiny_llama), attention="eager")}}
    with pytest.raises(UserError, match="more than max_tokens=70 at ") as told:
        fit("dpo", tiny_llama, tmp_path, **eager, max_tokens=70)
    least = int(told.value.fix.split()[1])
    assert least > 70
    seen, _, data = fit("dpo", tiny_llama, tmp_path, **eager, max_tokens=least)
    assert data.collator == Padded()
    assert max(seen.tokens) == least
    assert len(seen.held_out) == 5


def test_what_a_layout_takes_is_the_least():
    """So that what is refused before the model is known would be refused in any layout."""
    from dpo_lightning.data.examples import EncodedAnswer, Origin
    from dpo_lightning.data.kinds.pairs import EncodedPair

    answers = [EncodedAnswer(ids, [True] * len(ids)) for ids in ([4, 5], [4, 6, 7])]
    row = EncodedPair(Origin("f", 1), [1, 2, 3], answers)
    assert PackedSharedPrefix().tokens(row) < Padded().tokens(row)


# The plan


@pytest.fixture
def bench(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


def test_the_plan_of_a_budget(bench, monkeypatch):
    """What batch_size said does not apply; what the budget makes of the rows is told when the layout is known."""
    fail_at_start(monkeypatch, KeyboardInterrupt())
    flags = ("--data.max_tokens", "150", "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "1")
    ran = bench.fit(*flags)
    assert ran.code == 130, ran
    assert (
        "data: 8 training rows, 5 held out; max_tokens=150 a batch in place of batch_size, 2 batches a ste" in ran.out
    )
    (line,) = [line for line in ran.out.splitlines() if line.startswith("batches: ")]
    assert line.startswith("batches: PackedSharedPrefix, ")
    assert line.endswith("; capped at 1 by trainer.max_steps (-1 takes all)")
    assert "max_tokens" not in bench.fit(out="plain").out


def test_an_interval_beyond_an_epoch_of_a_budget_still_evaluates(bench):
    ran = bench.fit("--data.max_tokens", "10000", "--trainer.val_check_interval", "2")
    assert ran.code == 0, ran
    assert "warning: val_check_interval=2 exceeds the 1 batches of an epoch" in ran.out
    assert bench.json("metrics.json")["eval/pairs"] == 5


def test_predictions_of_a_budget_are_those_of_a_batch_size(bench):
    for name, flags in (("tokens", ("--data.max_tokens", "150")), ("rows", ())):
        assert bench.run("predict", *flags, out=name).code == 0
    lines = [(bench.folder / name / "predictions.jsonl").read_text().splitlines() for name in ("tokens", "rows")]
    assert len(lines[0]) == 5
    for one, other in zip(*(map(json.loads, several) for several in lines), strict=True):
        assert one.pop("file") == other.pop("file")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("most", ["1", "-1", "0"])
def test_a_bad_budget_leaves_no_folder(bench, most):
    refused(bench.fit("--data.max_tokens", most), 64, f"max_tokens={most} is less than 2 at data.max_tokens")
    refused(bench.fit("--data.max_tokens", "20"), 65, "the row has ", "train.jsonl:1", "--data.max_tokens ")
    assert not (bench.folder / "run").exists()


# Loaders


@pytest.fixture
def data(tiny_llama, tmp_path):
    """A data module whose trainer has the weights."""
    files = [
        whole_runs.write_rows(tmp_path, name, whole_runs.preference_rows(n, i))
        for name, n, i in (("t", 9, 0), ("e", 5, 50))
    ]
    module, made = whole_runs.dpo(tiny_llama), PreferenceDataModule(*files, batch_size=2, max_length=64, num_workers=0)
    module.configure_model()
    made.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    made.trainer.strategy.connect(module)
    made.trainer.strategy._lightning_module = module
    made.prepare("fit", module)
    return made


def test_an_iterator_leaves_the_random_numbers_to_the_model(data):
    """An iterator draws a seed; from the common generator, going on would differ after each evaluation."""
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        assert len(list(loader)) == len(loader) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_sent_rows_and_no_trainer(data):
    loader = data.train_dataloader()
    sent = pickle.dumps((loader.dataset, loader.collate_fn))
    assert b"rainer" not in sent
    rows, collate = pickle.loads(sent)
    indices = [3, ~1]
    found, expected = collate(rows[indices]), loader.collate_fn(loader.dataset[indices])
    assert found.indices.tolist() == expected.indices.tolist() == [3, -1]
    assert torch.equal(found.input_ids, expected.input_ids)


def test_some_batches_to_overfit_are_the_first_rows_in_whole_batches(tiny_llama, tmp_path):
    seen, _, _ = fit("dpo", tiny_llama, tmp_path, batch_size=3, overfit_batches=2, max_epochs=2)
    assert seen.rows == [[0, 1, 2], [3, 4, 5]] * 2
    assert seen.held_out == [[0, 1, 2], [3, 4]] * 2


@pytest.mark.parametrize("data", PAIRINGS.values())
@pytest.mark.parametrize(("module_type", "right"), PAIRINGS.items())
def test_a_module_takes_its_own_data_module_and_the_fix_names_it(module_type, right, data):
    module = module_type.__new__(module_type)
    if data is right:
        data().check_module(module)
        return
    with pytest.raises(UserError) as caught:
        data().check_module(module)
    other = next(owner.__name__ for owner, own in PAIRINGS.items() if own is data)
    assert caught.value.code == ExitCode.CONFIG
    assert f"--data {right.__name__}" in caught.value.fix
    assert data.__name__ not in caught.value.fix
    assert other not in caught.value.fix
