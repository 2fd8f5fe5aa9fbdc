"""Every format on its sample rows: recognized, converted as expected, and no two formats claim the same rows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from support.format_rows import BY_NAME, KINDS, SAMPLES, load, remove, replace, show, walk
from support.row_files import jsonl

from dpo_lightning.data.formats.recognition import FORMATS, TAKEN, recognize
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.readers.sources import read_files
from dpo_lightning.errors import UserError

JUNK = (None, 7, True, "x", [], {}, [None], [[]], {"x": 1})


def test_every_format_has_sample_rows() -> None:
    assert list(SAMPLES) == list(dict.fromkeys(SAMPLES))
    assert SAMPLES.keys() == {known.name for known in FORMATS}
    assert len(BY_NAME) == len(FORMATS)


@pytest.mark.parametrize("name", SAMPLES)
def test_no_other_format_of_the_same_kind_claims_the_rows(name: str) -> None:
    for row in SAMPLES[name].rows:
        claimed = [known.name for known in FORMATS if known.kind == BY_NAME[name].kind and known.claims(row)]
        assert claimed == [name]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_the_first_row_becomes(name: str, tmp_path: Path) -> None:
    sample, kind = SAMPLES[name], BY_NAME[name].kind
    examples, lines = load(tmp_path, sample.rows, kind)
    assert show(examples[0].prompt) == sample.prompt
    assert [show(text) for text in examples[0].answers] == list(sample.answers)
    assert {field: getattr(examples[0], field) for field in sample.fields} == sample.fields
    own = name in KINDS
    assert [line.partition("(format ")[2].strip(")").split(":")[0] for line in lines if line.startswith("read as")] == (
        [] if own else [name]
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_format_that_is_named_reads_the_same(name: str, tmp_path: Path) -> None:
    sample, kind = SAMPLES[name], BY_NAME[name].kind
    found, named = load(tmp_path, sample.rows, kind), load(tmp_path, sample.rows, kind, format=name)
    assert found == named


@pytest.mark.parametrize("name", SAMPLES)
def test_modules_of_other_kinds_recognize_the_same_format_or_refuse(name: str, tmp_path: Path) -> None:
    rows = list(read_files(jsonl(tmp_path, SAMPLES[name].rows)))
    kind = BY_NAME[name].kind
    for other, taken in TAKEN.items():
        if kind in taken and other != kind:
            assert recognize(rows, other).name == name
            if len(SAMPLES[name].answers) < 3:
                best = load_examples(KINDS[other], jsonl(tmp_path, SAMPLES[name].rows))[0][0]
                assert show(best.prompt) == SAMPLES[name].prompt
                assert show(best.answers[0]) == SAMPLES[name].answers[0]


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_rows_are_refused_or_read_as_before(name: str, tmp_path: Path) -> None:
    """Any value of another type ends in a message, and null never changes which answer is better."""
    sample, kind = SAMPLES[name], BY_NAME[name].kind
    row, *others = sample.rows
    answers = load(tmp_path, sample.rows, kind, format=name)[0][0].answers
    for path in walk(row):
        is_item = isinstance(path[-1], int)
        # Without a turn, the winner of an arena is that of the whole conversation; a list may be shorter.
        keeps = path != ("turn",)
        damaged = [(replace(row, path, junk), keeps and junk is None) for junk in JUNK]
        for changed, same in [*damaged, (remove(row, path), keeps and not is_item)]:
            for options in ({"format": name}, {}):
                with suppress(UserError):
                    first = load(tmp_path, [changed, *others], kind, **options)[0][0]
                    if same and first.origin.line == 1:
                        assert first.answers == answers, (path, options)
