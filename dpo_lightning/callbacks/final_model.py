"""`FinalModel`: the trained model in the Hugging Face layout, with tokenizer, template and a model card."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dpo_lightning.data.readers.folders import list_files
from dpo_lightning.errors import UserError
from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import save_model
from dpo_lightning.models.transformers4 import supported_versions
from dpo_lightning.runs.lineage import Stage, folder_digest, format_section, read_stages, trace_stages, write_stages
from dpo_lightning.runs.model_card import make_card
from dpo_lightning.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

FOLDER = "final_model"
BLOCK = 1 << 20
"""Bytes of a data file that are hashed at once."""

VERSIONS = ("dpo-lightning", "torch", "lightning", "transformers", "peft")


class FinalModel(Callback):
    """Write `final_model/` into the run's folder when training ends, and its metrics once they are known."""

    def __init__(self) -> None:
        """Start without a record of earlier stages; `on_fit_start` reads it."""
        self.earlier: list[Stage] = []
        self.start = ""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Read how the starting model was made and hash it, before this run can replace its folder."""
        if trainer.is_global_zero:
            path = pl_module.spec.path
            self.earlier, self.start = trace_stages(path), folder_digest(path)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write into a temporary folder and rename it, so that `final_model/` is never incomplete."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        partial = folder.with_name(f".{FOLDER}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model(pl_module.policy, pl_module.tokenizer, partial, pl_module.spec.base_path())
        stages = [*self.earlier, make_stage(trainer, pl_module, self.start, folder_digest(partial))]
        write_stages(partial, stages)
        make_run_card(trainer, pl_module, stages).save(partial / "README.md")
        for file in partial.iterdir():  # safetensors writes files that only their owner can read
            shutil.copymode(partial / "README.md", file)
        if folder.exists():  # a resumed run: keep the older model until the new one is complete
            old = folder.with_name(f".{FOLDER}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
        logger.info(f"final model: {folder}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the card again with the metrics of an evaluation that ran after training."""
        target = Path(trainer.default_root_dir) / FOLDER / "README.md"
        if (
            trainer.is_global_zero
            and trainer.state.fn == "validate"
            and pl_module.trainer.global_step
            and target.exists()
        ):
            make_run_card(trainer, pl_module, read_stages(target.parent)).save(target)


def make_stage(trainer: Trainer, module: Any, start: str, digest: str) -> Stage:
    """Return the record of this run, which the next stage copies.

    Args:
        trainer: the trainer at the end of the run.
        module: the trained module.
        start: digest of the weights that the run began with.
        digest: digest of the weights that it left.
    """
    settings = {}
    if getattr(module, "loss", None) is not None:
        reference, other = module.reference, getattr(module.reference, "path", None)
        settings["loss"] = describe(module.loss)
        settings["reference"] = type(reference).__name__ + (f" {other}" if other else "")
        settings["reference digest"] = reference.digest(module.policy)[:16]
    settings |= {"learning rate": str(module.learning_rate), "precision": str(trainer.precision)}
    files = data_files(trainer)
    data = {name: {path: file_hash(path) for path in paths} for name, paths in files.items()}
    policy = asdict(module.spec)
    if module.spec.adapter_folder() is not None:
        policy["lora"] = None  # the adapter of that folder was trained further, no new one was made
    return Stage(type(module).__name__, policy, start, digest, trainer.global_step, settings, data)


def data_files(trainer: Trainer) -> dict[str, list[str]]:
    """Return the paths of the run's data files under `train` and `eval`."""
    files = getattr(getattr(trainer, "datamodule", None), "files", {})
    return {name: [paths] if isinstance(paths, str) else list(paths) for name, paths in files.items() if paths}


def make_run_card(trainer: Trainer, module: Any, stages: Sequence[Stage] = ()) -> ModelCard:
    """Return the card of a run: base, data, loss, metrics and versions, and the stages that led to it."""
    spec = module.spec
    rows = [("policy", f"`{spec.path}`")]
    if spec.lora is not None:
        rows.append(("LoRA", describe(spec.lora)))
    if spec.quantization is not None:
        rows.append(("the base while training", str(spec.quantization)))
    if getattr(module, "loss", None) is not None:
        other = getattr(module.reference, "path", None)
        rows.append(("loss", describe(module.loss)))
        rows.append(("reference", type(module.reference).__name__ + (f" `{other}`" if other else "")))
    rows += [("learning rate", str(module.learning_rate)), ("precision", str(trainer.precision))]
    for name, paths in data_files(trainer).items():
        rows += [(f"{name} data", f"`{path}` {file_hash(path)}") for path in paths]
    measures = sorted(trainer.callback_metrics.items())
    rows += [(name, f"{float(value):.4f}") for name, value in measures if name.startswith("eval/")]
    rows += [(name, package_version(name)) for name in VERSIONS]
    rows.append(("read by", supported_versions(spec.config().model_type)))
    body = "\n".join(
        [
            f"Trained by `dpo_lightning` ({type(module).__name__}), {trainer.global_step} optimizer steps.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            format_section(stages) if stages else "",
        ]
    )
    library = "peft" if hasattr(module.policy, "peft_config") else "transformers"
    return make_card(Path(trainer.default_root_dir).name, body, spec.base_path(), library)


def describe(options: Any) -> str:
    """Return a dataclass with its fields, or the name of another object's class."""
    return repr(options) if is_dataclass(options) else f"{type(options).__name__}()"


def file_hash(path: str) -> str:
    """Return `sha256:...` of a local file, or of the files of a folder or pattern one after the other.

    Empty for a data set of the hub, and for files that are no longer there.
    """
    digest = hashlib.sha256()
    try:
        for file in list_files(path):
            with Path(file).open("rb") as opened:
                while block := opened.read(BLOCK):
                    digest.update(block)
    except (OSError, UserError):
        return ""
    return "sha256:" + digest.hexdigest()


def package_version(name: str) -> str:
    """Return a package's installed version; for this package that of the code which runs."""
    return __version__ if name == "dpo-lightning" else version(name)
