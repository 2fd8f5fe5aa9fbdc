"""Rows of two files, prepared from a cache or not, and comparisons of what came out."""

import json
import os

ROWS = [{"prompt": f"Count to {n}.", "chosen": f"It is {n}.", "rejected": f"No {n}?"} for n in range(10, 40)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def entries(tmp_path):
    """Names of the entries in the folder of encoded rows, which is removed where it would be empty."""
    return sorted(path.name for path in (tmp_path / "cache").glob("*") if path.is_dir())


def same(one, other):
    return one.encoded == other.encoded and set(one.encoded) == {"train", "eval"}


def copy_rows(data):
    """Replace the rows, which a file that is cut would take away, by a copy."""
    data.encoded = {name: list(rows) for name, rows in data.encoded.items()}
    return data


def in_child(work, result):
    """Run `work` in a forked process, which writes what it returns as JSON."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        result.write_text(json.dumps(work()))
        code = 0
    finally:
        os._exit(code)
