"""Adapters and checkpoints from somebody else."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_models import PICKLE, link, torch_file
from support import tiny_models
from support.cases import Case, fit, infer, write

EXPORT = ["export", "--model", "model", "--out", "out"]


def adapter(**changes: Any) -> Callable[[Path], list[str]]:
    """A folder of a LoRA adapter of the model beside it, whose configuration is changed."""

    def build(place: Path) -> list[str]:
        from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model

        made = place.parent / "adapter"
        if not made.exists():
            spec = CausalLM(str(place.parent / "template" / "model"), lora=Lora(r=2))
            save_model(spec.build(), spec.tokenizer(), made, "model")
        shutil.copytree(made, place / "adapter")
        options = {"base_model_name_or_path": "model"} | changes
        tiny_models.change_json(place / "adapter" / "adapter_config.json", **options)
        return infer(model="adapter")

    return build


def adapter_with(prepare: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    """An adapter whose files a function changes."""

    def build(place: Path) -> list[str]:
        args = adapter()(place)
        prepare(place / "adapter")
        return args

    return build


def adapter_pickle(folder: Path) -> None:
    """An adapter in a pickle."""
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(torch_file())


def checkpoint(content: bytes) -> Callable[[Path], list[str]]:
    """A checkpoint to go on from."""

    def build(place: Path) -> list[str]:
        (place / "x.ckpt").write_bytes(content)
        return fit("--ckpt_path=x.ckpt")

    return build


def zip_bomb() -> bytes:
    """A file as `torch.save` writes them, whose pickle is 256 MB of zeros."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(8):
                file.write(bytes(1 << 25))
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


ADAPTERS = [
    Case("an adapter that is sound", adapter(), 0),
    Case("a base by URL", adapter(base_model_name_or_path="https://evil.example/model"), 66),
    Case("a base outside", adapter(base_model_name_or_path="../../etc"), 66),
    Case("a base that is itself", adapter(base_model_name_or_path="adapter"), 67),
    Case("a base that is a number", adapter(base_model_name_or_path=5), 67),
    Case("modules by an expression without end", adapter(target_modules="(a|a|[a-z_.])*(([a-z_.]+)+)+!"), 67,
         stage="S2"),
    Case("a broken expression", adapter(target_modules="(("), 67, stage="S2"),
    Case("modules that are a number", adapter(target_modules=5), 67, stage="S2"),
    Case("modules that do not exist", adapter(target_modules=["no_such"]), 67, stage="S2"),
    Case("a rank of 10**9", adapter(r=10**9), 67, stage="S2"),
    Case("a rank of 0", adapter(r=0), 67, stage="S2"),
    Case("a rank in text", adapter(r="x"), 67, stage="S2"),
    Case("an alpha that is NaN", adapter(lora_alpha=float("nan")), 67, stage="S2"),
    Case("an alpha in text", adapter(lora_alpha="x"), 67, stage="S2"),
    Case("a dropout of 2", adapter(lora_dropout=2), 67, stage="S2"),
    Case("an unknown kind of adapter", adapter(peft_type="NO_SUCH"), 67, stage="S2"),
    Case("a task that is none", adapter(task_type="SEQ_2_SEQ_LM"), 0),
    Case("a mapping to code", adapter(auto_mapping={"parent_library": "antigravity", "base_model_class": "x"}), 67),
    Case("megatron", adapter(megatron_config={"a": 1}, megatron_core="antigravity"), 67),
    Case("a file of another initialization", adapter(corda_config={"cache_file": "outside/x.pt"}), 67),
    Case("layers repeated without end", adapter(layer_replication=[[0, 10**8]]), 67),
    Case("code for an adapter", adapter(auto_map={"a": "b"}), 67),
    Case("an adapter in a pickle", adapter_with(adapter_pickle), 67, stage="S2"),
    Case("an adapter without weights", adapter_with(lambda f: (f / "adapter_model.safetensors").unlink()), 67,
         stage="S2"),
    Case("an adapter that ends early", adapter_with(lambda f: os.truncate(f / "adapter_model.safetensors", 99)), 67,
         stage="S2"),
    Case("an adapter whose weights are a link out",
         adapter_with(link("adapter_model.safetensors", "../outside/important.txt")), 67, stage="S2"),
    Case("an adapter's list of options", adapter_with(write("adapter_config.json", "[]")), 67),
]  # fmt: skip

CHECKPOINTS = [
    Case("a checkpoint with a pickle", checkpoint(torch_file()), 66),
    Case("a bare pickle as a checkpoint", checkpoint(PICKLE), 66),
    Case("a zip bomb as a checkpoint", checkpoint(zip_bomb()), 66),
    Case("an empty checkpoint", checkpoint(b""), 66),
    Case("text as a checkpoint", checkpoint(b"hello"), 66),
    Case("a checkpoint of a list", checkpoint(torch_file(pickle.dumps([1, 2]))), 66),
    Case("a pickle as a model", lambda p: ((p / "x.ckpt").write_bytes(PICKLE), infer(model="x.ckpt"))[1], 66,
         ("x.ckpt", "the checkpoint is damaged at --model")),
    Case("a checkpoint to export", lambda p: ((p / "x.ckpt").write_bytes(PICKLE), [*EXPORT, "--model", "x.ckpt"])[1],
         66, ("the checkpoint is damaged at --model",)),
    Case("a checkpoint to train", lambda p: ((p / "x.ckpt").write_bytes(PICKLE),
         fit("--model.policy.path=x.ckpt"))[1], 66, ("export --model x.ckpt --out MODEL",), stage="S0"),
    Case("weights as a model", lambda _: infer(model="model/model.safetensors"), 66,
         ("found a file", "give its folder: model")),
]  # fmt: skip

CASES = [*ADAPTERS, *CHECKPOINTS]
