"""Judged answers: what is read, and every row that is refused, by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user, written

from dpo_lightning.data.formats.names import JUDGEMENTS
from dpo_lightning.data.kinds.duplicates import check_leak
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode


def thumb(label: object = True, prompt: str = "p", completion: Any = "c", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label, **more}


GOOD, BAD = thumb(True, "Name a colour.", "Blue."), thumb(False, "Name an animal.", "A chair.")


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (True, False),
        (1, 0),
        (1, -1),
        (1.0, -1.0),
        ("true", "FALSE"),
        ("1", "0"),
        ("+1", "-1"),
        ("1.0", "0.0"),
        ("good", "bad"),
        (" Yes ", "no"),
    ],
)
def test_labels(tmp_path: Path, good: object, bad: object) -> None:
    path = jsonl(tmp_path, [thumb(good, "a"), thumb(bad, "b"), thumb(good, "c")])
    examples, warnings = load_examples(UnpairedKind, path)
    assert [example.good for example in examples] == [True, False, True]
    assert warnings == []


GOOD_WORDS = {"true", "1", "good", "yes", "chosen", "desirable", "like", "thumbs_up", "👍", "좋음"}


@pytest.mark.parametrize("word", JUDGEMENTS)
def test_every_verdict_is_read(tmp_path: Path, word: str) -> None:
    """Both ways, so that no word is read as its opposite by accident."""
    opposite = "bad" if JUDGEMENTS[word] else "good"
    examples, _ = load_examples(UnpairedKind, jsonl(tmp_path, [thumb(word, "a"), thumb(opposite, "b")]))
    assert [example.good for example in examples] == [JUDGEMENTS[word], not JUDGEMENTS[word]]
    assert JUDGEMENTS[word] == (word in GOOD_WORDS)


def test_a_csv_file_has_labels_and_weights_as_text(tmp_path: Path) -> None:
    text = "prompt,completion,label,weight\na,b,true,2\nc,d,false,0\ne,f,1,0.5\n"
    examples, warnings = load_examples(UnpairedKind, written(tmp_path, text, "thumbs.csv"))
    assert [(example.good, example.weight) for example in examples] == [(True, 2), (False, 0), (True, 0.5)]
    assert warnings == []


def test_messages_tools_and_groups(tmp_path: Path) -> None:
    rows = [
        thumb(True, [user("u")], [assistant("a")], tools=[{"name": "x"}], group="g"),
        thumb(False, [user("v")], [user("v"), assistant("b")]),
    ]
    examples, warnings = load_examples(UnpairedKind, jsonl(tmp_path, rows))
    assert (examples[0].tools, examples[0].group) == (({"name": "x"},), "g")
    assert (examples[1].prompt, examples[1].completion) == ((user("v"),), (assistant("b"),))
    assert examples[0].weight == 1
    assert any("read once" in warning for warning in warnings)


def test_pairs_are_two_judgements_each(tmp_path: Path) -> None:
    examples, warnings = load_examples(UnpairedKind, jsonl(tmp_path, [PAIR | {"weight": 0}, OTHER]))
    told = [(example.prompt, example.completion, example.good, example.weight) for example in examples]
    assert told == [
        (PAIR["prompt"], PAIR["chosen"], True, 0),
        (PAIR["prompt"], PAIR["rejected"], False, 0),
        (OTHER["prompt"], OTHER["chosen"], True, 1),
        (OTHER["prompt"], OTHER["rejected"], False, 1),
    ]
    assert [example.origin.line for example in examples] == [1, 1, 2, 2]
    assert warnings == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (thumb("perhaps"), "'label' is neither good nor bad"),
        (thumb(None), "'label' is neither good nor bad"),
        (thumb(2), "'label' is neither good nor bad"),
        (thumb(0.5), "'label' is neither good nor bad"),
        (thumb([True]), "'label' is neither good nor bad"),
        ({"prompt": "p", "completion": "c"}, "no column 'label'"),
        (thumb(completion=""), "'completion' is empty"),
        (thumb(completion=None), "'completion' is null"),
        ({"prompt": "p", "label": 1}, "no column 'completion'"),
        (thumb(weight=-1), "'weight' is negative"),
        (thumb(weight="much"), "'weight' is not a finite number"),
        (thumb(prompt=" "), "'prompt' is only white space"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = jsonl(tmp_path, [GOOD, BAD, row])
    refusal(lambda: load_examples(UnpairedKind, path), ExitCode.DATA, said, f"{path}:3")


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [thumb("maybe"), GOOD, thumb(completion=""), BAD, thumb(2, completion=" ")])
    message = refusal(lambda: load_examples(UnpairedKind, path), ExitCode.DATA, f"{path}:1", f"{path}:3", f"{path}:5")
    assert message.count(f"{path}:5") == 2
    assert f"{path}:2" not in message


def test_zero_beside_minus_one_may_be_neither(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [thumb(1, "a"), thumb(0, "b"), thumb(-1, "c")])
    refusal(
        lambda: load_examples(UnpairedKind, path),
        ExitCode.DATA,
        "the label is 0, but other rows have -1",
        f"{path}:2",
    )


@pytest.mark.parametrize("label", [True, False])
def test_one_kind_alone_teaches_nothing(tmp_path: Path, label: bool) -> None:
    path = jsonl(tmp_path, [thumb(label, "a"), thumb(label, "b")])
    kind = "good" if label else "bad"
    refusal(lambda: load_examples(UnpairedKind, path), ExitCode.DATA, f"all 2 answers are {kind}", f"{path}:1")


def test_an_answer_with_both_labels(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [GOOD, BAD, GOOD | {"label": False}])
    refusal(
        lambda: load_examples(UnpairedKind, path),
        ExitCode.DATA,
        f"the other label in {path}:1",
        f"{path}:3",
    )
    examples, warnings = load_examples(UnpairedKind, path, allow=["contradictions"])
    assert len(examples) == 3
    assert warnings == [f"rows that contradict another: 1 ({path}:3 = {path}:1)"]


def test_a_repeated_judgement_is_noted(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [GOOD, BAD, GOOD])
    _, warnings = load_examples(UnpairedKind, path)
    assert warnings == [f"repeated rows: 1 ({path}:3 = {path}:1)"]
    refusal(lambda: load_examples(UnpairedKind, path, strict=True), ExitCode.DATA, "repeated rows", f"{path}:3")


def test_a_prompt_in_both_sets(tmp_path: Path) -> None:
    """With a leak allowed, what the sets judge differently still counts."""
    rows = {"a.jsonl": [GOOD, BAD], "b.jsonl": [thumb(), BAD | {"label": 1}, thumb(0, "q")]}
    train, held_out = (jsonl(tmp_path, rows[name], name) for name in rows)
    sets = [load_examples(UnpairedKind, path)[0] for path in (train, held_out)]
    refusal(
        lambda: check_leak(*sets, UnpairedKind.check),
        ExitCode.DATA,
        "1 of 3 held-out rows",
        f"{held_out}:2",
        f"{train}:2",
    )
    refusal(
        lambda: check_leak(*sets, UnpairedKind.check, allow=["leak"]),
        ExitCode.DATA,
        "the other label",
        f"{held_out}:2",
    )
    assert len(check_leak(*sets, UnpairedKind.check, allow=["leak", "contradictions"])) == 2


def test_other_column_names_are_recognized_or_mapped(tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "answer": row["completion"], "thumb": row["label"]} for row in (GOOD, BAD)]
    path = jsonl(tmp_path, rows)
    names = {"prompt": "question", "completion": "answer", "label": "thumb"}
    examples, _ = load_examples(UnpairedKind, path, columns=names)
    assert load_examples(UnpairedKind, path)[0] == examples
    assert [example.good for example in examples] == [True, False]
    bad = jsonl(tmp_path, [*rows, rows[0] | {"thumb": "so-so"}], "bad.jsonl")
    refusal(
        lambda: load_examples(UnpairedKind, bad, columns=names),
        ExitCode.DATA,
        "'thumb' is neither good nor bad",
        f"{bad}:3",
    )


@pytest.mark.parametrize("read", [PairKind, SFTKind])
def test_other_kinds_of_training_name_the_module(tmp_path: Path, read: Any) -> None:
    path = jsonl(tmp_path, [GOOD, BAD])
    refusal(
        lambda: load_examples(read, path),
        ExitCode.DATA,
        "configs/kto.yaml",
    )


def test_unused_columns_are_told(tmp_path: Path) -> None:
    _, warnings = load_examples(UnpairedKind, jsonl(tmp_path, [GOOD | {"mood": 1, "chosen": "x"}, BAD]))
    assert warnings == ["columns that are not used: mood, chosen"]
