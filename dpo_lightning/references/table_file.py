"""The file format of reference log-probabilities: sorted digests, offsets, sums and token values, memory-mapped.

A file is in the safetensors format. Version 2 is opened in time and memory that do not depend on the number of tokens:
keys, offsets, sums and checksums, a few bytes per answer, are verified by a SHA-256 when the file is opened, and each
block of token values by its own checksum when a value of it is first read. Damaged values are therefore never used;
damage to values that no run reads is not noticed. Version 1 has neither sums nor checksums of blocks: it is verified
as a whole each time it is opened, and becomes version 2 when answers are added.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.references.provenance import Provenance
from dpo_lightning.references.stored_values import BLOCK, KEY, StoredValues, block_checksum, cut_blocks, damaged
from dpo_lightning.references.token_table import MergedTables, TokenTable
from dpo_lightning.special_files import check_not_special

HEADER = "dpo_lightning.reference"
VERSION = 2
PARTS = {1: ("keys", "offsets", "values"), VERSION: ("offsets", "sums", "values", "checksums", "keys")}
"""Names of the tensors of each version; those of version 2 in the order of the file, larger items first."""

DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}


def write(path: Path, tables: Sequence[TokenTable], provenance: Provenance) -> None:
    """Write several tables as one, beside its place, force it to the disk, and rename it there.

    The values are copied one block at a time. The same content gives the same bytes, however it is divided into tables.

    Args:
        path: the file; its folder exists.
        tables: what is stored; of an answer that is in several, the values of the first table are taken.
        provenance: what the values were computed with.

    Raises:
        OSError: as writing does; nothing is left behind then.
        UserError: the file of a table is damaged.
    """
    merged = MergedTables.of(tables)
    count = int(merged.offsets[-1])
    tensors = {
        "offsets": merged.offsets,
        "sums": merged.sums,
        "values": torch.empty(count, dtype=torch.float32, device="meta"),
        "checksums": torch.zeros(-(-count // BLOCK), dtype=torch.int32),
        "keys": torch.from_numpy(merged.keys),
    }
    header: dict[str, object] = {"version": VERSION, **asdict(provenance)}
    blank = encode_header({**header, "checksum": "0" * 64}, tensors)
    with open_atomic(path, "wb") as file:
        file.write(blank)
        for name in PARTS[VERSION]:
            if name == "values":
                for number, block in enumerate(cut_blocks(merged.pieces())):
                    tensors["checksums"][number] = block_checksum(block)
                    file.write(block.data)
            else:
                file.write(tensors[name].numpy().data)
        header["checksum"] = content_digest(header, tensors, unread={"values"})
        file.seek(0)
        file.write(encode_header(header, tensors))  # of the same length


def encode_header(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the beginning of a safetensors file: the length of a JSON text, and the text, padded to 8 bytes."""
    # One entry of metadata: several would have no fixed order.
    content: dict[str, object] = {"__metadata__": {HEADER: json.dumps(header, sort_keys=True)}}
    end = 0
    for name in PARTS[VERSION]:
        tensor = tensors[name]
        start, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        content[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read(path: Path) -> tuple[Provenance, TokenTable]:
    """Open a file: what it was computed with, and its table. Token values stay in the file until they are read.

    Raises:
        UserError: it cannot be read (66), is damaged or of another kind (65).
    """
    try:
        check_not_special(path)
        with path.open("rb"), safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get(HEADER)
            if stored is None:
                raise damaged(path, "it holds no reference log-probabilities")
            header = json.loads(stored)
            version = header.get("version") if isinstance(header, dict) else None
            if not isinstance(version, int) or version not in PARTS:
                raise damaged(path, f"its format is {version!r}, known are {' and '.join(map(str, PARTS))}")
            tensors = {name: file.get_tensor(name) for name in PARTS[version]}  # mapped, not loaded
    except OSError as error:
        problem = Problem(f"the file cannot be read: {error.strerror or error}", KEY, str(path))
        raise UserError(ExitCode.INPUT_MISSING, problem, fix=f"--{KEY} with a file that can be read") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise damaged(path, str(error).partition("\n")[0]) from None
    unread = set() if version == 1 else {"values"}
    if header.pop("checksum", None) != content_digest(header, tensors, unread):
        raise damaged(path, "its checksum does not fit its content")
    names = {field.name for field in fields(Provenance)}
    provenance = Provenance(**{name: str(header.get(name, "")) for name in names})
    values = StoredValues(tensors["values"], tensors.get("checksums"), path)
    return provenance, TokenTable(tensors["keys"].numpy(), tensors["offsets"], values, tensors.get("sums"))


def content_digest(header: Mapping[str, object], tensors: Mapping[str, Tensor], unread: Collection[str] = ()) -> str:
    """Return a SHA-256 of a file's header and tensors; of those in `unread`, only of type and shape."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        if name not in unread:
            digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
