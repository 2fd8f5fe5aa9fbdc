"""Where a training step reads a tensor of its device: each read makes the host wait for a GPU, and has its reason here.

Steps run on torch's `meta` device, whose tensors have no values: a read is caught, and a tensor of the CPU that meets
those of the device is an error.
"""

import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from support.command_line import json_lines
from torch.overrides import TorchFunctionMode

from dpo_lightning import DPOModule, KTOModule, ListwiseDPOModule, SFTModule
from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.lora import Lora

READS = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "equal", "is_nonzero", "nonzero",
    "masked_select", "unique", "argwhere",
}  # fmt: skip
"""Functions of torch whose result depends on values: the host has to wait for them."""

MASK = "models/lm_head.py: hidden: Tensor = self.backbone(**inputs).last_hidden_state"
"""transformers looks whether a padding mask hides anything: once for the policy, once for the reference. Rows without
padding need no such mask.
"""

MEANS = "dpo_lightning/metrics.py: table = torch.stack([self.sums, self.weights]).cpu()"
"""Means are logged: once for each callback that measures."""

FINITE = (
    'callbacks/non_finite.py: losses, norms, squares, total = trainer.strategy.reduce(own, reduce_op="sum").tolist()'
)
"""Whether loss and gradients are finite has to be known before the optimizer changes the weights; their norm comes with
it.
"""

STEPS, EVERY = 6, 3


class Meta(CPUAccelerator):
    """The device whose tensors have no values."""

    def setup_device(self, device):
        pass


class HostReads(TorchFunctionMode):
    """Record every place that reads a tensor of the meta device, and go on with a made-up value."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta and reads_values(func.__name__, args, kwargs):
            self.places.append(find_place())
            args = [make_up(part) for part in args]
        return func(*args, **kwargs)


def reads_values(name, args, kwargs):
    """Whether the result of a function depends on values of its first argument, or lies on the CPU."""
    if name in READS or (name == "where" and len(args) == 1):
        return True
    if name == "to":
        return any(str(given) == "cpu" for given in (*args[1:], *kwargs.values()))
    return name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool


def make_up(part):
    """Ones on the CPU in the place of a tensor without values."""
    return torch.ones(part.shape, dtype=part.dtype) if isinstance(part, torch.Tensor) and part.is_meta else part


def find_place():
    """The innermost line of this package, or of another one if none of ours is on the stack."""
    frames = [frame for frame in traceback.extract_stack() if "torch/overrides" not in frame.filename][:-2]
    ours = [frame for frame in frames if "dpo_lightning/" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}: {frame.line.partition('  #')[0]}"


class PerStep(Callback):
    """What was read in each step, from one batch to the next."""

    def __init__(self, reads):
        self.reads, self.steps = reads, []

    def on_train_batch_start(self, *_):
        self.steps.append([])
        self.reads.places = self.steps[-1]

    def on_train_end(self, *_):
        self.reads.places = []


ROWS = {
    DPOModule: {"chosen": "It is 46.", "rejected": "No?"},
    KTOModule: {"completion": "It is 46.", "label": True},
    ListwiseDPOModule: {"responses": ["It is 46.", "Is it?", "No?"]},
    SFTModule: {"completion": "It is 46."},
}


@pytest.mark.parametrize("layout", [Padded(), PackedSharedPrefix()])
@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in ROWS), (DPOModule, {"lora": Lora(r=2)})])
def test_a_step_reads_nothing_else(kind, options, layout, tiny_llama, tmp_path, monkeypatch):
    # The meta device has no autocast, and no sums over ranks.
    monkeypatch.setattr("lightning.pytorch.loops.fit_loop.has_len_all_ranks", lambda *_: True)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    made = kind(CausalLM(str(tiny_llama), **options))
    made.configure_model()
    rows = [{"prompt": f"What is {k} + 46?", **ROWS[kind]} for k in range(12)]
    for row in rows[::2] if kind is KTOModule else ():
        row["label"] = False
    file = json_lines(tmp_path / "rows.jsonl", rows)
    data = kind.data_module(train=str(file), batch_size=2, max_length=128, collator=layout)
    reads = HostReads()
    steps = PerStep(reads)
    trainer = Trainer(
        strategy=SingleDeviceStrategy(torch.device("meta"), Meta()),
        max_steps=STEPS,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        log_every_n_steps=EVERY,
        callbacks=[steps, SelfCheck(enabled=False)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with reads:
        trainer.fit(made, datamodule=data)
    masks = {MASK: 1 if kind is SFTModule else 2} if isinstance(layout, Padded) else {}
    masks |= {FINITE: 1}
    logged = masks | {MEANS: 2 if kind is DPOModule else 1}
    assert [Counter(places) for places in steps.steps] == 2 * [masks, masks, logged]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device=torch.device("cpu")),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        torch.unique,
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0),
    ],
)
def test_every_kind_of_read_is_seen(read):
    with HostReads() as reads:
        read(torch.ones(3, device="meta"))
    assert len(reads.places) == 1


def test_what_stays_on_the_device_is_no_read():
    with HostReads() as reads:
        x = torch.ones(3, device="meta")
        torch.where(x > 0, x, 0).sum().to(torch.float64)
        x[1:], x[torch.zeros(2, dtype=torch.long, device="meta")]
        torch.ones(3).sum().item()
    assert not reads.places
