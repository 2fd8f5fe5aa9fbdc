"""YAML lists of objects."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from support.row_files import OTHER, PAIR, refusal, written

from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode

ROWS = f"""\
# comment
- prompt: {PAIR["prompt"]}
  chosen: "{PAIR["chosen"]}"
  rejected: |-
    {PAIR["rejected"]}

- {{prompt: {OTHER["prompt"]}, chosen: {OTHER["chosen"]}, rejected: {OTHER["rejected"]}}}
"""
DOCUMENTS = "---\n" + ROWS.replace("- {", "---\n- {").replace("- prompt", "prompt").replace("- {", "{").replace(
    "\n  ", "\n"
)


@pytest.mark.parametrize("name", ["rows.yaml", "rows.yml", "rows.yaml.gz"])
def test_a_list(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, gzip.compress(ROWS.encode()) if name.endswith(".gz") else ROWS, name)
    assert [(str(row.origin), row.values) for row in read_rows(path)] == [(f"{path}:2", PAIR), (f"{path}:7", OTHER)]


def test_documents_and_a_list_in_a_mapping(tmp_path: Path) -> None:
    assert [row.values for row in read_rows(written(tmp_path, DOCUMENTS, "rows.yaml"))] == [PAIR, OTHER]
    path, notes = written(tmp_path, "version: 1\nrows:\n" + ROWS, "rows.yaml"), []
    rows = list(read_rows(path, notes=notes))
    assert [(row.origin.line, row.values) for row in rows] == [(4, PAIR), (9, OTHER)]
    assert notes == [f"{path}: rows are in 'rows'"]


def test_the_types_of_values(tmp_path: Path) -> None:
    text = (
        "- {a: no, b: 1, c: 1.5, d: ~, e: 2020-01-01, f: '1', no: x, 1: y, g: [yes, {h: i}], j: !!binary aGk=, k: ''}\n"
    )
    (row,) = read_rows(written(tmp_path, text, "rows.yaml"))
    assert row.values == {
        "a": False, "b": 1, "c": 1.5, "d": None, "e": "2020-01-01", "f": "1", "no": "x", "1": "y",
        "g": [True, {"h": "i"}], "j": "aGk=", "k": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("- a: 1\n- a: [1\n- b", ["not YAML", "rows.yaml:"]),
        ("- a: 1\n\tb: 2", ["not YAML", "rows.yaml:2"]),
        ("- a: 1\n- a: 1\n  a: 2\n- {b: 1, b: 2}", ["key 'a' at", "yaml:2", "key 'b' at", "yaml:4"]),
        ("- &x {a: 1}\n- *x", ["alias", "rows.yaml:1"]),
        ("- &x {a: *x}", ["alias", "rows.yaml:1"]),
        ("- a: &x [1]\n- b: {<<: *x}", ["rows.yaml:2"]),
        ("- a: .nan\n- a: 1", ["not a finite number", "rows.yaml:1"]),
        ("- ? [a]\n  : b", ["a key is not text", "rows.yaml:1"]),
        ("- " + "[" * 5000, ["not YAML", "rows.yaml:"]),
        ("- " + "[" * 300 + "]" * 300, ["rows.yaml:1"]),
        ("- a: \x07", ["not YAML", "rows.yaml:1"]),
        ("- text\n- a: 1", ["not an object", "rows.yaml:1"]),
        ("a: [{x: 1}]\nb: [{x: 1}]", ["rows are in 'a', 'b'", "rows.yaml:1"]),
        ("just text", ["not an object", "rows.yaml:1"]),
        ("- a: 1__2:99\n- !!int x", ["rows.yaml"]),
        ("", ["no rows"]),
        ("[]", ["no rows"]),
    ],
)  # fmt: skip
def test_what_is_not_rows(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = written(tmp_path, text, "rows.yaml")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, *parts)


def test_tags_of_python_are_text(tmp_path: Path) -> None:
    (row,) = read_rows(written(tmp_path, "- a: !!python/object/apply:os.system ['touch /tmp/never']\n", "rows.yaml"))
    assert row.values == {"a": ["touch /tmp/never"]}


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    lines = ["- a0: &a0 [x, x]"] + [f"  a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    path = written(tmp_path, "\n".join(lines), "rows.yaml")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "alias")
