"""One trainer in a process of its own, which makes a step whenever it is told to.

`python -m benchmarks.worker SETTINGS`, settings as JSON. Every line of standard input names the rows of a step; every
line of standard output tells what that step took, from the moment that its batch was handed over until the trainer came
back for the next one.
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

from benchmarks.workers import TRAINER

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

OUT = os.fdopen(os.dup(1), "w")
"""The reports; what libraries print goes to standard error."""


def tell(**values: Any) -> None:
    """Report."""
    OUT.write(json.dumps(values) + "\n")
    OUT.flush()


def peak_mib() -> float:
    """The most that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Orders:
    """A loader whose batches are named by the lines of standard input; asking for the next one ends a step."""

    def __init__(self, collate: Callable[[Sequence[int]], Any], loss: Callable[[], float], model: Any) -> None:
        """Collate rows by their lines; read the last step's loss; count the model's values."""
        self.collate, self.loss = collate, loss
        self.values = sum(parameter.numel() for parameter in model.parameters())

    def __len__(self) -> int:
        """More than there will be."""
        return 10**6

    def __iter__(self) -> Iterator[Any]:
        """Batches until the input ends; the first request says that the trainer is ready."""
        tell(values=self.values)
        for line in sys.stdin:
            batch = self.collate([int(word) for word in line.split()])
            start, cpu = time.perf_counter(), time.process_time()
            yield batch
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            tell(seconds=seconds, cpu_seconds=cpu, peak_mib=peak_mib(), loss=self.loss())


def ours(settings: dict[str, Any]) -> None:
    """`DPOModule` under a Lightning trainer, as `fit` builds it."""
    from functools import partial

    from lightning.pytorch import Callback, Trainer
    from torch.optim import AdamW

    from dpo_lightning import DPOModule, PreferenceDataModule
    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.models.causal_lm import CausalLM
    from dpo_lightning.references.precomputed import Precomputed

    silence_libraries()
    losses = [0.0]

    class Told(PreferenceDataModule):
        """Rows in the order of standard input."""

        def train_dataloader(self) -> Any:
            self.choose_collator(module.takes_trees())
            places = {row.origin.line: place for place, row in enumerate(self.encoded["train"])}
            rows = self.encoded["train"]

            def collate(lines: Sequence[int]) -> Any:
                return self.collator([(rows[places[line]], places[line]) for line in lines])

            return Orders(collate, lambda: losses[0], module.policy)

    class Noting(Callback):
        """Keep the loss, as a logger would."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses[0] = float(outputs["output"].losses.mean())

    class Timed(Precomputed):
        """Tell how long the pass took."""

        def look_up(self, policy: Any, run: Any) -> None:
            start = time.perf_counter()
            super().look_up(policy, run)
            tell(reference_seconds=time.perf_counter() - start, reference_pairs=len(run.rows["train"]))

    policy = CausalLM(settings["model"], gradient_checkpointing=settings["checkpointing"], compile=settings["compiled"])
    reference = Timed(f"{settings['folder']}/reference.safetensors") if settings["precomputed"] else None
    optimizer = partial(AdamW, fused=True)
    module = DPOModule(policy, reference=reference, learning_rate=settings["learning_rate"], optimizer=optimizer)
    trainer = Trainer(
        default_root_dir=settings["folder"],
        devices=1,
        precision="bf16-mixed" if settings["bf16"] else "32-true",
        callbacks=[Noting()],
        **TRAINER,
    )
    data = Told(
        train=settings["rows"],
        batch_size=settings["batch"],
        max_length=settings["max_length"],
        special_tokens="neutralize",
    )
    trainer.fit(module, data)


def trl(settings: dict[str, Any]) -> None:
    """TRL's `DPOTrainer`: its defaults but for what the settings name."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    losses = [0.0]

    class Told(DPOTrainer):
        """Rows in the order of standard input."""

        def get_train_dataloader(self) -> Any:
            def collate(lines: Sequence[int]) -> Any:
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
            tell(reference_seconds=time.perf_counter() - start, reference_pairs=len(dataset))
            return dataset

    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows = Dataset.from_list([json.loads(line) for line in file])
    config = DPOConfig(
        output_dir=settings["folder"],
        use_cpu=True,
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
    Told(model=settings["model"], args=config, train_dataset=rows, processing_class=tokenizer).train()


def main() -> None:
    """Run the side that the settings name until the input ends."""
    settings = json.loads(sys.argv[1])
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as folder:
        {"ours": ours, "trl": trl}[settings["side"]](settings | {"folder": folder})


if __name__ == "__main__":
    main()
