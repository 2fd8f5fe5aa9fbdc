"""Training on unpaired rows: exact over micro-batches, layouts and ranks, as the formulas and TRL have it."""

import math
from dataclasses import replace

import pytest
import torch
from support import kto_runs, whole_runs
from support.kto_runs import KTO, assert_same_weights, files, kto, labelled_rows, losses, train
from support.two_ranks import run_on_two_ranks

from dpo_lightning import DPOModule, UnpairedDataModule
from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import APOZeroUnpairedLoss, BCOLoss, KTOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import FrozenCopy


@pytest.fixture(scope="module")
def start(tiny_llama):
    """The weights of the model folder."""
    return dict(CausalLM(str(tiny_llama)).build().requires_grad_(False).named_parameters())


@pytest.mark.parametrize(("size", "accumulate"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("name", ["kto", "apo", "bco"])
def test_training_as_the_formula_does(name, size, accumulate, tiny_llama, tmp_path, start):
    """9 rows, 4 a step; plain PyTorch on single sequences, with KTO's z of each micro-batch."""
    module, memory, data, _ = train(tiny_llama, tmp_path, losses()[name], size, accumulate)
    means, expected = kto_runs.plain_run(tiny_llama, data.encoded["train"], name, size, 4)
    assert memory.curve("train/loss") == pytest.approx(means, rel=1e-5)
    assert_same_weights(whole_runs.weights(module), expected, start)


def test_ktos_divergence_moves_what_is_trained(tiny_llama, tmp_path):
    """Its z is not 0 all the time, or the tests above would tell nothing of it."""
    _, memory, _, _ = train(tiny_llama, tmp_path, KTO, 2, 2, max_epochs=2)
    assert max(memory.curve("train/kl")) > 0.05
    assert memory.curve("train/kl")[0] == 0


@pytest.mark.parametrize("name", ["apo", "bco"])
def test_a_step_does_not_depend_on_how_it_is_cut(name, tiny_llama, tmp_path, start):
    """4 x 1 = 1 x 4, with a short last window; not for KTO, whose z is that of a micro-batch."""
    one, all_, other = (
        train(tiny_llama, tmp_path, losses()[name if k < 2 else "kto"], *cut, max_epochs=2)
        for k, cut in enumerate([(1, 4), (4, 1), (1, 4)])
    )
    assert_same_weights(whole_runs.weights(one[0]), whole_runs.weights(all_[0]), start)
    for step, metrics in one[1].steps.items():
        assert metrics == pytest.approx(all_[1].steps[step], rel=1e-5, abs=1e-4)
    assert "train/kl" not in one[1].steps[1]
    assert "train/kl" in other[1].steps[1]


def test_two_ranks_are_one(tiny_llama, tmp_path, start):
    """A row per micro-batch and rank, so that a rank has one kind only: weights and metrics are one process's."""
    both = run_on_two_ranks(kto_runs.__file__, tiny_llama, tmp_path)
    for name, loss in losses().items():
        one, two = kto_runs.odd_run(loss, tiny_llama, tmp_path / "one" / name, ranks=1), both[name]
        assert_same_weights(two["weights"], one["weights"], start)
        assert two["logged"].keys() == one["logged"].keys() == {1, 2, 3, 4, 5, 6}
        for step, metrics in one["logged"].items():
            assert two["logged"][step] == pytest.approx(metrics, rel=1e-5, abs=1e-4)
            assert all(map(math.isfinite, metrics.values()))
        torch.testing.assert_close(two["mean"], one["mean"], rtol=1e-5, atol=1e-6)
        assert bool(one["mean"]) == (name == "bco")


@pytest.mark.parametrize("layout", [PackedSharedPrefix(), SharedPrefix(), Packed(), Padded(side="left")])
@pytest.mark.parametrize("name", ["kto", "apo"])
def test_layouts_agree(name, layout, tiny_llama, tmp_path, start):
    expected, before, _, _ = train(tiny_llama, tmp_path, losses()[name], 3, collator=Padded())
    found, after, _, _ = train(tiny_llama, tmp_path, losses()[name], 3, collator=layout)
    assert_same_weights(whole_runs.weights(found), whole_runs.weights(expected), start)
    for step, metrics in before.steps.items():
        assert after.steps[step] == pytest.approx(metrics, rel=1e-5, abs=1e-4)


def test_a_row_and_its_mismatched_answer_share_the_prompt(tiny_llama, tmp_path):
    """2B sequences, own answers first; a tree of two branches each."""
    data = UnpairedDataModule(*files(tmp_path), batch_size=2, max_length=64, collator=PackedSharedPrefix())
    data.prepare("fit", kto(tiny_llama))
    rows = data.encoded["train"]
    batch = PackedSharedPrefix().collate(rows[:3], [0, 1, -1])
    assert batch.num_sequences == 6
    assert [tree.numbers for tree in batch.trees] == [(0, 3), (1, 4), (2, 5)]
    assert all(tree.trunk >= len(row.prompt_ids) for tree, row in zip(batch.trees, rows, strict=False))
    assert batch.weights.tolist() == [1, 1, 0]
    assert batch.columns["good"].tolist() == [True, True, False]
    data.prepare("fit", kto(tiny_llama, APOZeroUnpairedLoss()))
    alone = PackedSharedPrefix().collate(data.encoded["train"][:3], [0, 1, 2])
    assert alone.num_sequences == 3
    assert [tree.numbers for tree in alone.trees] == [(0,), (1,), (2,)]
    assert alone.input_ids.numel() < batch.input_ids.numel()


# What a micro-batch holds


@pytest.mark.parametrize("name", ["kto", "apo", "bco"])
@pytest.mark.parametrize("kind", [True, False])
def test_a_micro_batch_of_one_kind(name, kind, tiny_llama, tmp_path):
    """No measure is NaN: what no answer told is left out, and comes when there is one."""
    rows = [row for row in labelled_rows(24) if row["label"] is kind][:4]
    rows += [row for row in labelled_rows(24) if row["label"] is not kind][:4]
    path = whole_runs.write_rows(tmp_path, "sorted", rows)
    module = kto(tiny_llama, losses()[name])
    memory, _ = whole_runs.fit(
        module, UnpairedDataModule(path, batch_size=4, max_length=64, shuffle=False), tmp_path, max_steps=2
    )
    there, absent = ("chosen", "rejected") if kind else ("rejected", "chosen")
    assert f"train/rewards/{there}" in memory.steps[1]
    assert {f"train/rewards/{absent}", f"train/logps/{absent}", "train/rewards/margins"}.isdisjoint(memory.steps[1])
    assert f"train/rewards/{absent}" in memory.steps[2]
    assert [memory.steps[step]["train/desirable"] for step in (1, 2)] == [kind, not kind]
    assert all(math.isfinite(value) for metrics in memory.steps.values() for value in metrics.values())
    assert all(value.isfinite().all() for value in whole_runs.weights(module).values())


def test_a_weight_of_zero_leaves_a_kind_out(tiny_llama, tmp_path, start):
    """With no weight on bad answers, only good ones move anything: what stands in their rows is no matter."""
    ends = []
    for text in ("no", "something else"):
        rows = [
            row | ({} if row["label"] else {"completion": f" {text} {i}"}) for i, row in enumerate(labelled_rows(8))
        ]
        path = whole_runs.write_rows(tmp_path, "rows", rows)
        module = kto(tiny_llama, APOZeroUnpairedLoss(0.3, undesirable_weight=0.0))
        whole_runs.fit(module, UnpairedDataModule(path, batch_size=4, max_length=64, shuffle=False), tmp_path)
        ends.append(whole_runs.weights(module))
    assert_same_weights(*ends, start)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_a_row_of_weight_two_is_two_rows(name, tiny_llama, tmp_path, start):
    """And one of weight 0 is none: in the loss, in z and in the mean of rewards."""
    data = UnpairedDataModule(*files(tmp_path), batch_size=4, max_length=64, shuffle=False)
    data.prepare("fit", kto(tiny_llama, losses()[name]))
    rows = data.encoded["train"][:4]
    ends = []
    repeated = [rows[0], rows[0], rows[1], rows[3]]
    weighed = [replace(row, weight=weight) for row, weight in zip(rows, (2.0, 1.0, 0.0, 1.0), strict=True)]
    for given in (repeated, weighed):
        module = kto(tiny_llama, losses()[name])
        data.encoded["train"] = given
        whole_runs.fit(module, data, tmp_path, max_epochs=3)
        ends.append((whole_runs.weights(module), module.loss_state))
    assert_same_weights(ends[0][0], ends[1][0], start)
    if name == "bco":
        assert float(ends[0][1].value) == pytest.approx(float(ends[1][1].value), rel=1e-4)
        assert float(ends[0][1].value) != 0


# The start, and what is refused


@pytest.mark.parametrize("lora", [None, Lora(r=2, lora_dropout=0.5)])
@pytest.mark.parametrize(
    ("loss", "value"), [(KTOLoss(), 0.5), (KTOLoss(0.1, 0.5, 0.5), 0.25), (BCOLoss(), math.log(2))]
)
def test_a_sound_run_passes_the_self_check(lora, loss, value, tiny_gpt2, tmp_path, capsys):
    options = {"policy": CausalLM(str(tiny_gpt2), lora=lora)}
    train(tiny_gpt2, tmp_path, loss, module_options=options, max_steps=1)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("self-check")]
    assert told == [f"self-check: passed (starting loss {value:.6f}, margins 0, tokens sound)"]


class OtherStart(FrozenCopy):
    """A copy of something else that takes itself for the policy's start."""

    def bind(self, policy, builder):
        super().bind(policy, builder)
        with torch.no_grad():
            next(iter(self._held[0].parameters())).add_(0.05)


class OtherPrompt(Padded):
    """A layout that loses the end of the prompt before a mismatched answer."""

    def tensors(self, groups):
        return super().tensors(
            [[own, own._replace(number=other.number)] for own, other in groups][:1]
            + [[own, other._replace(ids=other.ids[3:], scored=other.scored[3:])] for own, other in groups[1:]]
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"module_options": {"reference": OtherStart()}}, "the starting loss is"),
        ({"collator": OtherPrompt()}, "the answers to a prompt follow different prompt tokens"),
    ],
)
def test_an_unsound_run_is_found(options, said, tiny_llama, tmp_path):
    with pytest.raises(UserError, match=said):
        train(tiny_llama, tmp_path, KTO, max_steps=1, **options)


def test_rows_of_another_kind_are_refused(tiny_llama, tmp_path):
    data = UnpairedDataModule(*files(tmp_path))
    with pytest.raises(UserError, match="DPOModule takes PreferenceDataModule") as caught:
        data.prepare("fit", DPOModule(CausalLM(str(tiny_llama))))
    assert caught.value.code == ExitCode.CONFIG


# TRL


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (KTO, {"loss_type": "kto"}),
        (APOZeroUnpairedLoss(0.3, 1.5, 0.5), {"loss_type": "apo_zero_unpaired"}),
    ],
    ids=["kto", "apo"],
)
def test_training_as_trl_does(loss, options, tiny_gpt2, tmp_path):
    """All rows a step, where its mismatched answers are ours: losses within 1e-5 and measures within 1e-4, 8 steps."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    rows, steps = labelled_rows(6), 8
    data = UnpairedDataModule(
        whole_runs.write_rows(tmp_path, "train", rows), batch_size=6, max_length=128, shuffle=False
    )
    adamw = {"optimizer": whole_runs.PLAIN_ADAMW, "learning_rate": whole_runs.LEARNING_RATE}
    memory, _ = whole_runs.fit(kto(tiny_gpt2, loss, **adamw), data, tmp_path, max_epochs=steps)
    config = KTOConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=6,
        max_steps=steps,
        learning_rate=whole_runs.LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        max_length=128,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        **options,
    )
    trainer = KTOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_gpt2),
    )
    for mine, other in zip(data.encoded["train"], trainer.train_dataset, strict=True):
        assert list(mine.prompt_ids) == other["prompt_ids"]
        assert list(mine.completion.ids) == other["completion_ids"]
        assert mine.mismatched is None or list(mine.mismatched.ids) == other["KL_completion_ids"]
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    expected = [entry["loss"] for entry in history]
    assert memory.curve("train/loss") == pytest.approx(expected, rel=0, abs=1e-5)
    assert abs(expected[-1] - expected[0]) > 0.01
    names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"]
    for name in names + (["kl"] if loss.needs_kl else []):
        assert memory.curve(f"train/{name}") == pytest.approx([entry[name] for entry in history], abs=1e-4), name
    assert not loss.needs_kl or max(memory.curve("train/kl")) > 0.01
