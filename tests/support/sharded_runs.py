"""Short runs of each kind of training by one process or by two that share the rows, by DDP or by FSDP2."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from peft import get_peft_model
from torch import nn
from torch.optim import SGD, AdamW

from dpo_lightning import KTOModule, UnpairedDataModule
from dpo_lightning.callbacks import FinalModel, NonFinite, RunCheckpoints
from dpo_lightning.folder_names import CHECKPOINTS
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization
from dpo_lightning.references import FrozenAdapter, Precomputed, Synced
from dpo_lightning.runs.checkpoint_files import LAST, CheckpointFiles
from dpo_lightning.sharding import gather_state, is_split
from support import model_families, tiny_models, whole_runs

LORA = Lora(r=2, lora_dropout=0.0)
STEPS = 4


class Case(NamedTuple):
    """A run: its kind, what is trained, and options of the module and of the trainer.

    Attributes:
        model: name of the model.
        rows: of a micro-batch; 0 for all that a rank has in a step.
    """

    kind: str
    policy: Mapping[str, Any] = {}
    module: Mapping[str, Any] = {}
    trainer: Mapping[str, Any] = {}
    model: str = "llama"
    rows: int = 0


ON_EXPERTS = replace(LORA, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
BALANCED = {"router_aux_loss_coef": 0.1}
KINDS = ("dpo", "kto", "listwise", "sft")
CLIPPED = {"gradient_clip_val": 0.1}
DDP = {f"{kind} lora": Case(kind, {"lora": LORA}) for kind in KINDS}
FSDP2 = {
    **DDP,
    **{kind: Case(kind, module={"optimizer": SGD, "learning_rate": whole_runs.SGD_RATE}) for kind in KINDS},
    "clipped": Case("dpo", module={"optimizer": SGD, "learning_rate": 0.3}, trainer=CLIPPED),
    "windows": Case("dpo", module={"optimizer": SGD, "learning_rate": 0.1}, rows=1),
    "fused": Case("dpo", module={"optimizer": partial(AdamW, fused=True)}),
    "activations recomputed": Case("dpo", {"gradient_checkpointing": True}),
    "lora, activations recomputed": Case("dpo", {"gradient_checkpointing": True, "lora": LORA}),
    "start of an adapter": Case("dpo", {"lora": LORA}, {"reference": FrozenAdapter}),
    "adapter on 4 bits": Case("dpo", {"lora": LORA, "quantization": Quantization()}),
    "moving reference": Case("dpo", module={"reference": partial(Synced, every=1, alpha=0.5)}),
    "precomputed, adapter": Case("dpo", {"lora": LORA}, {"reference": Precomputed}),
    # A load-balancing loss is one of a micro-batch, which has the same rows on any number of ranks here.
    "experts": Case("dpo", BALANCED, {"reference": Precomputed}, model="qwen2_moe", rows=1),
    "experts, adapter": Case("dpo", {"lora": ON_EXPERTS, **BALANCED}, model="mixtral", rows=1),
    "moving adapter": Case("dpo", {"lora": LORA}, {"reference": partial(Synced, every=1, alpha=0.5)}),
}
"""Runs that one process and two have to do alike, by strategy."""

STOPPED = {
    "whole": Case("dpo"),
    "adapter": Case("dpo", {"lora": LORA}),
    "moving reference": FSDP2["moving reference"],
    "experts": FSDP2["experts"],
}
"""Runs that are stopped after half of their steps."""


def unpaired_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Answers with a label each, two good ones to a bad one."""
    pairs = whole_runs.preference_rows(count, first)
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if i % 3 else "chosen"], "label": i % 3 > 0}
        for i, row in enumerate(pairs)
    ]


def kto(model: Any, **options: Any) -> KTOModule:
    """A KTO run on a model folder."""
    return KTOModule(**{"learning_rate": whole_runs.LEARNING_RATE, **options})


MAKERS = {**whole_runs.KINDS, "kto": (kto, UnpairedDataModule, unpaired_rows)}
"""Module, data module and rows of each kind of run."""


def draw_same_adapter(*args: Any, **options: Any) -> Any:
    """Attach a new adapter, whose weights do not depend on what was drawn in this process before."""
    torch.manual_seed(0)
    return get_peft_model(*args, **options)


def save_models(folder: Path) -> Path:
    """Save the models of the cases, each in a folder with its name."""
    tokenizer = tiny_models.make_chat_tokenizer()
    tiny_models.save(folder / "llama", tiny_models.make_llama(), tokenizer)
    for name in ("mixtral", "qwen2_moe"):
        tiny_models.save(folder / name, model_families.make(name, vocab_size=tiny_models.VOCAB), tokenizer)
    return folder


def module_options(case: Case, model: Path) -> dict[str, Any]:
    """What a case's module is made of."""
    named = {name: value() if name == "reference" else value for name, value in case.module.items()}
    return {"policy": CausalLM(str(model), **case.policy), "learning_rate": 3e-3, **named}


def run(case: Case, models: Path, folder: Path, strategy: str = "auto", ranks: int = 1, **options: Any) -> Any:
    """Train four steps of four rows each; the module, the losses of the steps, and the trainer."""
    make, data, rows = MAKERS[case.kind]
    folder.mkdir(parents=True, exist_ok=True)
    file = whole_runs.write_rows(folder, "train", rows(4 * STEPS))
    model = models / case.model
    module = make(model, **{"optimizer": partial(AdamW, weight_decay=0.0), **module_options(case, model)})
    size = case.rows or 4 // ranks
    defaults: dict[str, Any] = {"devices": ranks, "strategy": strategy, "plugins": [CheckpointFiles()]}
    defaults["accumulate_grad_batches"] = 4 // ranks // size
    with mock.patch("peft.get_peft_model", draw_same_adapter):
        memory, trainer = whole_runs.fit(
            module,
            data(file, batch_size=size, max_length=64, shuffle=False),
            folder,
            **{**defaults, **case.trainer, **options},
        )
    return module, memory.curve("train/loss"), trainer


def whole_weights(module: Any) -> dict[str, torch.Tensor]:
    """The policy's trained weights, gathered on rank 0."""
    return gather_state({name: value for name, value in module.policy.named_parameters() if value.requires_grad})


def last_norm(trainer: Any) -> float:
    """The norm of the gradients of a run's last step."""
    (callback,) = (callback for callback in trainer.callbacks if isinstance(callback, NonFinite))
    return callback.gradient_norm


def stop(case: Case, models: Path, folder: Path, strategy: str = "auto", ranks: int = 1) -> Path:
    """Train half of the steps, each of which is saved; the last checkpoint."""
    saved = {"max_steps": STEPS // 2, "callbacks": [RunCheckpoints(every_n_steps=1)]}
    run(case, models, folder, strategy, ranks, **saved)
    return folder / CHECKPOINTS / LAST


def go_on(case: Case, models: Path, folder: Path, checkpoint: Path, strategy: str = "auto", ranks: int = 1) -> Any:
    """Train the other half of the steps; as `run`."""
    callbacks = [RunCheckpoints(), FinalModel()]
    return run(case, models, folder, strategy, ranks, ckpt_path=checkpoint, callbacks=callbacks)


def main(saved: str, folder: str, rank: str) -> None:
    """One of the two ranks: every case and strategy, and runs that were stopped."""
    torch.set_num_threads(1)
    models, shared = Path(saved), Path(folder)
    os.chdir(shared)
    results: dict[tuple[str, str], Any] = {}
    for name, case in STOPPED.items():
        checkpoint = stop(case, models, shared / name / "stopped", "fsdp2", ranks=2)
        for origin, path in (("two ranks", checkpoint), ("one rank", shared / f"one/{name}" / CHECKPOINTS / LAST)):
            module, losses, _ = go_on(case, models, shared / name / origin, path, "fsdp2", ranks=2)
            results[origin, name] = {"losses": losses, "weights": whole_weights(module)}
    for strategy, cases in (("ddp", DDP), ("fsdp2", FSDP2)):
        for name, case in cases.items():
            module, losses, trainer = run(case, models, shared / rank / strategy / name, strategy, ranks=2)
            held = () if case.kind == "sft" else module.reference.held_weights().values()
            floats = [value for value in [*module.policy.parameters(), *held] if isinstance(value, nn.Parameter)]
            split = {is_split(value) for value in floats if value.is_floating_point()}
            found = {"losses": losses, "norm": last_norm(trainer), "weights": whole_weights(module), "split": split}
            results[strategy, name] = found
    if rank == "0":
        torch.save(results, shared / "two.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
