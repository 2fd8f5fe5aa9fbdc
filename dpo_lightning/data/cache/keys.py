"""The key of a cache entry: digests of everything that encoded rows depend on."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpo_lightning.data.cache.file_digests import FileDigests, hash_files
from dpo_lightning.data.encoding.digests import digest_of
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.readers.arrow_rows import HUB
from dpo_lightning.data.readers.folders import list_files
from dpo_lightning.data.readers.sources import check_source

LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow", "datasets")
"""Packages whose versions are part of a key, besides Python's: they read, render or tokenize."""

PLACES = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file")
"""Options of a tokenizer that say where it was loaded from; its content is in the key."""


def digest_rows(sets: Mapping[str, str | Sequence[str]], options: Mapping[str, Any], digests: FileDigests) -> str:
    """A digest of the files of sets, of the options that they are read with, and of the code that reads them.

    Args:
        sets: name of a set -> its files, folders, patterns or hub ids.
        options: all options that change which rows are read, and how; plain data.
        digests: computes digests of files.

    Raises:
        UserError: as in `read_files`, a source does not exist.
    """
    sources = {}
    for name, paths in sets.items():
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        sources[name] = [digest_source(os.fspath(path), digests) for path in given]
    return digest_of([sources, options, digest_code(), describe_libraries()])


def digest_source(path: str, digests: FileDigests) -> list[Any]:
    """The name of a source, and the names and digests of its files."""
    check_source(path)
    if path.startswith(HUB):
        return [path, digest_hub(path)]
    return [path, [(file, _digest_file(Path(file), digests)) for file in list_files(path)]]


def _digest_file(path: Path, digests: FileDigests) -> str:
    try:
        return digests.compute(path)
    except OSError:
        return uuid.uuid4().hex  # the reader reports the error


def digest_hub(path: str) -> str:
    """A digest of a data set of the hub: the fingerprint by which `datasets` knows its content."""
    from dpo_lightning.data.readers.arrow_rows import load_hub_set

    fingerprint = getattr(load_hub_set(path), "_fingerprint", None)
    return str(fingerprint or uuid.uuid4().hex)  # without one, an entry is never found again


def digest_tokens(renderer: Renderer, options: Mapping[str, Any]) -> str:
    """A digest of a tokenizer, its chat template, and the options that rows are encoded with.

    Args:
        renderer: converts texts to ids.
        options: further options; plain data.
    """
    tokenizer: Any = renderer.tokenizer
    settings = {name: str(value) for name, value in getattr(tokenizer, "init_kwargs", {}).items() if name not in PLACES}
    return digest_of(
        [
            digest_tokenizer(tokenizer),
            type(tokenizer).__qualname__,
            settings,
            {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            tokenizer.chat_template,
            [renderer.template, renderer.special_tokens, sorted(renderer.end_ids), str(renderer.day)],
            options,
        ]
    )


def digest_tokenizer(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return hash_files(sorted(path for path in Path(folder).rglob("*") if path.is_file()))


@cache
def digest_code() -> str:
    """A digest of this package's modules that read and encode rows."""
    return hash_files(sorted(Path(__file__).parents[1].rglob("*.py")))


def describe_libraries() -> dict[str, str]:
    """The versions of Python and of the libraries that rows pass through; "" for one that is not installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
