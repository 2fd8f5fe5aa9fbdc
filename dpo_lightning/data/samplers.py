"""The order of rows: a pure function of seed and epoch, shared out to ranks without counting a row twice."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

if TYPE_CHECKING:
    from dpo_lightning.data.collate import Collator

BUCKET_RATIO = 1.2
"""Rows whose tokens differ by no more than this are shuffled among each other where batches have a token budget."""


class Rows(Dataset[Any]):
    """Encoded rows, given by the batch; a filler's index is negative (see `BatchOrder`)."""

    def __init__(self, rows: Sequence[Any]) -> None:
        """Hold the rows."""
        self.rows = rows

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """The rows of a batch, each with its index or -1 for a filler."""
        return [(self.rows[index], index) if index >= 0 else (self.rows[~index], -1) for index in indices]


class BatchOrder(DistributedSampler[Any], SequentialSampler):
    """A rank's batches, lists of row indices, in the order of `(seed, epoch)`: the same number for every rank.

    Rows are shared out by the group, a batch for each rank. Where they do not divide by the ranks, some are given twice
    so that no rank waits for another. Such a filler is yielded as `~index` (negative), and the batch marks it with -1:
    no loss and no metric counts it.
    A `DistributedSampler`, so that Lightning leaves it in place and tells it the epoch; a `SequentialSampler`, so that
    it is left in place by `overfit_batches` as well.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        most: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        longest_first: bool = False,
    ) -> None:
        """Order rows for `rank` of `world_size`.

        Args:
            sizes: tokens per row.
            most: what a batch holds at most, in the unit of the subclass.
            shuffle: draw a new order every epoch.
            seed: the same seed gives the same orders.
            rank: this process.
            world_size: all processes.
            longest_first: rows that are not shuffled come longest first, so that batches hold rows of one length and
                memory that will not do shows at once; else they come as in the file.
        """
        rows = range(len(sizes))
        super().__init__(rows, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.sizes, self.most = sizes, most
        self.unshuffled = sorted(rows, key=lambda row: -sizes[row]) if longest_first else list(rows)
        self._first = 0
        self._count = len(self.groups())

    @abstractmethod
    def groups(self) -> list[list[int]]:
        """The epoch's rows, fillers included: a list for each step of all ranks, of which a rank takes every n-th."""

    def __iter__(self) -> Iterator[Any]:
        """This rank's batches of the epoch that are still to come."""
        for group in self.groups()[self._first :]:
            yield group[self.rank :: self.num_replicas]

    def __len__(self) -> int:
        """Batches of a whole epoch, the same for every epoch and rank."""
        return self._count

    def generator(self) -> torch.Generator:
        """What the epoch's order is drawn from."""
        return torch.Generator().manual_seed(self.seed + self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one that is to be gone on with."""
        if epoch != self.epoch:
            self._first = 0
            super().set_epoch(epoch)

    def state(self, batches: int, *, ended: bool) -> dict[str, int]:
        """What `load_state` goes on from.

        Args:
            batches: batches of this epoch that were trained on.
            ended: whether they were all that the trainer takes of it.
        """
        place = {"epoch": self.epoch + 1, "batches": 0} if ended else {"epoch": self.epoch, "batches": batches}
        return {**place, "order": self.digest()}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on behind the batches that were trained on.

        Raises:
            UserError: in the middle of an epoch, if its batches are no longer the same.
        """
        self.epoch, self._first = state["epoch"], state["batches"]
        if self._first and self.digest() != state["order"]:
            raise UserError(
                ExitCode.CONFIG,
                Problem("the checkpoint lies in the middle of an epoch of other batches", "ckpt_path"),
                fix="give the rows, the model and the devices that its run had, or the checkpoint of an epoch's end",
            )

    def digest(self) -> int:
        """A checksum of the epoch's batches on all ranks."""
        return zlib.crc32(repr(self.groups()).encode())


class FixedBatches(BatchOrder):
    """Batches of `most` rows, the last of them shorter."""

    def groups(self) -> list[list[int]]:
        """Stretches of one order."""
        rows, step = len(self.sizes), self.most * self.num_replicas
        order = torch.randperm(rows, generator=self.generator()).tolist() if self.shuffle else self.unshuffled
        filled = order + [~order[place % rows] for place in range(rows, self.total_size)]
        return [filled[place : place + step] for place in range(0, self.total_size, step)]


class TokenBatches(BatchOrder):
    """Batches of at most `most` tokens, of rows of nearly the same length; every epoch has the same number of them.

    A batch of n rows counts as n times its longest row, so that padding to the longest fits as well. Rows are shuffled
    within buckets, whose upper bound stands for each of theirs, and groups as a whole: how many rows the batches of an
    epoch hold therefore depends on the sizes alone.
    """

    def groups(self) -> list[list[int]]:
        """Stretches of rows of about the same size, in any order if shuffled."""
        bounds, generator = upper_bounds(self.sizes), self.generator()
        order = self.unshuffled
        if self.shuffle:
            order = sorted(torch.randperm(len(order), generator=generator).tolist(), key=lambda row: -bounds[row])
        groups = list(self._cut(order + [~row for row in order[-1:]] * (self.total_size - len(order)), bounds))
        if self.shuffle:
            groups = [groups[place] for place in torch.randperm(len(groups), generator=generator).tolist()]
        return groups

    def _cut(self, order: Sequence[int], bounds: Sequence[int]) -> Iterator[list[int]]:
        group: list[int] = []
        highest = 0
        for place in range(0, len(order), self.num_replicas):
            stretch = order[place : place + self.num_replicas]  # one row for each rank
            bound = max(bounds[max(row, ~row)] for row in stretch)
            highest = max(highest, bound)
            if group and (len(group) // self.num_replicas + 1) * highest > self.most:
                yield group
                group, highest = [], bound
            group += stretch
        if group:
            yield group

    def use(self) -> str:
        """How full the batches are, and how many rows they hold."""
        ranks = range(self.num_replicas)
        held = [sum(row >= 0 for row in group[rank :: len(ranks)]) for group in self.groups() for rank in ranks]
        share = sum(self.sizes) / (self.most * len(held))
        return f"{share:.0%} of max_tokens used, {min(held)} to {max(held)} rows each"


def upper_bounds(sizes: Sequence[int]) -> list[int]:
    """For each row the largest size of its bucket; a bucket's sizes are within `BUCKET_RATIO`."""
    bounds: dict[int, int] = {}
    bound = 0
    for size in sorted(set(sizes), reverse=True):
        if size * BUCKET_RATIO < bound or not bounds:
            bound = size
        bounds[size] = bound
    return [bounds[size] for size in sizes]


def check_shares(
    encoded: Mapping[str, Sequence[Any]], batch_size: int, max_tokens: int | None, collator: Collator, world_size: int
) -> None:
    """A batch larger than the data, or a rank without a row, is a mistake rather than a short epoch.

    Raises:
        UserError: that is so, or a row alone has more than `max_tokens`.
    """
    rows, size = len(encoded.get("train", ())), 1 if max_tokens else batch_size
    if rows and rows < size * world_size:
        raise UserError(
            ExitCode.DATA,
            f"{rows} training rows are fewer than one batch ({size} x {world_size} devices)",
            fix=f"--data.batch_size {rows // world_size} or more rows" if rows >= world_size else "more rows",
        )
    counted = [(collator.tokens(row), row) for several in encoded.values() for row in several] if max_tokens else []
    long = [(tokens, row) for tokens, row in counted if max_tokens and tokens > max_tokens]
    if long:
        raise UserError(
            ExitCode.DATA,
            [
                Problem(f"a row of {tokens} tokens does not fit into {max_tokens}", str(row.origin))
                for tokens, row in long
            ],
            fix=f"--data.max_tokens {max(tokens for tokens, _ in long)} or more, or a lower --data.max_length with "
            "--data.overlong drop or truncate",
        )


def told_steps(trainer: Any, batches: int) -> str:
    """How many optimizer steps a run takes with `batches` an epoch and rank, and what caps them."""
    each = -(-trained_batches(trainer, batches) // trainer.accumulate_grad_batches)
    steps, most = each * (trainer.max_epochs or 1), trainer.max_steps
    cap = f"; capped at {most} by trainer.max_steps (-1 takes all)" if most >= 0 and not 0 <= steps <= most else ""
    return (f"{steps} steps" if steps >= 0 else "steps without end") + cap


def trained_batches(trainer: Any, batches: int) -> int:
    """How many of an epoch's batches are trained on; `overfit_batches` and `fast_dev_run` set this limit as well."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def settle_epoch(trainer: Any, order: BatchOrder, collator: Collator) -> None:
    """Tell what a token budget makes of the rows, and evaluate an epoch at its end where the interval is longer."""
    if isinstance(order, TokenBatches):
        steps = told_steps(trainer, len(order))
        logger.info(f"batches: {type(collator).__name__}, {order.use()}; {len(order)} an epoch, {steps}")
    every, batches = trainer.val_check_interval, trained_batches(trainer, len(order))
    if isinstance(every, int) and every > batches and trainer.check_val_every_n_epoch is not None:
        logger.warning(f"val_check_interval={every} exceeds the {batches} batches of an epoch: its end is evaluated")
        trainer.val_check_interval = 1.0
