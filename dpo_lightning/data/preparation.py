"""`prepare_sets`: takes encoded rows from the cache, or reads, checks and encodes them and puts them there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dpo_lightning.data.cache.cache_folder import StorageError
from dpo_lightning.data.cache.encoded_rows import EncodedRows
from dpo_lightning.data.cache.keys import digest_rows, digest_tokens
from dpo_lightning.data.cache.manifest import Key, Manifest
from dpo_lightning.data.cache.row_cache import Entry, RowCache
from dpo_lightning.data.cache.row_writer import RowWriter
from dpo_lightning.data.encoding.counts import format_unlisted_ends
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder, Overlong
from dpo_lightning.data.examples import Encoded, Example
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.progress import track
from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.left_out import LeftOutRow, format_left_out
from dpo_lightning.log import logger
from dpo_lightning.terminal import quote

HELD_OUT = "eval"
"""The set that is stored with the text of its prompts, which callbacks show."""


class Options(Protocol):
    """The part of `TextDataModule` that rows are prepared by."""

    max_length: int
    overlong: Overlong

    @property
    def files(self) -> Mapping[str, str | Sequence[str] | None]:
        """Name of a set -> its files."""

    @property
    def examples(self) -> MutableMapping[str, Sequence[Any]]:
        """The rows that have been read, by set."""

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What was noticed when they were read, by set."""

    @property
    def bad(self) -> Mapping[str, BadRows]:
        """The bad rows that were found when they were read, by set."""

    @property
    def kind(self) -> type[RowKind]:
        """The kind of the rows."""

    def find_cache(self) -> Path | None:
        """The folder of encoded rows; None encodes them for this run alone."""

    def describe_reading(self) -> dict[str, Any]:
        """What the rows that are read depend on, besides their files."""

    def describe_encoding(self) -> dict[str, Any]:
        """What the ids depend on, besides the rows and the tokenizer."""

    def make_renderer(self, module: Any, names: Sequence[str] = ()) -> Renderer:
        """Read the rows of the named sets, if that was not done yet; then load the module's tokenizer."""

    def encode(self, encoder: Encoder, examples: Sequence[Example]) -> Iterable[Encoded]:
        """Encode examples as token ids one by one."""


def prepare_sets(data: Options, names: Sequence[str], module: Any) -> Entry:
    """Return encoded sets, and log what was noticed when they were read and encoded.

    Args:
        data: the data module, with the files and all options.
        names: the sets, `train` or `eval`.
        module: the `PolicyModule` that has the tokenizer.

    Raises:
        UserError: as in `TextDataModule.prepare`.
    """
    folder = data.find_cache()
    if folder is None:
        return _encode_for_this_run(data, names, data.make_renderer(module, names))
    search = _Search(data, names, module, RowCache(folder))
    try:
        if not search.find():
            with search.cache.reserve(search.rows, search.find) as reserved:
                if reserved:
                    return search.build()
        return _take(search.entry, folder)
    except StorageError as error:
        logger.info(f"note: {quote(str(folder))} cannot be used ({error}): the rows are encoded for this run alone")
    return _encode_for_this_run(data, names, data.make_renderer(module, names))


class _Search:
    """Looks for an entry with some sets, and builds it.

    Attributes:
        cache: the entries.
        rows: the digest of the files and of how they are read.
        entry: what was found.
    """

    entry: Entry

    def __init__(self, data: Options, names: Sequence[str], module: Any, cache: RowCache) -> None:
        """Compute the digest of the files; the tokenizer is loaded only if an entry has it."""
        self.cache = cache
        self._data, self._names, self._module = data, names, module
        self.rows = self._digest()
        self._key: Key | None = None

    def _digest(self) -> str:
        files = {name: self._data.files[name] or () for name in self._names}
        return digest_rows(files, self._data.describe_reading(), self.cache.digests)

    def _make_key(self, renderer: Renderer) -> Key:
        return Key(self.rows, digest_tokens(renderer, self._data.describe_encoding()))

    def find(self) -> bool:
        """Open the entry; False if there is none."""
        if not self.cache.has_rows(self.rows):
            return False
        if self._key is None:  # once, since a process that waits for another looks again and again
            self._key = self._make_key(self._data.make_renderer(self._module))
        entry = self.cache.find(self._key, self._names, self._data.kind.example.encoded)
        if entry is not None:
            self.entry = entry
        return entry is not None

    def build(self) -> Entry:
        """Read and encode the rows, and put them into the cache unless their files change meanwhile.

        Raises:
            StorageError: the cache cannot be written.
        """
        self._data.examples.clear()  # which may have been read before the files got the content of the digest
        renderer = self._data.make_renderer(self._module, self._names)
        if self._digest() == self.rows:
            return _build(self.cache, self._make_key(renderer), self._data, self._names, renderer)
        logger.info("note: a file of rows changed while it was read: the rows are encoded for this run alone")
        return _encode_for_this_run(self._data, self._names, renderer)


def _take(entry: Entry, folder: Path) -> Entry:
    """Log what was logged when an entry was built."""
    for line in entry.lines:
        logger.info(f"note: {line}")
    counts = ", ".join(f"{len(rows):,} {name}" for name, rows in entry.rows.items())
    logger.info(f"rows: {counts}, encoded before, from {quote(str(folder))}")
    return entry


def _build(cache: RowCache, key: Key, data: Options, names: Sequence[str], renderer: Renderer) -> Entry:
    """Encode sets into the cache.

    Raises:
        StorageError: the cache cannot be written.
    """
    partial = cache.make_partial(key)
    try:
        manifest, _ = _encode(data, names, renderer, partial)
        cache.publish(partial, key, manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    entry = cache.find(key, names, data.kind.example.encoded)
    if entry is None:
        raise StorageError("what was written cannot be read")
    entries, size = cache.measure()
    logger.info(
        f"rows: encoded into {quote(str(cache.folder))} for further runs "
        f"({entries:,} entr{'y' if entries == 1 else 'ies'} there, {size / 1e6:,.1f} MB in all)"
    )
    return entry


def _encode_for_this_run(data: Options, names: Sequence[str], renderer: Renderer) -> Entry:
    """Encode sets into files that are gone when the process ends, or in memory if none can be written."""
    try:
        manifest, rows = _encode(data, names, renderer, temporary=True)
    except StorageError as error:
        logger.info(f"note: the rows are encoded in memory: temporary files cannot be written to $TMPDIR ({error})")
        manifest, rows = _encode(data, names, renderer)
    return Entry(rows, manifest.lines, manifest.wrote_date, manifest.left_out)


def _encode(
    data: Options, names: Sequence[str], renderer: Renderer, folder: Path | None = None, *, temporary: bool = False
) -> tuple[Manifest, dict[str, EncodedRows]]:
    """Encode sets into a folder, into temporary files or in memory, and log what was noticed.

    Raises:
        UserError: 65 for bad rows, 67 for the template or the tokenizer.
        StorageError: the folder cannot be written.
    """
    encoded: dict[str, EncodedRows] = {}
    lines: list[str] = []
    left_out: dict[str, list[LeftOutRow]] = {}
    for name in names:
        examples, bad = data.examples[name], data.bad[name]
        encoder = Encoder(renderer, data.max_length, data.overlong, bad=bad)
        kept = name == HELD_OUT
        place, kind = folder and folder / name, data.kind.example.encoded
        writer = RowWriter(place, kind, prompts=kept, temporary=temporary)
        # By origin, since examples may have been dropped, and a subclass may encode them in another order.
        places = {example.origin: place for place, example in enumerate(examples)} if kept else {}
        for row in track(data.encode(encoder, examples), f"encoding {name} rows", len(examples)):
            writer.append(row, examples[places[row.origin]].prompt if kept else None)
        encoded[name] = writer.close()
        left_out[name] = bad.leave_out()
        left = format_left_out(left_out[name], bad.total)
        noticed = [*left, *encoder.counts.format_lines(), *format_unlisted_ends(encoder.counts.ends, renderer)]
        lines += [f"{name}: {line}" for line in noticed]
    for line in lines:
        logger.info(f"note: {line}")
    read = [line for name in names for line in data.notes.get(name, ())]
    files = {name: list(rows.stored.files) for name, rows in encoded.items()}
    return Manifest(files, [*read, *lines], renderer.wrote_date, left_out), encoded
