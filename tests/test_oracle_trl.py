"""Steps of training against TRL 1.16's own DPOTrainer, and against a loop of plain PyTorch."""

from functools import partial

import pytest
import torch
from support import tiny_models, whole_runs
from torch.nn.functional import softplus

from dpo_lightning import PreferenceDataModule
from dpo_lightning.losses import (
    AOTLoss,
    AOTUnpairedLoss,
    APODownLoss,
    APOZeroLoss,
    BCOPairLoss,
    DiscoPOPLoss,
    DPOLoss,
    EXOLoss,
    HingeLoss,
    IPOLoss,
    LDDPOLoss,
    LNDPOLoss,
    NCALoss,
    RobustLoss,
    SFTLoss,
    SPPOLoss,
    WeightedSum,
    WPOLoss,
)
from dpo_lightning.losses.divergences import AlphaDivergence, ForwardKL, JensenShannon

STEPS, BATCH = 8, 2
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected")
ENDS_WITH_EOS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""TRL scores what a template writes after EOS, where we stop: this one writes nothing there."""


def turn(role, content):
    return [{"role": role, "content": content}]


RAW = [
    # Here the border moves: " 46" is one token, "$46" another, so that the prompt's last space is scored.
    {"prompt": "The answer is ", "chosen": "46", "rejected": "$46"},
    *whole_runs.preference_rows(STEPS * BATCH - 1),
]
CHAT = [
    {
        "prompt": turn("system", "Be brief.") * (i % 2) + turn("user", row["prompt"]),
        "chosen": turn("assistant", row["chosen"].strip()),
        "rejected": turn("assistant", row["rejected"].strip()),
    }
    for i, row in enumerate(RAW)
]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Model folder and rows: GPT-2 with dropout in its config on plain strings, Llama on chats."""
    folder = tmp_path_factory.mktemp("oracle")
    chat = tiny_models.make_chat_tokenizer(template=ENDS_WITH_EOS)
    return {
        "raw": (
            tiny_models.save(folder / "raw", tiny_models.make_gpt2(dropout=0.1), tiny_models.make_tokenizer()),
            RAW,
        ),
        "chat": (tiny_models.save(folder / "chat", tiny_models.make_llama(), chat), CHAT),
    }


def ours(model, rows, loss, folder):
    """What our module logs at every step."""
    data = PreferenceDataModule(
        whole_runs.write_rows(folder, "train", rows), batch_size=BATCH, shuffle=False, max_length=128
    )
    memory, _ = whole_runs.fit(whole_runs.dpo(model, loss=loss), data, folder)
    assert len(memory.steps) == STEPS
    return memory, data.encoded["train"]


def theirs(model, rows, folder, **options):
    """What TRL's trainer logs at every step, and the ids that it trained on."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=whole_runs.LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        max_length=128,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    encoded = list(trainer.train_dataset)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], encoded


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("side", ["raw", "chat"])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (DPOLoss(0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
        (HingeLoss(0.2), {"loss_type": ["hinge"], "beta": 0.2}),
        (IPOLoss(0.4), {"loss_type": ["ipo"], "beta": 0.4}),
        (RobustLoss(0.3, 0.2), {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2}),
    ],
    ids=["dpo", "hinge", "ipo", "robust"],
)
def test_training_as_trl_does(sides, tmp_path, side, loss, options):
    """Same folder, rows, order and AdamW: the same ids, losses within 1e-5 and metrics within 1e-4, for 8 steps."""
    model, rows = sides[side]
    memory, encoded = ours(model, rows, loss, tmp_path)
    history, ids = theirs(model, rows, tmp_path, **options)
    for mine, other in zip(encoded, ids, strict=True):
        assert list(mine.prompt_ids) == other["prompt_ids"]
        assert list(mine.chosen.ids) == other["chosen_ids"]
        assert list(mine.rejected.ids) == other["rejected_ids"]
    expected = [entry["loss"] for entry in history]
    assert memory.curve("train/loss") == [pytest.approx(x, rel=0, abs=1e-5 * max(1, x)) for x in expected]
    assert abs(expected[-1] - expected[0]) > 0.01
    for name in LOGPS if isinstance(loss, IPOLoss) else LOGPS + REWARDS:
        assert memory.curve(f"train/{name}") == pytest.approx([entry[name] for entry in history], abs=1e-4), name


MPO = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.3}
MIXED = {"loss_type": ["ipo", "sigmoid"], "loss_weights": [0.5, 2.0], "beta": 0.3}
OTHERS = {
    "exo_pair": (EXOLoss(0.3, label_smoothing=0.1), {"label_smoothing": 0.1}, LOGPS + REWARDS),
    "nca_pair": (NCALoss(0.3), {}, LOGPS + REWARDS),
    "bco_pair": (BCOPairLoss(0.3, shift=False), {}, LOGPS + REWARDS),
    "sppo_hard": (SPPOLoss(0.3), {}, LOGPS + REWARDS),
    "aot": (AOTLoss(0.3, 0.1), {"label_smoothing": 0.1}, LOGPS + REWARDS),
    "aot_unpaired": (AOTUnpairedLoss(0.3, 0.1), {"label_smoothing": 0.1}, LOGPS + REWARDS),
    "apo_zero": (APOZeroLoss(0.3), {}, LOGPS + REWARDS),
    "apo_down": (APODownLoss(0.3), {}, LOGPS + REWARDS),
    "discopop": (DiscoPOPLoss(0.3, tau=0.2), {"discopop_tau": 0.2}, LOGPS + REWARDS),
    "sft": (SFTLoss(), {}, LOGPS),
    "sigmoid_norm": (LNDPOLoss(0.3), {}, LOGPS),
    "ld_alpha": (LDDPOLoss(0.3, 0.4), {"loss_type": ["sigmoid"], "ld_alpha": 0.4}, REWARDS),
    "wpo": (WPOLoss(DPOLoss(0.3)), {"loss_type": ["sigmoid"], "use_weighting": True}, LOGPS + REWARDS),
    "wpo of ipo": (WPOLoss(IPOLoss(0.3)), {"loss_type": ["ipo"], "use_weighting": True}, LOGPS),
    "forward_kl": (
        DPOLoss(0.3, divergence=ForwardKL()),
        {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"},
        LOGPS,
    ),
    "js_divergence": (
        LNDPOLoss(0.3, divergence=JensenShannon()),
        {"loss_type": ["sigmoid_norm"], "f_divergence_type": "js_divergence"},
        LOGPS,
    ),
    "alpha_divergence": (
        RobustLoss(0.3, 0.2, divergence=AlphaDivergence(0.25)),
        {
            "loss_type": ["robust"],
            "label_smoothing": 0.2,
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.25,
        },
        LOGPS,
    ),
    "mpo": (
        WeightedSum([DPOLoss(0.3), BCOPairLoss(0.3, shift=False), SFTLoss()], [0.8, 0.2, 1.0]),
        MPO,
        LOGPS + REWARDS,
    ),
    "ipo beside dpo": (WeightedSum([IPOLoss(0.3), DPOLoss(0.3)], [0.5, 2.0]), MIXED, LOGPS),
}
"""Ours, TRL's options (a name is a loss type where none is given), and the metrics that mean the same in both."""


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize(("side", "name"), [(("raw", "chat")[i % 2], name) for i, name in enumerate(OTHERS)])
def test_the_family_trains_as_trl_does(sides, tmp_path, side, name):
    """Every other loss type and option of TRL's; where rewards differ, ours are what the loss compares.

    Some are steep, so that float32's rounding grows over the steps.
    """
    model, rows = sides[side]
    loss, options, metrics = OTHERS[name]
    memory, _ = ours(model, rows, loss, tmp_path)
    history, _ = theirs(model, rows, tmp_path, **({"loss_type": [name], "beta": 0.3} | options))
    expected = [entry["loss"] for entry in history]
    assert memory.curve("train/loss") == [pytest.approx(x, rel=0, abs=3e-5 * max(1, x)) for x in expected]
    assert len(set(expected)) == STEPS
    for metric in metrics:
        assert memory.curve(f"train/{metric}") == pytest.approx([entry[metric] for entry in history], abs=5e-4), metric


def test_no_loss_type_of_trls_is_left_out():
    """The fifteen that its trainer names when it is given another."""
    import inspect
    import re

    from trl import DPOTrainer

    named = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss)))
    assert len(named) == 15
    assert named == {name for name in OTHERS if name in named} | {"sigmoid", "hinge", "ipo", "robust"}


def cdpo(a, r, nw, nl):
    """Mitchell 2023, beta 0.3, e 0.2."""
    return 0.8 * softplus(-0.3 * (a - r)) + 0.2 * softplus(0.3 * (a - r))


def summed_ipo(a, r, nw, nl):
    """Azar et al. 2023, eq. 17, tau 0.4."""
    return (a - r - 1.25) ** 2


def mean_ipo(a, r, nw, nl):
    """As TRL has it."""
    return (a / nw - r / nl - 1.25) ** 2


@pytest.mark.parametrize("side", ["raw", "chat"])
@pytest.mark.parametrize(
    ("loss", "formula", "tolerance"),
    [
        (DPOLoss(0.3, 0.2), cdpo, 1e-5),
        (IPOLoss(0.4, "sum"), summed_ipo, 2e-4),  # squares sums of some 80 nats, float32's rounding with them
        (IPOLoss(0.4, "mean"), mean_ipo, 1e-5),
    ],
    ids=["cdpo", "ipo sum", "ipo mean"],
)
def test_training_as_the_formula_does(sides, tmp_path, side, loss, formula, tolerance):
    """What TRL has not (its `sigmoid` ignores label smoothing): a plain loop over single sequences."""
    model, rows = sides[side]
    memory, encoded = ours(model, rows, loss, tmp_path)

    def one(policy, reference, row):
        return formula(**whole_runs.plain_pair(policy, reference, row)), 1

    expected, _ = whole_runs.plain_run(
        model, encoded, one, BATCH, partial(whole_runs.PLAIN_ADAMW, lr=whole_runs.LEARNING_RATE)
    )
    assert memory.curve("train/loss") == [pytest.approx(x, rel=0, abs=tolerance * max(1, x)) for x in expected]
    assert abs(expected[-1] - expected[0]) > 0.01
