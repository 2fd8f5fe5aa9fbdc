"""Every loss on models: chunked logits against a whole vocabulary, and prompts that have no part in it."""

from dataclasses import replace

import pytest
import torch
from support.batch_layouts import answer, pair
from support.loss_cases import FAMILY
from support.model_families import PAIRS, VOCAB, make
from torch import nn

from dpo_lightning import logps
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.logps import compute_scored, score
from dpo_lightning.losses import CPOLoss, DPOLoss, IPOLoss, LDDPOLoss, LNDPOLoss, ORPOLoss, SFTLoss, SimPOLoss
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.types import PairLogps, SequenceLogps

ROWS = [replace(row, margin=0.5 + k) for k, row in enumerate(PAIRS)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def models(request):
    """A policy and another model as its reference; one of them caps its logits."""
    policy, reference = make(request.param), make(request.param)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(3)
        for value in reference.parameters():
            value += 0.05 * torch.randn(value.shape, generator=draw)
    for model in (policy, reference):
        assert install(model) == ""
    return policy, reference.requires_grad_(False)


def naive(policy, reference, rows):
    """Pairs from one unpadded call for each answer, and whole distributions over the vocabulary."""
    found = {"policy": [], "reference": [], "collisions": [], "kl": []}
    for side in (0, 1):
        for row in rows:
            said, start = row.answers[side], len(row.prompt_ids)
            ids = torch.tensor([[*row.prompt_ids, *said.ids]])
            mine, theirs = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (policy, reference))
            places = [start + k - 1 for k, scored in enumerate(said.scored) if scored and start + k]
            targets = ids[0, torch.tensor(places) + 1]
            rowed = torch.arange(len(places))
            found["policy"].append(mine[places][rowed, targets])
            found["reference"].append(theirs[places][rowed, targets])
            found["collisions"].append(mine[places].detach().exp().square().sum(-1).log().sum())
            found["kl"].append((theirs[places].exp() * (theirs[places] - mine[places])).sum())

    def of(tokens, **others):
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        lengths = torch.tensor([float(len(each)) for each in tokens])
        return SequenceLogps(torch.stack([each.sum() for each in tokens]), lengths, padded, **others)

    sums = {name: torch.stack(found[name]) for name in ("collisions", "kl")}
    return PairLogps.of(of(found["policy"], **sums), of(found["reference"]))


def scored(policy, reference, rows, statistics, head=True):
    """The same as a step has it: a batch of trees, and logits a few at a time."""
    batch = PackedSharedPrefix().collate(rows, range(len(rows)))
    heads = [find_head(model) if head else None for model in (policy, reference)]
    others = compute_scored(reference, batch, heads[1]) if "kl" in statistics else None
    own = [name for name in statistics if name == "tokens"]
    return PairLogps.of(
        score(policy, batch, heads[0], statistics, others), score(reference, batch, heads[1], own), batch
    )


@pytest.mark.parametrize("name", FAMILY)
def test_logits_in_chunks_are_the_whole_vocabulary(models, name, monkeypatch):
    """Losses, rewards and the gradients of every weight, with the head apart and without it (trap 38)."""
    monkeypatch.setattr(logps, "CHUNK", 5 * VOCAB)
    policy, reference = models
    loss, weights = FAMILY[name], [value for value in policy.parameters() if value.requires_grad]
    margins = torch.tensor([row.margin for row in ROWS])
    results = []
    for pairs in (
        naive(policy, reference, ROWS)._replace(given_margins=margins),
        scored(policy, reference, ROWS, loss.statistics),
        scored(policy, reference, ROWS, loss.statistics, head=False),
    ):
        output = loss(pairs)
        gradients = torch.autograd.grad(output.losses.mean(), weights, allow_unused=True)
        results.append((*output, *(torch.zeros(()) if g is None else g for g in gradients)))
    scale = max(float(g.abs().max()) for g in results[0][3:])
    assert scale > 1e-5
    for other in results[1:]:
        for one, two in zip(results[0][:3], other[:3], strict=True):
            torch.testing.assert_close(one, two, rtol=2e-4, atol=1e-5)
        for one, two in zip(results[0][3:], other[3:], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-4 * scale)


def test_a_divergence_of_a_model_from_itself_is_nothing(models):
    pairs = scored(models[0], models[0], ROWS, {"kl", "collisions", "tokens"})
    assert pairs.kl.abs().max() < 1e-5
    assert (pairs.collisions < 0).all()
    assert torch.equal(pairs.policy_tokens, pairs.reference_tokens)


def moved(row):
    """The last token of the prompt is scored as the first of both answers."""
    last = row.prompt_ids[-1]
    return pair(row.prompt_ids[:-1], *(answer(last, *said.ids, scored=[True, *said.scored]) for said in row.answers))


def losses(models, loss, rows):
    """Losses per pair."""
    with torch.no_grad():
        return loss(scored(*models, rows, loss.statistics)).losses


def test_a_prompt_that_is_scored_cancels_in_dpo_alone(models):
    """The same tokens on both sides: they cancel in sums and not in means or likelihoods (trap 14)."""
    rows = [ROWS[0], ROWS[2]]  # a prompt of one token has nothing that predicts it
    for loss in (DPOLoss(), IPOLoss(normalization="sum"), LDDPOLoss(alpha=0.3)):
        torch.testing.assert_close(
            losses(models, loss, rows), losses(models, loss, [*map(moved, rows)]), rtol=1e-3, atol=1e-4
        )
    for loss in (SimPOLoss(), IPOLoss(), LNDPOLoss(), ORPOLoss(), SFTLoss(), SFTLoss("sequence_sum")):
        apart = losses(models, loss, rows) - losses(models, loss, [*map(moved, rows)])
        assert (apart.abs() > 1e-4).all(), loss


class Disturbed(nn.Module):
    """A model whose logits are other ones up to a place."""

    def __init__(self, model, until):
        super().__init__()
        self.model, self.until = model, until

    def forward(self, input_ids, logits_to_keep, **others):
        output = self.model(input_ids=input_ids, **others)
        noise = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(0))
        early = (torch.arange(input_ids.shape[1]) < self.until)[None, :, None]
        output.logits = torch.where(early, output.logits + 9 * noise, output.logits)[:, logits_to_keep]
        return output


@pytest.mark.parametrize("loss", [SFTLoss(), SFTLoss("sequence_sum"), CPOLoss(), ORPOLoss(), SimPOLoss()])
def test_what_a_model_makes_of_the_prompt_has_no_part(models, loss):
    """TRL's ORPO learns the prompt as well: here its logits may be anything but for the last (trap 15)."""
    row = ROWS[0]

    def value(until):
        with torch.no_grad():
            logps = score(Disturbed(models[0], until), Padded().collate([row], [0]))
        return float(loss(PairLogps.of(logps, logps._replace(sums=torch.zeros(2)))).losses)

    last = len(row.prompt_ids) - 1
    assert value(last) == value(0)
    assert value(last + 1) != value(0)


@pytest.mark.parametrize("prompt", [[5], [5, 6, 7, 8, 9, 10, 11, 12, 13]])
def test_length_desensitising_counts_from_the_answer(models, prompt):
    """4 and 2 tokens, alpha 0: exactly 2 of the chosen answer's, however long the prompt is (trap 17)."""
    policy, reference = models
    row = pair(prompt, [21, 22, 23, 0], [31, 0])
    with torch.no_grad():
        tokens = [
            model(input_ids=torch.tensor([[*prompt, *row.chosen.ids]])).logits[0].log_softmax(-1)
            for model in (policy, reference)
        ]
        output = LDDPOLoss(1.0, 0.0)(scored(policy, reference, [row], {"tokens"}))
    at = len(prompt) - 1
    expected = sum(float(tokens[0][at + k, i] - tokens[1][at + k, i]) for k, i in enumerate((21, 22)))
    assert float(output.chosen_rewards) == pytest.approx(expected, abs=1e-4)
