"""Which answer is put to another prompt: never a row's own, the same for every rank, cut where it is too long."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import kto_runs, whole_runs

from dpo_lightning import UnpairedDataModule
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.data.mismatches import match_rows
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import APOZeroUnpairedLoss


def rows_of(prompts, answers=None):
    """Rows of prompts and answers that are told by numbers."""
    answers = range(len(prompts)) if answers is None else answers
    return [
        EncodedUnpaired(Origin("thumbs.jsonl", line), [prompt], (EncodedAnswer([answer, 0], [True, True]),), good=True)
        for line, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1)
    ]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=14))
def test_never_a_rows_own_and_of_another_prompt_where_there_is_one(prompts):
    """Every answer is given once, unless a prompt has more than half of the rows."""
    rows = rows_of(prompts)
    found = match_rows(rows)
    assert found == match_rows(rows)
    assert all(other != own for own, other in enumerate(found))
    most = Counter(prompts).most_common(1)[0][1]
    if most < len(prompts):
        assert all(prompts[own] != prompts[other] for own, other in enumerate(found))
    if most <= len(prompts) / 2:
        assert sorted(found) == list(range(len(prompts)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=10))
def test_another_text_where_there_is_one(rows):
    prompts, answers = zip(*rows, strict=True)
    if len(set(rows)) == 1:
        return
    made = rows_of(prompts, answers)
    if len(set(prompts)) == 1 and len(set(answers)) == 1:
        return
    for own, other in enumerate(match_rows(made)):
        elsewhere = {answer for prompt, answer in rows if prompt != prompts[own]} or set(answers)
        assert answers[other] != answers[own] or elsewhere <= {answers[own]}


def test_rows_of_different_prompts_take_the_answer_before():
    assert match_rows(rows_of("abcd")) == [3, 0, 1, 2]


def test_nothing_to_mismatch_is_an_error():
    with pytest.raises(UserError, match="all rows have the same one") as caught:
        match_rows(rows_of("aa", "bb"))
    assert caught.value.code == ExitCode.DATA
    assert "thumbs.jsonl:1" in str(caught.value)


def prepared(model, folder, loss=kto_runs.KTO, world_size=1, **options):
    data = UnpairedDataModule(*kto_runs.files(folder), batch_size=1, max_length=64, **options)
    data.prepare("fit", kto_runs.kto(model, loss), world_size)
    return data


def test_two_ranks_see_the_pairs_of_one(tiny_llama, tmp_path):
    """Over all batches of all ranks, in any epoch and order: an answer's mismatched one is the same."""

    def seen(world_size):
        data = prepared(tiny_llama, tmp_path, world_size=world_size)
        found = {}
        for rank in range(world_size):
            for epoch in range(2):
                order = data.order(
                    data.encoded["train"], data.collator, shuffle=True, seed=epoch, rank=rank, world_size=world_size
                )
                order.set_epoch(epoch)
                for batch in order:
                    for index in batch:
                        row = data.encoded["train"][max(index, ~index)]
                        found.setdefault(max(index, ~index), set()).add(tuple(row.mismatched.ids))
        return found

    one, two = seen(1), seen(2)
    assert one == two
    assert all(len(answers) == 1 for answers in one.values())
    assert len(one) == 9


def test_only_where_the_loss_asks_for_it(tiny_llama, tmp_path):
    """A data module that is used again with another loss follows it."""
    data = prepared(tiny_llama, tmp_path, APOZeroUnpairedLoss())
    assert {row.mismatched for row in data.encoded["train"]} == {None}
    data.prepare("fit", kto_runs.kto(tiny_llama))
    rows = data.encoded["train"]
    assert [list(row.mismatched.ids) for row in rows] == [list(rows[k - 1].completion.ids) for k in range(len(rows))]


def test_a_mismatched_answer_is_cut_at_max_length(tiny_llama, tmp_path, capsys):
    """Counted and said; the row's own answers stay whole."""
    rows = kto_runs.labelled_rows(6)
    rows[0] |= {"prompt": "so " * 12}
    rows[-1] |= {"completion": " and " * 20}
    path = whole_runs.write_rows(tmp_path, "long", rows)
    whole = UnpairedDataModule(path, batch_size=1, max_length=256)
    whole.prepare("fit", kto_runs.kto(tiny_llama))
    most = max(len(row.prompt_ids) + len(row.completion.ids) for row in whole.encoded["train"])
    assert whole.encoded["train"][0].length > most
    capsys.readouterr()
    data = UnpairedDataModule(path, batch_size=1, max_length=most)
    data.prepare("fit", kto_runs.kto(tiny_llama))
    assert "note: train: 1 of 6 rows have a mismatched answer cut at max_length (16.7%)" in capsys.readouterr().out
    row, before = data.encoded["train"][0], whole.encoded["train"][0]
    assert row.length == most
    assert row.mismatched.cut
    assert list(row.mismatched.ids) == list(before.mismatched.ids[: len(row.mismatched.ids)])
    assert len(row.mismatched.scored) == len(row.mismatched.ids)
    assert [row.completion for row in data.encoded["train"]] == [row.completion for row in whole.encoded["train"]]
    whole_runs.fit(kto_runs.kto(tiny_llama), data, tmp_path, max_steps=1)  # the self-check knows of the cut
    assert "self-check: passed" in capsys.readouterr().out
