"""`RowLoaders`, the base of `TextDataModule` that makes loaders of encoded rows, and resumes within an epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from dpo_lightning.data.collate import Collator, select_collator
from dpo_lightning.data.examples import Encoded
from dpo_lightning.data.resumable_loader import TrainingLoader
from dpo_lightning.data.row_sizes import RowSizes
from dpo_lightning.data.samplers import (
    BatchOrder,
    FixedBatches,
    RowDataset,
    TokenBatches,
    check_batch_size,
    prepare_epoch,
)
from dpo_lightning.data.watched_loader import SECONDS, WatchedLoader, WatchedTrainingLoader
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.signals import is_installed, shield_worker

DEFAULT_SEED = 42
"""The seed of the shuffled order where Lightning has set none."""


def get_seed() -> int:
    """The seed that Lightning has set, or `DEFAULT_SEED`."""
    return int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED))


class RowLoaders(LightningDataModule):
    """Divides encoded rows into batches, in an order that is drawn from the seed and the epoch.

    Attributes:
        encoded: `train` and `eval` -> the rows.
        collator: how rows become batches.
    """

    batch_size: int
    max_tokens: int | None
    shuffle: bool
    given_collator: Collator | None
    collator: Collator
    num_workers: int

    def __init__(self) -> None:
        """Start without rows."""
        super().__init__()
        self.trainer: Any = None
        self._training: Any = None
        self._place: dict[str, int] | None = None
        self.encoded: dict[str, Sequence[Any]] = {}

    def choose_collator(self, takes_trees: bool) -> None:
        """Set `collator` to the one given, or to a default that depends on the model.

        Raises:
            UserError: the model does not take the batches of the collator that was given.
        """
        self.collator = select_collator(self.given_collator, takes_trees=takes_trees)
        if self.given_collator not in (None, self.collator):
            raise UserError(
                ExitCode.MODEL,
                Problem(f"the model does not take {type(self.given_collator).__name__} batches", "data.collator"),
                fix="--data.collator Padded, or leave it out",
            )

    def train_dataloader(self) -> TrainingLoader:
        """The loader of training batches, in the order drawn from seed and epoch."""
        order = self._order("train", shuffle=self.shuffle and not self.trainer.overfit_batches)
        prepare_epoch(self.trainer, order, self.collator)
        self._training = self._loader("train", order, WatchedTrainingLoader)
        self._training.follow(self.trainer.fit_loop, self._place)
        return self._training

    def state_dict(self) -> dict[str, int]:
        """The place of the training loader (see `TrainingLoader.state_dict`); empty before training."""
        return self._training.state_dict() if self._training else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Store the place for `train_dataloader`, which Lightning calls later."""
        self._place = state_dict

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The loader of held-out batches: longest rows first, or in the file's order if a limit takes only some."""
        return self._held_out_loader(self.trainer.limit_val_batches)

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The loader of the held-out rows for `test`, as for validation."""
        return self._held_out_loader(self.trainer.limit_test_batches)

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The loader of the held-out rows for `predict`, as for validation."""
        return self._held_out_loader(self.trainer.limit_predict_batches)

    def _held_out_loader(self, limit: float) -> DataLoader[Any] | list[Any]:
        if "eval" not in self.encoded:
            return []
        order = self._order("eval", shuffle=False, longest_first=limit == 1.0 and isinstance(limit, float))
        return self._loader("eval", order)

    def order(self, rows: Sequence[Encoded], collator: Collator, **options: Any) -> BatchOrder:
        """Divide encoded rows into batches by `max_tokens` or `batch_size`; `options` are those of `BatchOrder`."""
        sizes = RowSizes.of(rows)
        if self.max_tokens:
            return TokenBatches(collator.count_tokens(sizes).tolist(), self.max_tokens, **options)
        return FixedBatches(sizes.lengths.tolist(), self.batch_size, **options)

    def _order(self, name: str, *, shuffle: bool, longest_first: bool = False) -> BatchOrder:
        module = self.trainer.lightning_module
        self.choose_collator(module.takes_trees())
        if self.given_collator is not None:
            module.check_layout(self.collator)
        check_batch_size(self.encoded, self.batch_size, self.max_tokens, self.collator, self.trainer.world_size)
        return self.order(
            self.encoded[name],
            self.collator,
            shuffle=shuffle,
            seed=get_seed(),
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            longest_first=longest_first,
        )

    def _loader(self, name: str, order: BatchOrder, kind: type[WatchedLoader] = WatchedLoader) -> Any:
        return kind(
            RowDataset(self.encoded[name]),
            batch_size=None,
            sampler=order,
            collate_fn=self.collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=shield_worker if is_installed() else None,
            timeout=SECONDS if self.num_workers else 0,
            generator=torch.Generator(),  # of its own: an iterator would draw from the generator that the model uses
        )
