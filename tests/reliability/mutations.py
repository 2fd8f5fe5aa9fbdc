"""Random changes of sound files: of their bytes, and of single values in JSON, YAML, safetensors and checkpoints."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any

PIECES = (b"\0", b"\xff\xfe", b"\x1b[2J", b"{", b"[", b'"', b"'", b"../", b"$HOME", b"&a", b"*a",
          b"!!python/name:os.system", b"9" * 400, b"1e999", b"-1", b"null", b"NaN", b"\xed\xa0\x80",
          b"<|im_end|>", b"{{", b"{%", b"\n" * 50)  # fmt: skip
"""What is inserted into a file."""

VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**18, 10**400, 0.5, float("nan"), float("inf"), -0.0),
    *("", "x", "1", "null", "\x1b[2J", "a\nb", "\ud800", "../outside/important.txt", "/dev/zero"),
    *("a" * 5000, "가" * 90),
    *([], {}, [[]], [None], ["x"], [1, 2, 3], {"a": 1}, {"class_path": "os.system"}, [{}], {"": None}),
)
"""What takes the place of a value."""


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """A file with one to four changes: bytes flipped, cut, repeated, moved or inserted."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place, size = chance.randrange(len(made) + 1), chance.choice((1, 1, 4, 64, 1024))
        match chance.randrange(5):
            case 0 if place < len(made):
                made[place] ^= 1 << chance.randrange(8)
            case 1:
                del made[place : place + size]
            case 2:
                made[place:place] = made[place : place + size] * chance.randint(1, 20)
            case 3:
                made[place:place] = chance.choice(PIECES)
            case _:
                part = bytes(made[place : place + size])
                del made[place : place + size]
                other = chance.randrange(len(made) + 1)
                made[other:other] = part
    return bytes(made)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of all values below a value."""
    for key, below in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(below, (dict, list)):
            yield from places(below)


def mutate_value(content: Any, chance: random.Random) -> Any:
    """Plain data in which one or two values are replaced, removed, or named otherwise; `content` is changed."""
    for _ in range(chance.randint(1, 2)):
        found = list(places(content)) if isinstance(content, (dict, list)) else []
        if not found or chance.random() < 0.03:
            return chance.choice(VALUES)
        container, key = chance.choice(found)
        match chance.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[chance.choice(("x", "", "\x1b", "__class__"))] = container.pop(key)
            case 2:
                container[key] = [container[key]]
            case _:
                container[key] = chance.choice(VALUES)
    return content


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """A JSON file with other values."""
    return json.dumps(mutate_value(json.loads(data), chance)).encode()


def mutate_lines(data: bytes, chance: random.Random) -> bytes:
    """JSON lines of which one has other values."""
    lines = [line for line in data.split(b"\n") if line.strip()] or [b"{}"]
    number = chance.randrange(len(lines))
    lines[number] = mutate_json(lines[number], chance)
    return b"\n".join(lines) + b"\n"


def mutate_yaml(data: bytes, chance: random.Random) -> bytes:
    """A YAML file with other values."""
    import yaml

    return yaml.safe_dump(mutate_value(yaml.safe_load(data), chance)).encode("utf-8", "surrogatepass")


def mutate_safetensors(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header has other values."""
    size = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + size], chance)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutate_checkpoint(data: bytes, chance: random.Random) -> bytes:
    """A checkpoint with other values, as another program could have written it."""
    import torch

    content = mutate_value(torch.load(io.BytesIO(data), weights_only=True), chance)
    made = io.BytesIO()
    torch.save(content, made)
    return made.getvalue()


MUTATIONS = {
    "bytes": mutate_bytes,
    "json": mutate_json,
    "lines": mutate_lines,
    "yaml": mutate_yaml,
    "safetensors": mutate_safetensors,
    "checkpoint": mutate_checkpoint,
}
"""Ways to change a file, by the form of the file."""
