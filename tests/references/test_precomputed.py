"""`Precomputed` says what the live reference says, costs a step next to nothing, and needs no second model."""

import contextlib
import random
from pathlib import Path

import pytest
import torch
from support import short_runs, tiny_models
from support.command_line import watch_loading
from support.precomputed import data, files, looked_up

from dpo_lightning.data.collate import Padded
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import token_logps
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import FrozenCopy, precomputed
from dpo_lightning.references.precomputed import HALF_TOLERANCE, Precomputed
from dpo_lightning.references.stored_values import StoredValues
from dpo_lightning.references.table_file import read, write
from dpo_lightning.references.token_table import TokenTable

pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"collator": Padded()}, {"batch_size": 5}, {"max_tokens": 200}])
def test_it_says_what_a_live_reference_says(kind, options, file, tiny_llama, tiny_gpt2):
    """Computed in some batches, asked in others: shuffled, of other sizes and layouts."""
    folder = {"llama": tiny_llama, "gpt2": tiny_gpt2}[kind]
    live = short_runs.ready(folder, FrozenCopy())
    made = looked_up(folder, file, **options)
    rows = data(file)
    rows.prepare("fit", made)
    order = list(range(len(rows.encoded["train"])))
    random.Random(1).shuffle(order)
    layouts = [Padded(), Padded(side="left")]
    if made.takes_trees():
        rows.choose_collator(True)
        layouts.append(rows.collator)
    for size in (1, 4, len(order)):
        for layout in layouts:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                batch = layout.collate([rows.encoded["train"][index] for index in part], part)
                found, expected = made.reference(made.policy, batch), live.reference(live.policy, batch)
                torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=1e-4)
                assert torch.equal(found.lengths, expected.lengths)


@pytest.mark.parametrize("lora", [None, Lora(r=2, lora_dropout=0.5)])
def test_a_run_is_the_run_with_a_live_reference(lora, tiny_llama, file, tmp_path):
    """Losses, gradients and so weights; train and eval rows are told apart."""
    held_out = short_runs.write_pairs(tmp_path / "eval.jsonl", rows=3, prompt="Another question")
    ends = []
    for name, reference in (("live", None), ("file", Precomputed()), ("again", Precomputed())):
        torch.manual_seed(0)
        made = short_runs.module(tiny_llama, reference, lora=lora)
        rows = data(file, eval=str(held_out))
        trainer = short_runs.fit(made, file, tmp_path / name, steps=6, data=rows, enable_checkpointing=False)
        ends.append((made, {key: float(value) for key, value in trainer.callback_metrics.items()}))
    (live, expected), *others = ends
    assert "eval/loss" in expected
    for made, metrics in others:
        assert metrics == pytest.approx(expected, abs=1e-4)
        for left, right in zip(made.policy.parameters(), live.policy.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert len(files()) == 1


def test_the_gradients_of_a_step_are_equal(tiny_llama, file):
    gradients = []
    for made in (short_runs.ready(tiny_llama), looked_up(tiny_llama, file)):
        made.compare(short_runs.batch(made, file))[0].losses.mean().backward()
        gradients.append([value.grad for value in made.policy.parameters()])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-7)


def test_the_longest_pairs_are_scored_first(tiny_llama, file, monkeypatch):
    lengths, real = [], precomputed.score_rows

    def watched(model, head, layout, rows, run):
        lengths.append(max(row.length for row in rows))
        return real(model, head, layout, rows, run)

    monkeypatch.setattr(precomputed, "score_rows", watched)
    looked_up(tiny_llama, file)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_dropout_is_off_in_the_pass(file, tmp_path):
    """A model whose every dropout is 0.5 gives what it gives with none."""
    values = []
    for name, dropout in (("with", 0.5), ("without", 0.0)):
        folder = tiny_models.save(tmp_path / name, tiny_models.make_gpt2(dropout=dropout), tiny_models.make_tokenizer())
        made = looked_up(folder, file, Precomputed(path=f"{name}.safetensors"))
        assert made.policy.training
        other = looked_up(tmp_path / "with", file, Precomputed(path=f"{name}-other.safetensors", model=str(folder)))
        assert torch.equal(other.reference._answers["train"].sums, made.reference._answers["train"].sums)
        values.append(read(Path(f"{name}.safetensors"))[1].values)
    assert torch.equal(*values)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_in_half_precision_the_self_check_says_how_far_it_is(precision, tiny_llama, file, tmp_path, capsys):
    """Computed in batches of other shapes than the first one of the run."""
    for size in (1, 2):
        rows = data(file, batch_size=size, collator=Padded() if size == 1 else None)
        options = {"enable_checkpointing": False, "precision": precision}
        made = short_runs.module(tiny_llama, Precomputed(path="half.safetensors"))
        short_runs.fit(made, file, tmp_path / str(size), steps=1, data=rows, **options)
    told = capsys.readouterr().out
    assert "in half precision, sums of other batches differ by up to about 1 nat" in told
    assert told.count("self-check: passed (starting loss 0.69") == 2
    assert "margins within" in told
    assert made.reference.start_tolerance == HALF_TOLERANCE


def test_a_start_that_is_not_near_is_named(tiny_llama, file, tmp_path):
    """Values that the policy does not give: whole, with a checksum, and yet another reference's."""
    path = tmp_path / "ref.safetensors"
    looked_up(tiny_llama, file, Precomputed(path=str(path)))
    provenance, table = read(path)
    for off, said in ((0.01, "nats from the reference"), (1.0, "the starting loss is")):
        draw = torch.Generator().manual_seed(0)
        noise = off * torch.rand(len(table.values), generator=draw)
        write(path, [TokenTable(table.keys, table.offsets, StoredValues(table.values + noise))], provenance)
        with pytest.raises(UserError, match=said) as raised:
            short_runs.fit(
                short_runs.module(tiny_llama, Precomputed(path=str(path))), file, tmp_path / str(off), steps=1
            )
        assert raised.value.code == ExitCode.MODEL


@pytest.mark.parametrize(("off", "near"), [(2e-5, True), (3e-4, False)])
def test_a_start_is_near_within_1e_5_of_sums_and_lengths(off, near, tiny_llama, file, tmp_path):
    """Each token moved by the same: about 6 nats and itself make 7e-5 per token the most that passes in float32."""
    path = tmp_path / "ref.safetensors"
    looked_up(tiny_llama, file, Precomputed(path=str(path)))
    provenance, table = read(path)
    assert -7 < float(table.values.mean()) < -5
    write(path, [TokenTable(table.keys, table.offsets, StoredValues(table.values + off))], provenance)
    made = short_runs.module(tiny_llama, Precomputed(path=str(path)))
    with contextlib.nullcontext() if near else pytest.raises(UserError, match="nats from the reference"):
        short_runs.fit(made, file, tmp_path, steps=1)


def test_a_filler_is_finite_and_other_rows_are_no_number(tiny_llama, file):
    made = looked_up(tiny_llama, file)
    rows = data(file)
    rows.prepare("fit", made)
    encoded = rows.encoded["train"]
    sums = made.reference(made.policy, Padded().collate([encoded[4], encoded[5]], [4, -1])).sums
    assert sums.isfinite().all()
    assert sums[0] == made.reference._answers["train"].sums[8]
    for other, chosen in ((7, False), (0, True)):
        sums = made.reference(made.policy, Padded().collate([encoded[4], encoded[5]], [4, other])).sums
        assert sums.isnan().tolist() == [False, chosen, False, True]  # where the answers differ in length


def test_a_step_does_not_ask_the_host(tiny_llama, file):
    """Tensors without values tell: whatever waits for one raises."""
    made = looked_up(tiny_llama, file)
    batch = short_runs.batch(made, file)
    moved = {name: part.to("meta") for name, part in batch._asdict().items() if isinstance(part, torch.Tensor)}
    found = made.reference(made.policy, batch._replace(**moved))
    assert found.sums.device.type == "meta"
    assert found.sums.shape == (batch.num_sequences,)


def test_nothing_of_it_is_trained_saved_or_sent(tiny_llama, file):
    made = looked_up(tiny_llama, file)
    assert not [*made.reference.parameters(), *made.reference.buffers()]
    assert {name.partition(".")[0] for name in made.state_dict()} == {"policy"}


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_there_is_a_model_to_ask_only_below_a_new_adapter(lora, tiny_llama, file):
    made = looked_up(tiny_llama, file, lora=lora)
    assert made.reference.has_model == (lora is not None)
    if lora is None:
        with pytest.raises(UserError, match="has log-probabilities and no model"), made.reference.as_model(None):
            pass
    else:
        short_runs.take_steps(made, short_runs.batch(made, file), 2)
        batch = short_runs.batch(made, file)
        with torch.no_grad(), made.reference.as_model(made.policy) as base:
            found = token_logps(base, batch)
        expected = token_logps(CausalLM(str(tiny_llama)).build(), batch)
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


def test_another_model_is_not_loaded_once_the_file_is_there(tiny_llama, file, tmp_path, monkeypatch):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    live, loads = short_runs.ready(tiny_llama, FrozenCopy(path=str(other))), watch_loading(monkeypatch)

    def models():
        count = loads.count("AutoModelForCausalLM")
        loads.clear()
        return count

    first = looked_up(tiny_llama, file, Precomputed(path="ref.safetensors", model=str(other)))
    assert models() == 2
    found = looked_up(tiny_llama, file, Precomputed(path="ref.safetensors", model=str(other)))
    assert models() == 1
    batch = short_runs.batch(found, file)
    expected = live.reference(live.policy, batch).sums
    torch.testing.assert_close(found.reference(found.policy, batch).sums, expected, rtol=1e-5, atol=1e-4)
    assert not found.reference.equals_start
    with pytest.raises(UserError, match="weights: the file has"):
        looked_up(tiny_llama, file, Precomputed(path="ref.safetensors"))
    other.rename(tmp_path / "gone")
    kept = looked_up(tiny_llama, file, Precomputed(path="ref.safetensors", model=str(other)))
    assert kept.reference.digest(kept.policy) == first.reference.digest(first.policy)
    with pytest.raises(UserError, match="the model folder does not exist"):
        looked_up(tiny_llama, file, Precomputed(model=str(other)))


def test_another_model_with_another_tokenizer_is_refused(tiny_llama, file, tmp_path):
    """Before a file is written, under the option that names it."""
    words = tiny_models.make_chat_tokenizer()
    words.add_tokens(["<extra>"])
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), words)
    with pytest.raises(UserError, match=r"another tokenizer than the policy at model\.reference\.model\n") as raised:
        looked_up(tiny_llama, file, Precomputed(path="ref.safetensors", model=str(other)))
    assert raised.value.code == ExitCode.MODEL
    assert not Path("ref.safetensors").exists()
