"""Arrays and lines: the line of each row, and each way of not being JSON."""

from __future__ import annotations

import pytest
from support.row_files import refusal

from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.json_rows import parse_json_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_window import TextWindow
from dpo_lightning.errors import ExitCode


def read(text: str) -> list[tuple[int, object]]:
    bad = BadRows()
    rows = list(parse_json_rows(TextWindow([text]), Source("f"), bad))
    bad.raise_if_any()
    return rows


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"a": 1}\n{"a": 2}', [1, 2]),
        ('\n\n{"a": 1}\r\n \t\r\n{"a": 2}\r\n\n', [3, 5]),
        ('[{"a": 1}, {"a": 2}]', [1, 1]),
        ('\n[\n {"a":\n 1},\n\n {"a": 2}\n,{"a": 3}]\n', [3, 6, 7]),
        ('[\r\n{"a": 1},\r\n{"a": 2}\r\n]', [2, 3]),
        ("[]", []),
        (" [ \n ] ", []),
        ("", []),
        (" \n\n", []),
        ('{"a": 1}\r{"a": 2}\r\r{"a": 3}', [1, 2, 4]),
        ('[{"a": 1},\r{"a": 2}]', [1, 1]),
        ('{\n"a": 1\n}\n', [1]),
        ('{"a": "\u2028 \u0085"}\n{"a": 2}', [1, 2]),
    ],
)
def test_the_line_where_each_row_begins(text: str, lines: list[int]) -> None:
    assert [line for line, _ in read(text)] == lines


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"a": 1}\n{"a": 2', ["line 2 ends early at f:2", "cut off"]),
        ('{"a": 1}\n{"a": "b', ["line 2 ends early at f:2", "cut off"]),
        ('{"a": 1}\n{"a": \n{"a": 3}', ["line 2 ends early at f:2", "one whole JSON object on each line"]),
        ('{"a": 1}\n{"a" 2}\n{"a": 3}\nno', ["f:2", "f:4"]),
        ('{"a": 1}\n{"a": 2} {"a": 3}', ["extra data", "f:2"]),
        ('{"a": NaN}\n{"a": -Infinity}', ["NaN is not JSON at f:1", "-Infinity is not JSON at f:2"]),
        ('{"a": 1e999}\n{"a": 1}', ["too large at f:1"]),
        ('{"a": ' + "9" * 5000 + '}\n{"a": 1}', ["too many digits at f:1"]),
        ('{"a": 1, "b": 2, "a": 3}\n{"a": 1}', ["duplicate key 'a' at f:1"]),
        ('{"a": "x\ty"}\n{"a": 1}', ["not JSON (invalid control character) at f:1"]),
        ("[" * 100_000, ["nested too deep at f:1"]),
        ('{"a":' * 100_000 + "\n{}", ["nested too deep at f:1"]),
        ('[{"a": 1},\n{"a": 2}\n', ["the array ends early at f:3"]),
        ('[{"a": 1},\n{"a": ', ["the array ends early at f:2"]),
        ('[{"a": 1},\n]', ["f:2", "not JSON (a comma before ])", "fix: remove the comma"]),
        ('[{"a": 1}, ]', ["not JSON (a comma before ]) at f:1"]),
        ('{"a": 1}\n{"a": 2 , }\n', ["not JSON (a comma before }) at f:2", "fix: remove the comma"]),
        ('{\n "a": [1,]\n}', ["not JSON (a comma before ]) at f:1"]),
        ('{\n "a": 1,\n}\n', ["not JSON (a comma before }) at f:1"]),
        ('{"a": 1}\n# more\n{"a": 2}', ["a comment, which JSON does not have at f:2", "fix: remove all comments"]),
        ('{"a": 1} // one\n{"a": 2}', ["a comment, which JSON does not have at f:1\n  | // one"]),
        ('{\n // one\n "a": 1\n}', ["a comment, which JSON does not have at f:1\n  | // one"]),
        ('[{"a": 1}, // one\n{"a": 2}]', ["a comment, which JSON does not have at f:1\n  | // one"]),
        ('[{"a": 1} /* one */,\n{"a": 2}]', ["a comment, which JSON does not have at f:1"]),
        ('[{"a": 1}]\n# end', ["a comment, which JSON does not have at f:2"]),
        ('{"a": 1 "b"}\n{"a": 2}', ["not JSON (expecting ',' delimiter) at f:1", "one whole JSON object on each line"]),
        ('[{"a": 1}\n{"a": 2}]', ["no comma between two rows of the array at f:2"]),
        ('[{"a": 1}]\n\n{"a": 2}\n', ["text after the end of the array at f:3"]),
        ('[{"a": NaN},\n{"a": 1, "a": 2},\n{"a": "\t"},\n{"a": 9}, 1]', ["f:1", "f:2", "f:3"]),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', ["an object over several lines at f:1", "jq -c . f > f.lines.jsonl"]),
        ('{\n "a": 1,\n "b": \n', ["the object ends early at f:1", "cut off"]),
        (
            '{"data": [{"a": NaN},\n{"a": 1, "a": 2},\n{"a": 3}]}',
            ["NaN is not JSON at f:1", "duplicate key 'a' at f:2"],
        ),
        ('{"data": [{"a": 1}],\n"data": [{"a": 2}]}', ["duplicate key 'data' at f:1"]),
        ('{"a": [1, 2],\n"b": [NaN, 2]}', ["NaN is not JSON at f:1"]),
    ],
)
def test_what_is_not_rows_of_json(text: str, parts: list[str]) -> None:
    refusal(lambda: read(text), ExitCode.DATA, *parts)


def test_rows_after_a_bad_element_are_still_read() -> None:
    rows = list(parse_json_rows(TextWindow(['[{"a": NaN},\n{"a": 2}]']), Source("f"), BadRows()))
    assert rows == [(2, {"a": 2})]


def test_one_conversation_is_a_row_and_no_container() -> None:
    assert len(read('{"messages": [{"role": "user", "content": "a"}]}')) == 1


def test_lines_are_arrays() -> None:
    assert read("{}\n[1]") == [(1, {}), (2, [1])]
