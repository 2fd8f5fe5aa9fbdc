"""`FinalModel`: the trained model in the Hugging Face layout, with tokenizer, template and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dpo_lightning.atomic_files import sync
from dpo_lightning.folder_names import FINAL_MODEL
from dpo_lightning.log import logger
from dpo_lightning.models.causal_lm import save_model
from dpo_lightning.models.transformers4 import supported_versions
from dpo_lightning.runs.best_weights import Best, find_monitor, restore_best
from dpo_lightning.runs.file_digests import data_digests
from dpo_lightning.runs.lineage import (
    WEIGHTS,
    Stage,
    folder_digest,
    format_section,
    read_stages,
    trace_stages,
    trained_steps,
    write_stages,
    written_weights,
)
from dpo_lightning.runs.model_card import make_card
from dpo_lightning.sharding import gather_state
from dpo_lightning.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

PARTIAL, OLD = f".{FINAL_MODEL}.partial", f".{FINAL_MODEL}.old"
"""Hidden folders that a process which was killed while it wrote the model has left."""

VERSIONS = ("dpo-lightning", "torch", "lightning", "transformers", "peft")


class FinalModel(Callback):
    """Write `final_model/` into the run's folder when training ends, and its metrics once they are known."""

    def __init__(self, weights: Literal["last", "best"] = "last") -> None:
        """Start without a record of earlier stages; `on_fit_start` reads it.

        Args:
            weights: those of the last step, or the best by the metric that a `ModelCheckpoint` of the run monitors.
        """
        self.weights = weights
        self.best: Best | None = None
        """The weights that were put back in place of the last ones."""
        self.earlier: list[Stage] = []
        self.start = ""
        self.data: dict[str, dict[str, str]] = {}
        self._step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run in which nothing chooses the best weights."""
        if stage == "fit" and self.weights == "best":
            find_monitor(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Read how the starting model was made, and hash it and the data, before any of them can change."""
        if trainer.is_global_zero:
            path = pl_module.spec.path
            self.earlier, self.start = trace_stages(path), folder_digest(path)
            self.data = data_digests(getattr(getattr(trainer, "datamodule", None), "files", {}))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the model of the last weights."""
        if self.weights == "last":
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Put back the best weights, once the last ones are saved in checkpoints, and write them.

        A run that had nothing left to train writes its model here too, if that is missing or has other weights.
        """
        if self.weights == "best":
            self.best = restore_best(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / FINAL_MODEL
        written = (trained_steps(folder), written_weights(folder))
        due = self._step != trainer.global_step and written != (trainer.global_step, str(self.best or ""))
        if trainer.strategy.broadcast(due):  # ranks may look at the folder before and after rank 0 has written it
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: Any) -> None:
        """Write into a temporary folder and rename it, so that `final_model/` is never incomplete."""
        self._step = trainer.global_step
        state = gather_trained(pl_module.policy) if getattr(pl_module, "mesh", None) is not None else None
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FINAL_MODEL
        partial = folder.with_name(PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model(pl_module.policy, pl_module.tokenizer, partial, pl_module.spec.base_path(), state)
        stage = make_stage(trainer, pl_module, self.start, folder_digest(partial), self.best)._replace(data=self.data)
        stages = [*self.earlier, stage]
        write_stages(partial, stages)
        make_run_card(trainer, pl_module, stages).save(partial / "README.md")
        for file in partial.iterdir():  # safetensors writes files that only their owner can read
            shutil.copymode(partial / "README.md", file)
            sync(file)
        sync(partial)
        old = folder.with_name(OLD)
        if folder.exists():  # a resumed run: keep the older model until the new one is complete
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
        logger.info(f"final model: {folder}" + (f", weights {self.best}" if self.best else ""))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the card again with the metrics of an evaluation that ran after training."""
        target = Path(trainer.default_root_dir) / FINAL_MODEL / "README.md"
        if (
            trainer.is_global_zero
            and trainer.state.fn == "validate"
            and pl_module.trainer.global_step
            and target.exists()
        ):
            make_run_card(trainer, pl_module, read_stages(target.parent)).save(target)


def gather_trained(policy: Any) -> dict[str, Tensor]:
    """Gather the weights of a sharded model that are saved on rank 0: all, or those of its adapter."""
    state = policy.state_dict()
    if hasattr(policy, "peft_config"):
        trained = [name for name, value in policy.named_parameters(remove_duplicate=False) if value.requires_grad]
        state = {name: state[name] for name in trained}
    return gather_state(state)


def make_stage(trainer: Trainer, module: Any, start: str, digest: str, best: Best | None = None) -> Stage:
    """Return the record of this run, which the next stage copies.

    Args:
        trainer: the trainer at the end of the run.
        module: the trained module.
        start: digest of the weights that the run began with.
        digest: digest of the weights that it left.
        best: the weights that were put back in place of the last ones.
    """
    settings = {}
    if getattr(module, "loss", None) is not None:
        other = module.reference.model_path
        settings["loss"] = describe(module.loss)
        settings["reference"] = type(module.reference).__name__ + (f" {other}" if other else "")
        settings["reference digest"] = module.reference.digest(module.policy)[:16]
    if best is not None:
        settings[WEIGHTS] = str(best)
    settings |= {"learning rate": str(module.learning_rate), "precision": str(trainer.precision)}
    settings |= {f"bad {name} rows left out": str(count) for name, count in count_left_out(trainer).items()}
    policy = asdict(module.spec)
    if module.spec.adapter_folder() is not None:
        policy["lora"] = None  # the adapter of that folder was trained further, no new one was made
    return Stage(type(module).__name__, policy, start, digest, trainer.global_step, settings)


def make_run_card(trainer: Trainer, module: Any, stages: Sequence[Stage] = ()) -> ModelCard:
    """Return the card of a run: base, data, loss, metrics and versions, and the stages that led to it."""
    spec = module.spec
    rows = [("policy", f"`{spec.path}`")]
    if spec.lora is not None:
        rows.append(("LoRA", describe(spec.lora)))
    if spec.quantization is not None:
        rows.append(("the base while training", str(spec.quantization)))
    if getattr(module, "loss", None) is not None:
        other = module.reference.model_path
        rows.append(("loss", describe(module.loss)))
        rows.append(("reference", type(module.reference).__name__ + (f" `{other}`" if other else "")))
    if stages and WEIGHTS in stages[-1].settings:
        rows.append((WEIGHTS, stages[-1].settings[WEIGHTS]))
    rows += [("learning rate", str(module.learning_rate)), ("precision", str(trainer.precision))]
    for name, files in (stages[-1].data if stages else {}).items():
        rows += [(f"{name} data", f"`{path}` {digest}") for path, digest in files.items()]
    rows += [(f"bad {name} rows left out", f"{count:,}") for name, count in count_left_out(trainer).items()]
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


def count_left_out(trainer: Trainer) -> dict[str, int]:
    """The number of bad rows that were left out of each set; sets that were taken whole are not listed."""
    rows = getattr(getattr(trainer, "datamodule", None), "left_out", {})
    return {name: len(found) for name, found in rows.items() if found}


def describe(options: Any) -> str:
    """Return a dataclass with its fields, or the name of another object's class."""
    return repr(options) if is_dataclass(options) else f"{type(options).__name__}()"


def package_version(name: str) -> str:
    """Return a package's installed version; for this package that of the code which runs."""
    return __version__ if name == "dpo-lightning" else version(name)
