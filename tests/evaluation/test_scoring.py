"""Log-probabilities and divergences of answers, against a direct computation from whole logits."""

import pytest
import torch
from support import tiny_models

from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.evaluation.passes import score_pairs
from dpo_lightning.evaluation.scoring import ModelPair, make_row
from dpo_lightning.evaluation.summary import summarize
from dpo_lightning.losses import CPOLoss, DPOLoss, IPOLoss, SimPOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model

LAYOUTS = [Padded(), Padded(side="left"), SharedPrefix(), Packed(), PackedSharedPrefix()]


def answer(*ids, unscored=0):
    return EncodedAnswer(list(ids), [place >= unscored for place in range(len(ids))])


ROWS = [
    EncodedPair(Origin("rows", 1), [5, 6, 7], (answer(8, 9, 10, 2), answer(11, 2))),
    EncodedPair(Origin("rows", 2), [12, 13], (answer(14, 2), answer(15, 16, 17, 18, 19, 2))),
    EncodedPair(Origin("rows", 3), [20, 21, 22, 23, 24], (answer(25, 26, 2, unscored=1), answer(25, 27, 28, 2))),
    *(EncodedPair(Origin("rows", 4 + k), [30 + k], (answer(40 + k, 2), answer(50, 51 + k, 2))) for k in range(5)),
]


def reload(folder):
    return CausalLM(str(folder)).build()


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    torch.manual_seed(7)
    return tiny_models.save(
        tmp_path_factory.mktemp("other"), tiny_models.make_llama(seed=7), tiny_models.make_chat_tokenizer()
    )


def directly(model, reference, row, place):
    """Sum of log-probabilities under both and of KL(model || reference), from the logits of one sequence."""
    ids = [*row.prompt_ids, *row.answers[place].ids]
    scored = [False] * len(row.prompt_ids) + list(row.answers[place].scored)
    with torch.no_grad():
        own, known = (each(torch.tensor([ids])).logits[0].double().log_softmax(-1) for each in (model, reference))
    sums = [0.0, 0.0, 0.0]
    for position in range(1, len(ids)):
        if scored[position]:
            p, q = own[position - 1], known[position - 1]
            sums[0] += float(p[ids[position]])
            sums[1] += float(q[ids[position]])
            sums[2] += float((p.exp() * (p - q)).sum())
    return sums


def score_all(pair, size):
    chosen, rejected = [], []
    for start in range(0, len(ROWS), size):
        scored = pair.score(pair.collate(ROWS[start : start + size]))
        table = torch.stack([scored.policy.sums, scored.reference.sums, scored.kl], 1)
        one, two = table.chunk(2)
        chosen += one.tolist()
        rejected += two.tolist()
    return torch.tensor([chosen, rejected], dtype=torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_scores_equal_a_direct_computation(tiny_llama, other, layout, size):
    pair = ModelPair(reload(tiny_llama), reload(other), given_collator=layout)
    direct = [[directly(reload(tiny_llama), reload(other), row, place) for row in ROWS] for place in (0, 1)]
    found, expected = score_all(pair, size), torch.tensor(direct, dtype=torch.float64)
    assert expected[..., 2].min() > 1e-3  # the models differ
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_base_below_an_adapter_is_the_reference(tiny_llama, tmp_path):
    """The same numbers as with the base loaded a second time, its head's adapter included."""
    builder = CausalLM(str(tiny_llama), lora=Lora(r=2, target_modules=["q_proj", "lm_head"]))
    model = builder.build()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    tmp_path.mkdir(exist_ok=True)
    save_model(model, builder.tokenizer(), tmp_path, str(tiny_llama))
    below = score_all(ModelPair(reload(tmp_path), below=True), 3)
    apart = score_all(ModelPair(reload(tmp_path), reload(tiny_llama)), 3)
    assert apart[..., 2].min() > 1e-3
    torch.testing.assert_close(below, apart, rtol=0, atol=1e-5)


def test_without_a_reference(tiny_llama, other):
    alone = ModelPair(reload(tiny_llama))
    scored = alone.score(alone.collate(ROWS))
    assert scored.reference is None
    assert scored.kl is None
    both = ModelPair(reload(tiny_llama), reload(other))
    torch.testing.assert_close(scored.policy.sums, both.score(both.collate(ROWS)).policy.sums, rtol=0, atol=1e-5)


def test_a_generated_answer_is_scored_whole(tiny_llama, other):
    pair = ModelPair(reload(tiny_llama), reload(other))
    row = make_row([5, 6, 7], [8, 9, 2])
    kl = pair.score(pair.collate([row, make_row([9], [2])])).kl
    assert kl[0].item() == pytest.approx(directly(reload(tiny_llama), reload(other), row, 0)[2], abs=1e-4)


def test_losses_are_ranked_by_the_same_quantity(tiny_llama, other):
    """The accuracy by implicit reward is about models and rows, and the same for each loss."""
    pair, found = ModelPair(reload(tiny_llama), reload(other)), {}
    for loss in (DPOLoss(), IPOLoss(), SimPOLoss(), CPOLoss()):
        items = list(score_pairs(pair, loss, ROWS, range(len(ROWS))).values())
        gains = [
            item["chosen_logps"] - item["reference_chosen_logps"]
            - item["rejected_logps"] + item["reference_rejected_logps"] for item in items
        ]  # fmt: skip
        measures, _ = summarize(items)
        assert measures["accuracy/reward"]["estimate"] == sum(gain > 0 for gain in gains) / len(ROWS)
        found[type(loss).__name__] = {name: measures.get(name) for name in ("accuracy/reward", "accuracy/loss")}
    assert len({str(own["accuracy/reward"]) for own in found.values()}) == 1
    assert found["DPOLoss"]["accuracy/loss"] is None
    assert found["SimPOLoss"]["accuracy/loss"] is not None
