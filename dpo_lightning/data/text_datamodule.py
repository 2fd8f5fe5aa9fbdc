"""`TextDataModule`, the base of all data modules: reads, checks and encodes rows, and makes the loaders."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn

from dpo_lightning.data.cache import cache_choice
from dpo_lightning.data.collate import Collator, Padded, select_collator
from dpo_lightning.data.encoding.chat_templates import RunDate, choose_template
from dpo_lightning.data.encoding.control_tokens import SpecialTokens
from dpo_lightning.data.encoding.rendering import Renderer, Template
from dpo_lightning.data.encoding.tokenization import Encoder, Overlong
from dpo_lightning.data.examples import Encoded, Example
from dpo_lightning.data.kinds.duplicates import check_leak
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.preparation import prepare_sets
from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.left_out import BAD_ROWS, BadRowsOption, LeftOutRow, write_left_out
from dpo_lightning.data.row_loaders import DEFAULT_SEED, RowLoaders, get_seed
from dpo_lightning.data.samplers import check_batch_size, check_row_count
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

Allow = Literal["contradictions", "leak"]

PACKAGE = "dpo_lightning"

MOST_WORKERS = 64
"""Processes of a loader at most, on a machine of no more CPUs. Rows are encoded already, so that many are of no use,
and each takes memory.
"""


class TextDataModule(RowLoaders):
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
        bad_rows: BadRowsOption = "error",
        allow: list[Allow] | Allow | None = None,
        collator: Collator | None = None,
        num_workers: int = 0,
        limit_rows: int | None = None,
        cache: str | Literal[False] | None = cache_choice.AUTO,
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
            bad_rows: a row that cannot be used is an `error`, or left out (`drop`): counted by reason, and listed in
                `bad_rows.jsonl` in the run's folder. At most half of a set is left out.
            allow: accept `contradictions` (A over B and B over A) or a `leak` (a prompt in both sets), with a warning.
            collator: how rows become batches: `PackedSharedPrefix` where the model takes it, else `Padded`.
            num_workers: processes that collate batches, up to 64 or the number of CPUs; 0 is best, as rows are encoded
                already.
            limit_rows: for trials, use at most as many rows of each set, drawn at random by the seed.
            cache: the folder of encoded rows, which all runs and ranks use; `auto` is `encoded` beside the run's
                folder (from Python, there is none); `none` encodes the rows for each run.
        """
        super().__init__()
        _check_least(batch_size=(batch_size, 1), max_tokens=(max_tokens, 2), max_length=(max_length, 2))
        _check_least(limit_rows=(limit_rows, 1), num_workers=(num_workers, 0))
        if num_workers > (most := max(MOST_WORKERS, os.cpu_count() or 0)):
            what = f"num_workers={num_workers} is more than {most} processes for each device"
            raise UserError(ExitCode.CONFIG, Problem(what, "data.num_workers"), fix="--data.num_workers 0")
        self.files = {"train": train, "eval": eval}
        self.batch_size, self.max_tokens, self.max_length, self.shuffle = batch_size, max_tokens, max_length, shuffle
        self.overlong, self.template, self.special_tokens = overlong, template, special_tokens
        self.chat_template, self.columns, self.strict = chat_template, columns, strict
        self.format, self.first_wins, self.bad_rows = format, first_wins, bad_rows
        self.ignore_columns = [ignore_columns] if isinstance(ignore_columns, str) else ignore_columns or []
        self.template_date = RunDate(template_date)
        self.allow = frozenset([allow] if isinstance(allow, str) else allow or ())
        self.given_collator, self.num_workers = collator, num_workers
        self.limit_rows, self.cache = limit_rows, cache
        self.run_folder: Path | None = None
        self.collator = collator or Padded()
        self.examples: dict[str, Sequence[Any]] = {}
        self.world_size = 1
        """The number of processes, as `prepare` was told."""
        self.notes: dict[str, list[str]] = {}
        self.bad: dict[str, BadRows] = {}
        self.left_out: dict[str, Sequence[LeftOutRow]] = {}
        """The bad rows that were left out of each set."""

    @property
    @abstractmethod
    def kind(self) -> type[RowKind]:
        """The kind of the rows, a class attribute of the subclass."""

    def encode(self, encoder: Encoder, examples: Sequence[Example]) -> Iterable[Encoded]:
        """Encode examples as token ids one by one; a subclass may add what depends on other rows."""
        return encoder.encode_rows(examples)

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
            self.bad[name] = BadRows(drops=self.bad_rows == "drop")
            self.examples[name], notes = load_examples(
                self.kind,
                paths,
                bad=self.bad[name],
                columns_optional=name == "eval" and self._shares_columns,
                **self._reading_options(),
            )
            if name == "eval" and "train" in self.examples:
                sets = self.examples["train"], self.examples["eval"]
                notes += check_leak(*sets, self.kind.check, allow=self.allow)
            if name == "train":
                check_row_count(len(self.examples[name]), 1 if self.max_tokens else self.batch_size, self.world_size)
            self.notes[name] = notes
            for note in notes:
                logger.info(f"note: {note}")

    def _reading_options(self) -> dict[str, Any]:
        """The options of `load_examples`, apart from those that differ between the two sets."""
        return {
            "columns": self.columns,
            "strict": self.strict,
            "allow": sorted(self.allow),
            "format": self.format,
            "ignore_columns": self.ignore_columns,
            "first_wins": self.first_wins,
            "limit_rows": self.limit_rows,
            "seed": get_seed() if self.limit_rows else DEFAULT_SEED,
        }

    @property
    def _shares_columns(self) -> bool:
        """Whether `columns` may be those of the training rows alone."""
        return bool(self.files["train"])

    def describe_reading(self) -> dict[str, Any]:
        """What the rows that are read depend on, besides their files."""
        classes = [type(self).__qualname__, self.kind.__qualname__]
        options = {**self._reading_options(), "bad_rows": self.bad_rows}
        return {**options, "shares_columns": self._shares_columns, "classes": classes}

    def describe_encoding(self) -> dict[str, Any]:
        """What the ids depend on, besides the rows and the tokenizer; a subclass may add to it."""
        return {"max_length": self.max_length, "overlong": self.overlong}

    def find_cache(self) -> Path | None:
        """The folder of encoded rows; None encodes them for this run alone.

        Rows of classes outside this package are never kept: nothing tells which code and options they depend on.

        Raises:
            UserError: as in `choose_folder`.
        """
        given = [[files] if isinstance(files, (str, os.PathLike)) else files or () for files in self.files.values()]
        folder = cache_choice.choose_folder(self.cache, self.run_folder, map(os.fspath, chain.from_iterable(given)))
        if folder is None:
            return None
        for kind in (type(self), self.kind):
            if kind.__module__.partition(".")[0] != PACKAGE:
                logger.info(f"note: {kind.__qualname__} is not of {PACKAGE}: its rows are encoded for each run")
                return None
        return folder

    def setup(self, stage: str) -> None:
        """Prepare the rows of a stage with the tokenizer of the trainer's module; all ranks use the same date."""
        prepare = partial(self.prepare, TrainerFn(stage).value, self.trainer.lightning_module, self.trainer.world_size)
        prepare()
        if self.template_date.adopt(self.trainer.strategy.broadcast):
            self.encoded = {}
            prepare()
        if stage == "fit" and any(self.left_out.values()) and self.trainer.is_global_zero:
            self._list_left_out(Path(self.trainer.default_root_dir))

    def _list_left_out(self, folder: Path) -> None:
        """List the bad rows in a run's folder; `precompute` has none."""
        if folder.is_dir():
            write_left_out(folder / BAD_ROWS, self.left_out)
            logger.info(f"bad rows: listed in {folder / BAD_ROWS}")

    def prepare(self, stage: str, module: Any, world_size: int = 1) -> None:
        """Read, check and encode the rows of a stage that are not yet encoded. No weights are loaded.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
            module: the `PolicyModule` that has the tokenizer and the limit of positions.
            world_size: the number of processes.
        """
        self.check_module(module)
        self.world_size = world_size
        needed = ("train", "eval") if stage == "fit" else ("eval",)
        if not self.files[needed[0]]:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"`{stage}` needs {needed[0]} rows", where=f"data.{needed[0]}"),
                fix=f"--data.{needed[0]} FILE",
            )
        names = [name for name in needed if name not in self.encoded and self.files[name]]
        if names:
            try:
                found = prepare_sets(self, names, module)
            finally:
                self.examples.clear()  # their texts take disk space, and the files may be corrected after an error
            self.encoded.update(found.rows)
            self.left_out |= found.left_out
            self.template_date.log(written=found.wrote_date)
        # It computes the fewest tokens: a row that is too long for it is too long for every collator.
        fewest = select_collator(self.given_collator, takes_trees=True)
        check_batch_size(self.encoded, self.batch_size, self.max_tokens, fewest, world_size)

    def make_renderer(self, module: Any, names: Sequence[str] = ()) -> Renderer:
        """Read and check the rows of the named sets, if that was not done yet; then load the module's tokenizer."""
        self.read_rows(names)
        module.check_length(self.max_length)
        return self.renderer(module.tokenizer, module.end_ids)

    def renderer(self, tokenizer: Any, end_ids: frozenset[int]) -> Renderer:
        """The renderer of texts to tokens; a template file replaces the tokenizer's own template for the export too."""
        choose_template(tokenizer, self.template, self.chat_template)
        day = self.template_date.choose_day(tokenizer.chat_template)
        return Renderer(tokenizer, self.template, self.special_tokens, end_ids, day)


def _check_least(**options: tuple[int | None, int]) -> None:
    """Check that options, given with their least values, are not below these; None is not checked.

    Raises:
        UserError: 64, one is.
    """
    for name, (value, least) in options.items():
        if value is not None and value < least:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"{name}={value} is less than {least}", where=f"data.{name}"),
                fix=f"--data.{name} {least} or more",
            )
