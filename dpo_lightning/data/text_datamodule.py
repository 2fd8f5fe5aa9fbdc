"""`TextDataModule`, the base of all data modules: reads, checks and encodes rows, and makes the loaders."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from dpo_lightning.data.collate import Collator, Padded, select_collator
from dpo_lightning.data.encoding.chat_templates import RunDate, read_template
from dpo_lightning.data.encoding.control_tokens import SpecialTokens
from dpo_lightning.data.encoding.counts import format_unlisted_ends
from dpo_lightning.data.encoding.rendering import Renderer, Template
from dpo_lightning.data.encoding.tokenization import Encoder, Overlong
from dpo_lightning.data.examples import Encoded, Example
from dpo_lightning.data.kinds.duplicates import check_leak
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.resumable_loader import TrainingLoader
from dpo_lightning.data.samplers import (
    BatchOrder,
    FixedBatches,
    RowDataset,
    TokenBatches,
    check_batch_size,
    prepare_epoch,
)
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

Allow = Literal["contradictions", "leak"]

DEFAULT_SEED = 42
"""The seed of the shuffled order where Lightning has set none."""


class TextDataModule(LightningDataModule):
    """Base of the data modules: rows are read and checked before a tokenizer or model is loaded, then encoded."""

    def __init__(
        self,
        train: str | list[str] | None = None,
        eval: str | list[str] | None = None,
        batch_size: int = 4,
        max_tokens: int | None = None,
        max_length: int = 1024,
        shuffle: bool = True,
        overlong: Overlong = "error",
        template: Template = "auto",
        chat_template: str | None = None,
        template_date: str | None = None,
        special_tokens: SpecialTokens = "refuse",
        format: str = "auto",
        columns: dict[str, str] | None = None,
        ignore_columns: list[str] | str | None = None,
        first_wins: str | int | None = None,
        strict: bool = False,
        allow: list[Allow] | Allow | None = None,
        collator: Collator | None = None,
        num_workers: int = 0,
    ) -> None:
        """Store the options; nothing is read before `setup`.

        Args:
            train: training rows: a file, several files, a folder of them, or a hub set (`hf://org/name`).
            eval: held-out rows, used by validation, `validate`, `test` and `predict`.
            batch_size: rows per step and device (pairs, for preferences).
            max_tokens: in place of `batch_size`, tokens per step and device: batches of rows of about the same length,
                as many as fit. A row counts with the tokens that the model computes for it, padding included.
            max_length: tokens of the prompt and its longest answer.
            shuffle: draw a new order of the training rows every epoch, from the seed.
            overlong: what to do with a row beyond `max_length`: `error`, `drop`, or `truncate` (removes the oldest
                turns of the prompt first). The numbers of dropped and truncated rows are logged.
            template: `auto` reads a string row as one user turn and one answer where the model has a chat template,
                raw where it has none; `chat` requires a template; `raw` concatenates the strings unchanged.
            chat_template: a file with a Jinja chat template, used in place of the model's own.
            template_date: the date for chat templates that write one, as 2026-11-28; by default, the day of the start.
            special_tokens: `refuse` a control token inside a text, or `neutralize` it (encode it as plain text).
            format: what the rows of the files look like; `auto` recognizes it (data/README.md lists the formats).
            columns: our column name -> the file's, where they differ.
            ignore_columns: columns of the file that are left aside although an answer may depend on their text.
            first_wins: for rows of two answers and a verdict, the value of the verdict with which the first wins.
            strict: treat warnings about rows as errors.
            allow: accept `contradictions` (A over B and B over A) or a `leak` (a prompt in both sets), with a warning.
            collator: how rows become batches: `PackedSharedPrefix` where the model takes it, else `Padded`.
            num_workers: processes that collate batches; 0 is best, since rows are in memory already.
        """
        super().__init__()
        limits = (("batch_size", batch_size, 1), ("max_tokens", max_tokens, 2), ("max_length", max_length, 2))
        for name, value, least in limits:
            if value is not None and value < least:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={value} is less than {least}", where=f"data.{name}"),
                    fix=f"--data.{name} {least} or more",
                )
        self.files = {"train": train, "eval": eval}
        self.batch_size, self.max_tokens, self.max_length, self.shuffle = batch_size, max_tokens, max_length, shuffle
        self.overlong, self.template, self.special_tokens = overlong, template, special_tokens
        self.chat_template, self.columns, self.strict = chat_template, columns, strict
        self.format, self.first_wins = format, first_wins
        self.ignore_columns = [ignore_columns] if isinstance(ignore_columns, str) else ignore_columns or []
        self.template_date = RunDate(template_date)
        self.allow = frozenset([allow] if isinstance(allow, str) else allow or ())
        self.given_collator, self.num_workers = collator, num_workers
        self.collator: Collator = collator or Padded()
        self.trainer: Any = None
        self._training: Any = None
        self._place: dict[str, int] | None = None
        self.examples: dict[str, list[Any]] = {}
        self.encoded: dict[str, list[Any]] = {}

    @property
    @abstractmethod
    def kind(self) -> type[RowKind]:
        """The kind of the rows, a class attribute of the subclass."""

    def encode(self, encoder: Encoder, examples: Sequence[Example]) -> list[Any]:
        """Encode examples as token ids; a subclass may add what depends on other rows."""
        return encoder.encode(examples)

    def check_module(self, module: Any) -> None:
        """Check that the module trains on rows of this kind.

        Raises:
            UserError: 64, it takes another data module.
        """
        data = module.data_module
        if not isinstance(self, data):
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{type(module).__name__} takes {data.__name__}", "data", type(self).__name__),
                fix=f"--data {data.__name__} with rows of its kind; configs/ has a complete recipe for each model",
            )

    def read_rows(self, names: Sequence[str]) -> None:
        """Read and check the rows of the named sets, `train` or `eval`; needs neither tokenizer nor model."""
        for name in names:
            paths = self.files[name]
            if name in self.examples or not paths:
                continue
            self.examples[name], warnings = load_examples(
                self.kind,
                paths,
                columns=self.columns,
                strict=self.strict,
                columns_optional=name == "eval"
                and bool(self.files["train"]),  # columns may be those of the training rows
                allow=self.allow,
                format=self.format,
                ignore_columns=self.ignore_columns,
                first_wins=self.first_wins,
            )
            if name == "eval" and "train" in self.examples:
                sets = self.examples["train"], self.examples["eval"]
                warnings += check_leak(*sets, self.kind.check, allow=self.allow)
            for warning in warnings:
                logger.info(f"note: {warning}")

    def setup(self, stage: str) -> None:
        """Prepare the rows of a stage with the tokenizer of the trainer's module; all ranks use the same date."""
        prepare = partial(self.prepare, TrainerFn(stage).value, self.trainer.lightning_module, self.trainer.world_size)
        prepare()
        if self.template_date.adopt(self.trainer.strategy.broadcast):
            self.encoded = {}
            prepare()

    def prepare(self, stage: str, module: Any, world_size: int = 1) -> None:
        """Read, check and encode the rows of a stage that are not yet encoded. No weights are loaded.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
            module: the `PolicyModule` that has the tokenizer and the limit of positions.
            world_size: the number of processes.
        """
        self.check_module(module)
        needed = ("train", "eval") if stage == "fit" else ("eval",)
        if not self.files[needed[0]]:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"`{stage}` needs {needed[0]} rows", where=f"data.{needed[0]}"),
                fix=f"--data.{needed[0]} FILE",
            )
        self.read_rows(needed)
        module.check_length(self.max_length)
        renderer = self.renderer(module.tokenizer, module.end_ids)
        for name in needed:
            if name in self.encoded or name not in self.examples:
                continue
            encoder = Encoder(renderer, self.max_length, self.overlong)
            self.encoded[name] = self.encode(encoder, self.examples[name])
            for line in [*encoder.counts.format_lines(), *format_unlisted_ends(encoder.counts.ends, renderer)]:
                logger.info(f"note: {name}: {line}")
            self.template_date.log(written=renderer.wrote_date)
        # It computes the fewest tokens: a row that is too long for it is too long for every collator.
        fewest = select_collator(self.given_collator, takes_trees=True)
        check_batch_size(self.encoded, self.batch_size, self.max_tokens, fewest, world_size)

    def renderer(self, tokenizer: Any, end_ids: frozenset[int]) -> Renderer:
        """The renderer of texts to tokens; a template file replaces the tokenizer's own template for the export too."""
        if self.chat_template:
            tokenizer.chat_template = read_template(self.chat_template)
        if self.template == "chat" and not tokenizer.chat_template:
            raise UserError(
                ExitCode.MODEL,
                Problem("the model has no chat template", where="data.template"),
                fix="--data.chat_template FILE, or --data.template raw",
            )
        day = self.template_date.choose_day(tokenizer.chat_template)
        return Renderer(tokenizer, self.template, self.special_tokens, end_ids, day)

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
        self._training = self._loader("train", order, TrainingLoader)
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
        if self.max_tokens:
            return TokenBatches([collator.tokens(row) for row in rows], self.max_tokens, **options)
        return FixedBatches([row.length for row in rows], self.batch_size, **options)

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
            seed=int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED)),
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            longest_first=longest_first,
        )

    def _loader(self, name: str, order: BatchOrder, kind: type[DataLoader[Any]] = DataLoader) -> Any:
        return kind(
            RowDataset(self.encoded[name]),
            batch_size=None,
            sampler=order,
            collate_fn=self.collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # of its own: an iterator would draw from the generator that the model uses
        )
