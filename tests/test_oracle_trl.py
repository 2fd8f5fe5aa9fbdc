"""Eight steps of training against TRL 1.16's own DPOTrainer, and against a loop of plain PyTorch."""

from functools import partial

import pytest
import tiny
import torch
import whole_runs as runs
from torch.nn.functional import softplus

from dpo_lightning import PreferenceDataModule
from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, RobustLoss

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
    *runs.preference_rows(STEPS * BATCH - 1),
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
    chat = tiny.make_chat_tokenizer(template=ENDS_WITH_EOS)
    return {
        "raw": (tiny.save(folder / "raw", tiny.make_gpt2(dropout=0.1), tiny.make_tokenizer()), RAW),
        "chat": (tiny.save(folder / "chat", tiny.make_llama(), chat), CHAT),
    }


def ours(model, rows, loss, folder):
    """What our module logs at every step."""
    data = PreferenceDataModule(runs.write_rows(folder, "train", rows), batch_size=BATCH, shuffle=False, max_length=128)
    memory, _ = runs.fit(runs.dpo(model, loss=loss), data, folder)
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
        learning_rate=runs.LEARNING_RATE,
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
        return formula(**runs.plain_pair(policy, reference, row)), 1

    expected, _ = runs.plain_run(model, encoded, one, BATCH, partial(runs.PLAIN_ADAMW, lr=runs.LEARNING_RATE))
    assert memory.curve("train/loss") == [pytest.approx(x, rel=0, abs=tolerance * max(1, x)) for x in expected]
    assert abs(expected[-1] - expected[0]) > 0.01
