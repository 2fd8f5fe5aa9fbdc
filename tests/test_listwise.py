"""Runs on ranked lists: pairs give DPO's run, layouts agree, the start is ln k!, and what is refused."""

import json
import math

import pytest
import torch
from lightning.pytorch import Trainer
from support import whole_runs
from support.batch_layouts import LAYOUTS, ORIGIN, answer, visible
from support.command_line import CONFIGS, ON_CPU, QUIET, run
from support.model_families import make

from dpo_lightning import PreferenceDataModule, RankedDataModule
from dpo_lightning.batches import Tree
from dpo_lightning.callbacks import PredictionWriter, RewardMargins
from dpo_lightning.callbacks.ranked_rewards import RankedRewards
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.data.kinds.ranked import EncodedRanked
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import PlackettLuceLoss
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import FrozenCopy
from dpo_lightning.types import RankedLogps

LISTS = [
    EncodedRanked(ORIGIN, [11, 12, 13, 14, 15, 16], (answer(21, 22, 23, 0), answer(31, 0), answer(21, 22, 0))),
    EncodedRanked(ORIGIN, [41], (answer(42, 0), answer(43, 44, 45, 46, 47, 0))),
    EncodedRanked(ORIGIN, [51, 52], (answer(53, 0), answer(0), answer(54, 55, 0), answer(53, 56, 57, 0))),
]


def logged(memory, name):
    return memory.curve(f"train/{name}")


# Batches


def test_all_answers_of_a_list_share_its_prompt_once():
    """By hand: list after list, best first, -1 behind the shorter list."""
    rows = [
        EncodedRanked(ORIGIN, [1, 2], (answer(3, 4), answer(5), answer(3, 6, 7)), weight=0.5),
        EncodedRanked(ORIGIN, [8], (answer(9), answer(10, 11))),
    ]
    batch = PackedSharedPrefix().collate(rows, [4, -1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 3, 6, 8, 10]]
    assert batch.trees == (Tree(0, 0, 2, (1, 0, 2), (0, 1, 2)), Tree(0, 5, 1, (0, 1), (3, 4)))
    assert batch.targets.tolist() == [3, 4, 5, 3, 6, 7, 9, 10, 11]
    assert batch.sequence_ids.tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4]
    assert batch.owners.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert batch.by_row(torch.arange(1, 6)).tolist() == [[1, 2, 3], [4, 5, 0]]
    assert (batch.num_sequences, batch.indices.tolist(), batch.weights.tolist()) == (5, [4, -1], [0.5, 0.0])
    assert Padded().collate(rows, [0, 1]).input_ids.tolist()[2] == [1, 2, 3, 6, 7]
    assert [PackedSharedPrefix().tokens(row) for row in rows] == [5, 2]
    assert visible(batch).sum() > 0


def values_and_gradients(model, reference, layout):
    model.zero_grad(set_to_none=True)
    batch = layout.collate(LISTS, range(len(LISTS)))
    with torch.no_grad():
        others = score(reference, batch)
    logps = RankedLogps.of(score(model, batch), others, batch)
    losses = PlackettLuceLoss(0.5)(logps).losses
    losses.mean().backward()
    return logps.detach(), losses.detach(), torch.cat([value.grad.flatten() for value in model.parameters()])


def test_layouts_agree():
    """Log-probabilities by list and rank, losses and gradients."""
    model, reference = make("llama"), make("llama", intermediate_size=32)
    assert install(model) == install(reference) == ""
    expected = values_and_gradients(model, reference, Padded())
    assert expected[0].mask.sum(1).tolist() == [3, 2, 4]
    assert expected[0].lengths.tolist() == [[4, 2, 3, 0], [2, 6, 0, 0], [2, 1, 3, 4]]
    for name, layout in LAYOUTS.items():
        logps, losses, gradients = values_and_gradients(model, reference, layout)
        for one, other in zip(logps, expected[0], strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5, msg=name)
        torch.testing.assert_close(losses, expected[1], atol=2e-5, rtol=1e-5, msg=name)
        torch.testing.assert_close(gradients, expected[2], atol=1e-5 * float(expected[2].abs().max()), rtol=1e-4)


# Whole runs


def test_lists_of_two_are_a_run_of_dpo(tiny_llama, tmp_path):
    """The same rows as pairs and as lists, eight optimizer steps: losses, rewards and weights."""
    rows = whole_runs.preference_rows(8)
    pairs = whole_runs.write_rows(tmp_path, "pairs", rows)
    ranked = whole_runs.write_rows(
        tmp_path, "ranked", [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]]} for r in rows]
    )
    options = {"batch_size": 2, "max_length": 64}
    plain, plain_weights = whole_runs.dpo(tiny_llama), None
    listed = whole_runs.listwise(tiny_llama)
    memory, _ = whole_runs.fit(plain, PreferenceDataModule(pairs, **options), tmp_path, max_epochs=2)
    plain_weights = whole_runs.weights(plain)
    other, _ = whole_runs.fit(listed, RankedDataModule(ranked, **options), tmp_path, max_epochs=2)
    assert len(logged(memory, "loss")) == 8
    assert logged(other, "loss") == pytest.approx(logged(memory, "loss"), rel=1e-5)
    assert logged(other, "rewards/best") == pytest.approx(logged(memory, "rewards/chosen"), rel=1e-4, abs=1e-5)
    assert logged(other, "rewards/accuracies") == logged(memory, "rewards/accuracies")
    assert logged(memory, "loss")[-1] < 0.6
    for name, value in whole_runs.weights(listed).items():
        torch.testing.assert_close(value, plain_weights[name], rtol=1e-5, atol=2e-5)


def data_of(folder, count=6, **options):
    files = [
        whole_runs.write_rows(folder, name, whole_runs.ranked_rows(count, i))
        for name, i in (("train", 0), ("eval", 50))
    ]
    return RankedDataModule(*files, batch_size=3, max_length=64, shuffle=False, **options)


@pytest.mark.parametrize("policy", [{}, {"lora": Lora(r=2)}])
def test_the_start_is_the_log_of_all_orders(policy, tiny_llama, tmp_path, capsys):
    """Lists of 2, 3 and 4 answers: the mean of ln 2, ln 6 and ln 24; a frozen copy or the adapter switched off."""
    start = sum(math.lgamma(k + 1) for k in (2, 3, 4)) / 3
    made = whole_runs.listwise(tiny_llama, policy=CausalLM(str(tiny_llama), **policy))
    memory, _ = whole_runs.fit(made, data_of(tmp_path), tmp_path)
    assert logged(memory, "loss")[0] == pytest.approx(start, rel=1e-6)
    assert logged(memory, "rewards/ties")[0] == 1
    told = capsys.readouterr().out
    assert f"self-check: passed (starting loss {start:.6f}, margins 0, tokens sound)" in told
    assert ("AdapterDisabled" if policy else "FrozenCopy") in told


class Shifted(FrozenCopy):
    """A reference that is off by a nat for the second answer of each list."""

    def forward(self, policy, batch, rows="train", statistics=()):
        found = super().forward(policy, batch, rows, statistics)
        if "margins" in batch.columns:  # the anchor's texts
            return found
        return found._replace(sums=found.sums + (batch.owners[:, 1] == 1))


def test_a_start_that_is_off_is_refused(tiny_llama, tmp_path):
    with pytest.raises(UserError, match=r"the starting loss is .*equal log-probabilities give") as told:
        whole_runs.fit(whole_runs.listwise(tiny_llama, reference=Shifted()), data_of(tmp_path), tmp_path)
    assert told.value.code == ExitCode.MODEL


class OtherPrompt(PackedSharedPrefix):
    """A layout that gives the last answer of a list another prompt."""

    def collate(self, rows, indices):
        batch = Padded().collate(rows, indices)
        batch.input_ids[batch.num_sequences - 1, 1] += 1
        return batch


def test_answers_that_follow_different_prompts_are_refused(tiny_llama, tmp_path):
    with pytest.raises(UserError, match="the answers to a prompt follow different prompt tokens") as told:
        whole_runs.fit(whole_runs.listwise(tiny_llama), data_of(tmp_path, collator=OtherPrompt()), tmp_path)
    assert told.value.code == ExitCode.DATA


def test_a_token_budget_takes_lists(tiny_llama, tmp_path):
    """Every list once an epoch, whatever the number of its answers."""
    memory, trainer = whole_runs.fit(whole_runs.listwise(tiny_llama), data_of(tmp_path, max_tokens=128), tmp_path)
    assert trainer.global_step == len(logged(memory, "loss")) > 1


# Predictions


def test_predictions_have_a_number_per_answer(tiny_llama, tmp_path):
    """Lines in the order of the file, answers best first and without padding."""
    made, data = whole_runs.listwise(tiny_llama), data_of(tmp_path, 4)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=[PredictionWriter()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(made, datamodule=data, return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    rows = data.encoded["eval"]
    assert [line["line"] for line in lines] == [1, 2, 3, 4]
    assert [len(line["rewards"]) for line in lines] == [len(row.answers) for row in rows]
    assert all(line["logps"] == pytest.approx(line["reference_logps"]) for line in lines)
    assert set(lines[0]) == {"file", "line", "index", "loss", "rewards", "logps", "reference_logps"}
    for line, row in zip(lines, rows, strict=True):
        with torch.no_grad():
            plain = [whole_runs.plain_logps(made.policy, row.prompt_ids, own.ids).sum().item() for own in row.answers]
        assert line["logps"] == pytest.approx(plain, rel=1e-4)
        assert line["loss"] == pytest.approx(math.lgamma(len(row.answers) + 1), rel=1e-6)


# What is refused


def test_measures_of_the_other_kind_are_refused(tiny_llama, tmp_path):
    with pytest.raises(UserError, match="need pairs; this run has other rows") as told:
        whole_runs.fit(whole_runs.listwise(tiny_llama), data_of(tmp_path), tmp_path, callbacks=[RewardMargins()])
    assert told.value.code == ExitCode.CONFIG
    pairs = whole_runs.write_rows(tmp_path, "pairs", whole_runs.preference_rows(4))
    data = PreferenceDataModule(pairs, batch_size=2, max_length=64)
    with pytest.raises(UserError, match="RankedRewards needs ranked lists") as told:
        whole_runs.fit(whole_runs.dpo(tiny_llama), data, tmp_path, callbacks=[RankedRewards()])
    assert told.value.code == ExitCode.CONFIG


def test_a_loss_and_rows_of_pairs_are_refused_on_the_command_line(tiny_llama, tmp_path):
    """And the other way round: no loss of lists for pairs."""
    options = (*QUIET, *ON_CPU, "--model.policy.path", tiny_llama, "--output_dir", tmp_path / "run")
    for config, flags, part in (
        ("dpo-listwise.yaml", ("--model.loss", "DPOLoss"), "DPOLoss"),
        ("dpo.yaml", ("--model.loss", "PlackettLuceLoss"), "PlackettLuceLoss"),
        ("dpo-listwise.yaml", ("--data", "PreferenceDataModule"), "ListwiseDPOModule takes RankedDataModule"),
        ("dpo.yaml", ("--data", "RankedDataModule"), "DPOModule takes PreferenceDataModule"),
    ):
        ran = run("fit", "--config", CONFIGS / config, *options, *flags)
        assert ran.code == ExitCode.CONFIG
        assert part in ran.err
    assert not (tmp_path / "run").exists()
