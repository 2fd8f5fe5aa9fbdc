"""Batch samplers: the batches are a pure function of seed and epoch, and no rank counts a row twice."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from dpo_lightning.data.row_sizes import RowSizes
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

if TYPE_CHECKING:
    from dpo_lightning.data.collate import Collator

BUCKET_RATIO = 1.2
"""With a token budget, rows are shuffled within buckets whose largest row is at most this many times the smallest."""


class RowDataset(Dataset[Any]):
    """Encoded rows, indexed by whole batches; a filler has a negative index (see `BatchOrder`)."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """The rows of a batch, each with its index; -1 for a filler."""
        return [(self.rows[index], index) if index >= 0 else (self.rows[~index], -1) for index in indices]


class BatchOrder(DistributedSampler[Any], SequentialSampler):
    """Yields the batches of one rank, lists of row indices, in an order drawn from `(seed, epoch)`.

    Every rank has the same number of batches. Rows are divided into groups with one batch for each rank. If the number
    of rows is not a multiple of the ranks, some rows occur twice, so that no rank has to wait for another. Such a
    filler is yielded as `~index`, which is negative, and gets index -1 in the batch: no loss or metric counts it.

    It derives from `DistributedSampler` so that Lightning does not replace it and calls `set_epoch`, and from
    `SequentialSampler` so that `overfit_batches` does not replace it either.
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
        """Compute the number of batches per epoch.

        Args:
            sizes: tokens per row.
            most: the limit of a batch per rank, in rows or tokens depending on the subclass.
            shuffle: draw a new order every epoch.
            seed: the same seed gives the same orders.
            rank: the index of this process.
            world_size: the number of processes.
            longest_first: without `shuffle`, sort rows by length, the longest first: there is less padding, and
                insufficient memory shows at the first batch. Otherwise rows keep the order of the file.
        """
        rows = range(len(sizes))
        super().__init__(rows, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.sizes, self.most = sizes, most
        self.unshuffled = sorted(rows, key=lambda row: -sizes[row]) if longest_first else list(rows)
        self._first = 0
        self._count = self.count_groups()

    @property
    def rows_per_step(self) -> int:
        """Rows of a batch on all ranks together; 0 where it differs from batch to batch."""
        return 0

    @abstractmethod
    def groups(self) -> list[list[int]]:
        """The epoch's rows, fillers included: one list per step of all n ranks; rank r takes items r, r + n, ..."""

    def count_groups(self) -> int:
        """Number of steps of an epoch."""
        return len(self.groups())

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's remaining batches of the epoch."""
        for group in self.groups()[self._first :]:
            yield group[self.rank :: self.num_replicas]

    def __len__(self) -> int:
        """Number of batches of a whole epoch, the same for every epoch and rank."""
        return self._count

    def generator(self) -> torch.Generator:
        """The random generator from which the epoch's order is drawn."""
        return torch.Generator().manual_seed(self.seed + self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch from its first batch, unless it is the one that is being resumed."""
        if epoch != self.epoch:
            self._first = 0
            super().set_epoch(epoch)

    def state(self, batches: int, *, ended: bool) -> dict[str, int]:
        """The state from which `load_state` resumes.

        Args:
            batches: number of batches of this epoch that were trained on.
            ended: whether the trainer takes no more of this epoch: the state is then the start of the next one.

        Returns:
            `epoch`, `batches`, `order` (a checksum) and, where batches have a fixed size, `rows`: their number on all
            ranks, from which a run with another number of ranks goes on.
        """
        place = {"epoch": self.epoch + 1, "batches": 0} if ended else {"epoch": self.epoch, "batches": batches}
        rows = {"rows": place["batches"] * self.rows_per_step} if self.rows_per_step else {}
        return {**place, **rows, "order": self.digest()}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Resume after the batches that were trained on.

        Raises:
            UserError: the state is within an epoch whose batches have changed.
        """
        self.epoch, self._first = state["epoch"], state["batches"]
        changed = state.get("rows", 0) % (self.rows_per_step or 1) != 0
        if self._first and (changed or self.digest() != state["order"]):
            raise UserError(
                ExitCode.CONFIG,
                Problem(
                    "the checkpoint was saved within an epoch, and this run's batches differ from its", "ckpt_path"
                ),
                fix="use the rows, model and devices of the checkpoint's run, or the checkpoint of an epoch's end",
            )

    def digest(self) -> int:
        """A CRC-32 checksum of the epoch's batches on all ranks."""
        return zlib.crc32(repr(self.groups()).encode())


class FixedBatches(BatchOrder):
    """Batches of `most` rows; the last one may be shorter."""

    def groups(self) -> list[list[int]]:
        """Cut one order of all rows into groups of `most` rows per rank."""
        return list(self._cut(0))

    @property
    def rows_per_step(self) -> int:
        """Rows of a batch on all ranks together."""
        return self.most * self.num_replicas

    def digest(self) -> int:
        """A CRC-32 checksum of the epoch's rows in their order, whatever the ranks."""
        return zlib.crc32(repr(self._draw()).encode())

    def _draw(self) -> list[int]:
        return torch.randperm(len(self.sizes), generator=self.generator()).tolist() if self.shuffle else self.unshuffled

    def count_groups(self) -> int:
        """Number of steps of an epoch, without making its groups, which are many for many rows."""
        return -(-self.total_size // (self.most * self.num_replicas))

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's remaining batches of the epoch, each made when it is needed."""
        for group in self._cut(self._first):
            yield group[self.rank :: self.num_replicas]

    def _cut(self, first: int) -> Iterator[list[int]]:
        """Yield the groups of the epoch from the number `first` on."""
        rows, step, order = len(self.sizes), self.rows_per_step, self._draw()
        filled = order + [~order[place % rows] for place in range(rows, self.total_size)]
        for place in range(first * step, self.total_size, step):
            yield filled[place : place + step]


class TokenBatches(BatchOrder):
    """Batches of at most `most` tokens, of rows of similar length; every epoch has the same number of batches.

    A batch of n rows counts as n times its longest row, so that it fits with padding too. Rows are shuffled within
    buckets of similar length, and each counts with the upper bound of its bucket; then the groups are shuffled. The
    numbers of rows in an epoch's batches therefore depend on the sizes alone, and not on the order drawn.
    """

    def groups(self) -> list[list[int]]:
        """Cut the rows, sorted by bucket, into groups that fit; shuffle rows within buckets, then the groups."""
        bounds, generator = bucket_bounds(self.sizes), self.generator()
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
        """Describe how much of `max_tokens` the batches use, and how many rows they have."""
        ranks = range(self.num_replicas)
        held = [sum(row >= 0 for row in group[rank :: len(ranks)]) for group in self.groups() for rank in ranks]
        share = sum(self.sizes) / (self.most * len(held))
        return f"{share:.0%} of max_tokens used, {min(held)} to {max(held)} rows each"


def bucket_bounds(sizes: Sequence[int]) -> list[int]:
    """For each row, the largest size in its bucket; sizes in a bucket differ at most by the factor `BUCKET_RATIO`."""
    bounds: dict[int, int] = {}
    bound = 0
    for size in sorted(set(sizes), reverse=True):
        if size * BUCKET_RATIO < bound or not bounds:
            bound = size
        bounds[size] = bound
    return [bounds[size] for size in sizes]


def check_batch_size(
    encoded: Mapping[str, Sequence[Any]], batch_size: int, max_tokens: int | None, collator: Collator, world_size: int
) -> None:
    """Check that there are enough training rows for one batch on every rank, and that every row fits `max_tokens`.

    Raises:
        UserError: that is not so.
    """
    check_row_count(len(encoded.get("train", ())), 1 if max_tokens else batch_size, world_size)
    long = []
    for several in encoded.values() if max_tokens else ():
        tokens = collator.count_tokens(RowSizes.of(several))
        long += [(int(tokens[place]), several[place]) for place in np.flatnonzero(tokens > max_tokens).tolist()]
    if long:
        raise UserError(
            ExitCode.DATA,
            [
                Problem(f"the row has {tokens} tokens, more than max_tokens={max_tokens}", str(row.origin))
                for tokens, row in long
            ],
            fix=f"--data.max_tokens {max(tokens for tokens, _ in long)} or more, or a lower --data.max_length with "
            "--data.overlong drop or truncate",
        )


def check_row_count(rows: int, batch_size: int, world_size: int = 1) -> None:
    """Raise if there are too few training rows for one batch on every rank; none at all is another error."""
    if 0 < rows < world_size:
        what = Problem(f"{rows} training rows are fewer than the {world_size} devices", "trainer.devices")
        raise UserError(ExitCode.CONFIG, what, fix=f"--trainer.devices {rows} or fewer in all, or more rows")
    if 0 < rows < batch_size * world_size:
        raise UserError(
            ExitCode.DATA,
            f"{rows} training rows are fewer than one batch ({batch_size} x {world_size} devices)",
            fix=f"--data.batch_size {rows // world_size} or more rows",
        )


def describe_steps(trainer: Any, batches: int) -> str:
    """Describe how many optimizer steps a run takes with `batches` per epoch and rank, and what caps them."""
    each = -(-count_training_batches(trainer, batches) // trainer.accumulate_grad_batches)
    steps, most = each * (trainer.max_epochs or 1), trainer.max_steps
    cap = f"; capped at {most} by trainer.max_steps (-1 takes all)" if most >= 0 and not 0 <= steps <= most else ""
    return (f"{steps} steps" if steps >= 0 else "unlimited steps") + cap


def count_training_batches(trainer: Any, batches: int) -> int:
    """Number of an epoch's batches that are trained on; `overfit_batches` and `fast_dev_run` set this limit too."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def prepare_epoch(trainer: Any, order: BatchOrder, collator: Collator) -> None:
    """Log the batches that a token budget gives, and limit a `val_check_interval` that exceeds an epoch to its end."""
    if isinstance(order, TokenBatches):
        steps = describe_steps(trainer, len(order))
        logger.info(f"batches: {type(collator).__name__}, {order.use()}; {len(order)} an epoch, {steps}")
    every, batches = trainer.val_check_interval, count_training_batches(trainer, len(order))
    if isinstance(every, int) and every > batches and trainer.check_val_every_n_epoch is not None:
        logger.warning(f"val_check_interval={every} exceeds the {batches} batches of an epoch: evaluating at its end")
        trainer.val_check_interval = 1.0
