"""One trainer in a process of its own, which takes a step for every line of standard input.

`python -m benchmarks.worker SETTINGS`, settings as JSON. A line of standard input names the rows of a step, and the
layout of the batch if it is not the default; a line of standard output is the report of that step, from the moment that
its batch was handed over until the trainer fetched the next one.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import exit_without_memory
from benchmarks.workers import TRAINER

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

OUT = os.fdopen(os.dup(1), "w")
"""The reports; what libraries print goes to standard error."""


def report(**values: Any) -> None:
    """Write a report."""
    OUT.write(json.dumps(values) + "\n")
    OUT.flush()


def peak_mib() -> float:
    """Return the most memory that the process has held; on a GPU, what tensors held since the last call."""
    import torch

    if not torch.cuda.is_initialized():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def read_clock() -> float:
    """Return seconds, after the GPU has finished what was queued."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Orders:
    """A loader whose batches are named by the lines of standard input; asking for the next one ends a step."""

    def __init__(self, collate: Callable[[Sequence[int], str], Any], loss: Callable[[], float], model: Any) -> None:
        """Collate rows by their lines; read the last step's loss; count the model's values."""
        self.collate, self.loss = collate, loss
        self.values = sum(parameter.numel() for parameter in model.parameters())

    def __len__(self) -> int:
        """More than there will be."""
        return 10**6

    def __iter__(self) -> Iterator[Any]:
        """Batches until the input ends; the first request says that the trainer is ready."""
        report(values=self.values)
        for line in sys.stdin:
            words = line.split()
            layout = "" if words[-1].isdigit() else words.pop()
            batch = self.collate([int(word) for word in words], layout)
            start, cpu = read_clock(), time.process_time()
            yield batch
            seconds, cpu = read_clock() - start, time.process_time() - cpu
            report(seconds=seconds, cpu_seconds=cpu, peak_mib=peak_mib(), loss=self.loss())


def ours(settings: dict[str, Any]) -> None:
    """`DPOModule` under a Lightning trainer, as `fit` builds it."""
    from functools import partial

    from lightning.pytorch import Callback, Trainer
    from torch.optim import AdamW

    from dpo_lightning import DPOModule, PreferenceDataModule
    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.data import collate as layouts
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.models.lora import Lora
    from dpo_lightning.references.precomputed import Precomputed

    silence_libraries()
    losses = [0.0]

    class Ordered(PreferenceDataModule):
        """Rows in the order of standard input."""

        def train_dataloader(self) -> Any:
            self.choose_collator(module.takes_trees())
            places = {row.origin.line: place for place, row in enumerate(self.encoded["train"])}
            rows = self.encoded["train"]

            def collate(lines: Sequence[int], layout: str) -> Any:
                collator = getattr(layouts, layout)() if layout else self.collator
                return collator([(rows[places[line]], places[line]) for line in lines])

            return Orders(collate, lambda: losses[0], module.policy)

    class Noting(Callback):
        """Keep the loss, as a logger would."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses[0] = float(outputs["output"].losses.mean())

    class Timed(Precomputed):
        """Report how long the pass took."""

        def look_up(self, policy: Any, run: Any) -> None:
            start = time.perf_counter()
            super().look_up(policy, run)
            report(reference_seconds=time.perf_counter() - start, reference_pairs=len(run.rows["train"]))

    policy = CausalLM(
        settings["model"],
        lora=Lora(r=settings["lora"]) if settings["lora"] else None,
        dtype=settings["dtype"],
        gradient_checkpointing=settings["checkpointing"],
        compile=settings["compiled"],
    )
    reference = Timed(f"{settings['folder']}/reference.safetensors") if settings["precomputed"] else None
    optimizer = partial(AdamW, fused=True)
    module = DPOModule(policy, reference=reference, learning_rate=settings["learning_rate"], optimizer=optimizer)
    trainer = Trainer(
        default_root_dir=settings["folder"],
        accelerator=settings["accelerator"],
        devices=1,
        precision="bf16-mixed" if settings["bf16"] else "32-true",
        callbacks=[Noting()],
        **TRAINER,
    )
    data = Ordered(
        train=settings["rows"],
        batch_size=settings["batch"],
        max_length=settings["max_length"],
        special_tokens="neutralize",
    )
    trainer.fit(module, data)


def trl(settings: dict[str, Any]) -> None:
    """TRL's `DPOTrainer`: its defaults but for what the settings name."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    losses = [0.0]

    class Ordered(DPOTrainer):
        """Rows in the order of standard input."""

        def get_train_dataloader(self) -> Any:
            def collate(lines: Sequence[int], layout: str) -> Any:
                rows: Any = self.train_dataset
                return self.data_collator([rows[line - 1] for line in lines])

            return Orders(collate, lambda: losses[0], self.model)

        def compute_loss(self, *args: Any, **options: Any) -> Any:
            loss = super().compute_loss(*args, **options)
            losses[0] = float((loss[0] if isinstance(loss, tuple) else loss).detach())
            return loss

        def _precompute_ref_logps(self, *args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args, **options)
            report(reference_seconds=time.perf_counter() - start, reference_pairs=len(dataset))
            return dataset

    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows = Dataset.from_list([json.loads(line) for line in file])
    config = DPOConfig(
        output_dir=settings["folder"],
        use_cpu=settings["accelerator"] == "cpu",
        model_init_kwargs={"dtype": settings["dtype"]},
        bf16=settings["bf16"],
        gradient_checkpointing=settings["checkpointing"],
        precompute_ref_log_probs=settings["precomputed"],
        per_device_train_batch_size=settings["batch"],
        max_length=settings["max_length"],
        learning_rate=settings["learning_rate"],
        max_steps=10**6,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    adapter = LoraConfig(r=settings["lora"], target_modules="all-linear") if settings["lora"] else None
    Ordered(
        model=settings["model"], args=config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    ).train()


def main() -> None:
    """Run the side that the settings name until the input ends."""
    settings = json.loads(sys.argv[1])
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as folder, exit_without_memory():
        {"ours": ours, "trl": trl}[settings["side"]](settings | {"folder": folder})


if __name__ == "__main__":
    main()
