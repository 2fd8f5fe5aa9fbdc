"""`FinalModel`: the trained model in the Hugging Face layout, with tokenizer, template and a model card."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import save_model
from dpo_lightning.models.transformers4 import supported_versions
from dpo_lightning.runs.lineage import Stage, folder_digest, format_section, read_stages, trace_stages, write_stages

FOLDER = "final_model"
VERSIONS = ("dpo-lightning", "torch", "lightning", "transformers", "peft")


class FinalModel(Callback):
    """Write `final_model/` into the run's folder when training ends, and its metrics once they are known."""

    def __init__(self) -> None:
        """Know of no stage yet."""
        self.earlier: list[Stage] = []
        self.start = ""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Look at what made the model that the run begins with, while it lies there as it was loaded."""
        if trainer.is_global_zero:
            path = pl_module.builder.path
            self.earlier, self.start = trace_stages(path), folder_digest(path)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save beside the target and rename, so that a folder with this name is always whole."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        partial = folder.with_name(f".{FOLDER}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model(pl_module.policy, pl_module.tokenizer, partial, pl_module.builder.base_path())
        stages = [*self.earlier, stage(trainer, pl_module, self.start, folder_digest(partial))]
        write_stages(partial, stages)
        (partial / "README.md").write_text(card(trainer, pl_module, stages), encoding="utf-8")
        for file in partial.iterdir():  # some writers give no one else the right to read
            shutil.copymode(partial / "README.md", file)
        if folder.exists():  # a continued run: the older result stays readable until the new one is whole
            old = folder.with_name(f".{FOLDER}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
        logger.info(f"final model: {folder}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the card again after an evaluation that came later than the model."""
        target = Path(trainer.default_root_dir) / FOLDER / "README.md"
        if (
            trainer.is_global_zero
            and trainer.state.fn == "validate"
            and pl_module.trainer.global_step
            and target.exists()
        ):
            target.write_text(card(trainer, pl_module, read_stages(target.parent)), encoding="utf-8")


def stage(trainer: Trainer, module: Any, start: str, digest: str) -> Stage:
    """What this run did, for the record that the next stage inherits."""
    settings = {}
    if getattr(module, "loss", None) is not None:
        reference, other = module.reference, getattr(module.reference, "path", None)
        settings["loss"] = described(module.loss)
        settings["reference"] = type(reference).__name__ + (f" {other}" if other else "")
        settings["reference digest"] = reference.digest(module.policy)[:16]
    settings |= {"learning rate": str(module.learning_rate), "precision": str(trainer.precision)}
    files = data_files(trainer)
    data = {name: {path: file_hash(path) for path in paths} for name, paths in files.items()}
    policy = asdict(module.builder)
    if module.builder.adapter_folder() is not None:
        policy["lora"] = None  # its own adapter was trained further
    return Stage(type(module).__name__, policy, start, digest, trainer.global_step, settings, data)


def data_files(trainer: Trainer) -> dict[str, list[str]]:
    """The files of the run's data by name, `train` and `eval`."""
    files = getattr(getattr(trainer, "datamodule", None), "files", {})
    return {name: [paths] if isinstance(paths, str) else list(paths) for name, paths in files.items() if paths}


def card(trainer: Trainer, module: Any, stages: Sequence[Stage] = ()) -> str:
    """The model card: base, data, loss, metrics and versions of this run, and the stages that came to it."""
    builder = module.builder
    head = ["---", f"base_model: {builder.base_path()}", "pipeline_tag: text-generation"]
    head += ["library_name: " + ("peft" if hasattr(module.policy, "peft_config") else "transformers"), "---"]
    lines = [*head, "", f"# {Path(trainer.default_root_dir).name}", ""]
    lines += [
        f"Trained by `dpo_lightning` ({type(module).__name__}), {trainer.global_step} optimizer steps.",
        "",
    ]
    lines += ["| | |", "|---|---|", f"| policy | `{builder.path}` |"]
    if builder.lora is not None:
        lines.append(f"| LoRA | {described(builder.lora)} |")
    if builder.quantization is not None:
        lines.append(f"| the base while training | {builder.quantization} |")
    if getattr(module, "loss", None) is not None:
        lines.append(f"| loss | {described(module.loss)} |")
        other = getattr(module.reference, "path", None)
        lines.append(f"| reference | {type(module.reference).__name__}{f' `{other}`' if other else ''} |")
    lines.append(f"| learning rate | {module.learning_rate} |")
    lines.append(f"| precision | {trainer.precision} |")
    for name, paths in data_files(trainer).items():
        for path in paths:
            lines.append(f"| {name} data | `{path}` {file_hash(path)} |")
    metrics = {k: float(v) for k, v in sorted(trainer.callback_metrics.items()) if k.startswith("eval/")}
    lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    lines += [f"| {name} | {package_version(name)} |" for name in VERSIONS]
    lines.append(f"| read by | {supported_versions(builder.config().model_type)} |")
    return "\n".join(lines) + "\n" + (format_section(stages) if stages else "")


def described(options: Any) -> str:
    """A frozen dataclass with its fields, or the name of anything else."""
    return repr(options) if is_dataclass(options) else f"{type(options).__name__}()"


def file_hash(path: str) -> str:
    """`sha256:...` of a local file; nothing for a hub set."""
    if not os.path.isfile(path):  # noqa: PTH113 - a hub id is no path
        return ""
    with open(path, "rb") as file:  # noqa: PTH123
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def package_version(name: str) -> str:
    """The installed version; the checkout's own where the package itself is not installed."""
    from dpo_lightning.version import __version__

    return __version__ if name == "dpo-lightning" else version(name)
