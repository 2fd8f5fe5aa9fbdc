"""`doctor --config`: the memory that a run would take, and how much each option saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dpo_lightning import cli
from dpo_lightning.cli import PreferenceCLI
from dpo_lightning.errors import UserError
from dpo_lightning.hardware import choose_precision
from dpo_lightning.log import logger
from dpo_lightning.models.folder_files import is_adapter_folder
from dpo_lightning.models.lora import Lora
from dpo_lightning.models.quantization import Quantization
from dpo_lightning.preference_module import PreferenceModule
from dpo_lightning.references import FrozenAdapter, FrozenCopy, Synced
from dpo_lightning.runs.memory_estimate import Held, MemoryEstimate

GIB = 2**30
LEAST_SAVED = 0.01
"""Share of the total; options that save less are not listed."""


class EstimateCLI(PreferenceCLI):
    """A CLI with the options of `fit` that prints the estimate; it loads no model and writes nothing."""

    def before_instantiate_classes(self) -> None:
        """Choose the precision; `bf16-mixed` if this machine lacks the config's device."""
        config = self.config[self.subcommand]
        if config.trainer.precision is None:
            try:
                config.trainer.precision, _ = choose_precision(str(config.trainer.accelerator))
            except UserError:
                config.trainer.precision = "bf16-mixed"

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Create no trainer, since this machine may lack the config's device."""
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        """Log the estimate and the options that save memory."""
        run = estimate_run(self.model, self.datamodule, self.config[subcommand])
        for line in report(run):
            logger.info(line)


def estimate_run(module: Any, data: Any, config: Any) -> MemoryEstimate:
    """Return the memory estimate of a config's module and data."""
    compared = isinstance(module, PreferenceModule)
    reference, other = find_held(module) if compared else ("", None)
    optimizer = config.model.init_args.get("optimizer")
    name = optimizer if isinstance(optimizer, str) else (optimizer or {}).get("class_path", "torch.optim.AdamW")
    precision = str(config.trainer.precision)
    return MemoryEstimate(
        module.spec.under(precision),
        precision,
        name,
        reference,
        other,
        sequences=data.batch_size * (2 if compared else 1),
        max_length=data.max_length,
        max_tokens=data.max_tokens,
    )


def find_held(module: PreferenceModule) -> tuple[Held, str | None]:
    """Return the kind of weights that the reference holds, and the path of its own model if it has one."""
    given, model = module.given_reference, module.spec
    adapted = model.lora is not None or is_adapter_folder(model.path)
    start: Held = "adapter" if adapted else "copy"
    if given is None:
        begins_as_nothing = model.lora is not None and not is_adapter_folder(model.path) and not model.lora.from_base
        return ("" if module.loss.reference_free or begins_as_nothing else start), None
    if isinstance(given, FrozenCopy):
        return ("model" if given.path else "copy"), given.path
    return (start if isinstance(given, (FrozenAdapter, Synced)) else ""), None


def list_savings(run: MemoryEstimate) -> Iterator[tuple[str, MemoryEstimate]]:
    """Yield flags that save memory, each with the estimate of the run with that flag."""
    model = run.model
    adapted = run.adapts
    lora = model if adapted else replace(model, lora=Lora())
    below: Held = "" if run.reference == "copy" and not adapted else run.reference
    if not adapted:
        yield "--model.policy.lora.r 16", replace(run, model=lora, reference=below)
    if model.quantization is None and (model.lora is None or not model.lora.needs_full_weights):
        whole = replace(lora, dtype="float32", quantization=Quantization(double_quant=True).under(run.precision))
        beside = "" if adapted else " --model.policy.lora.r 16"
        yield f"--model.policy.quantization.bits 4{beside}", replace(run, model=whole, reference=below)
    if not model.gradient_checkpointing:
        checkpointing = replace(model, gradient_checkpointing=True)
        yield "--model.policy.gradient_checkpointing true", replace(run, model=checkpointing)
    if run.reference:
        yield "--model.reference Precomputed", replace(run, reference="")
    if "8bit" not in run.optimizer:
        yield "--model.optimizer bitsandbytes.optim.AdamW8bit", replace(run, optimizer="AdamW8bit")
    if run.max_tokens:
        yield f"--data.max_tokens {run.max_tokens // 2}", replace(run, max_tokens=run.max_tokens // 2)
    elif run.sequences > 2:
        yield "--data.batch_size 1 (and more accumulate_grad_batches)", replace(run, sequences=2)
    if not run.max_tokens and run.max_length > 1:
        half = run.max_length // 2
        yield f"--data.max_length {half}", replace(run, max_length=half)


def report(run: MemoryEstimate) -> Iterator[str]:
    """Yield lines: the estimate, this machine's memory, and what each option saves."""
    total = run.total()
    yield f"memory of this run, precision {run.precision} (an estimate: nothing was loaded)"
    for part in run.parts():
        yield f"  {part.name:<12} {part.bytes / GIB:9.3f} GiB  {part.note}"
    yield f"  {'total':<12} {total / GIB:9.3f} GiB"
    name, there = find_memory()
    room = "" if there >= total else ": this is too little"
    yield f"this machine: {there / GIB:.1f} GiB of {name}{room}"
    saved = [(total - other.total(), flag) for flag, other in list_savings(run)]
    worth = sorted((pair for pair in saved if pair[0] >= LEAST_SAVED * total), reverse=True)
    if worth:
        yield "what saves memory, each by itself:"
    for bytes_, flag in worth:
        yield f"  {bytes_ / GIB:9.3f} GiB  {flag}"


def find_memory() -> tuple[str, float]:
    """Return name and bytes of the memory that a run would use: the smallest GPU's, else the machine's."""
    import torch

    from dpo_lightning.hardware import machine_memory

    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return "GPU memory", min(torch.cuda.get_device_properties(i).total_memory for i in devices)
    return "memory", machine_memory()


def main(argv: list[str]) -> int:
    """Estimate the run that the options of `fit` describe; return the exit code."""
    return cli.main(["fit", *argv], EstimateCLI)
