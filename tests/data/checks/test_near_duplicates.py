"""Near-duplicates: what is one and what is not, and a cost that does not grow with the square of equal texts."""

import random

import pytest
from support.planted_rows import make_clean_pairs, make_examples

from dpo_lightning.data.checks import near_duplicates
from dpo_lightning.data.checks.near_duplicates import BANDS, MOST_IN_BUCKET, find_candidates, find_near_pairs, sign
from dpo_lightning.data.checks.normalization import normalize
from dpo_lightning.data.checks.prompts import PromptIndex, find_near_prompts, find_near_rows

BASE = "how do i keep fresh herbs from wilting in the fridge over a long weekend"


@pytest.mark.parametrize(
    "other",
    [
        BASE + " please",
        BASE.replace("wilting", "witling"),
        BASE.replace("herbs", "herb"),
        BASE.replace("long ", ""),
        BASE.replace("in the fridge", "in the big fridge"),
    ],
)
def test_slips_and_additional_words_are_near(other):
    assert find_near_pairs([BASE, "an unrelated text about trains", other]) == [(0, 2)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is the capital of france", "what is the capital of germany"),
        ("how much is 12 times 31 in total", "how much is 12 times 37 in total"),
        (BASE, "which tools does a carpenter need for a table with four legs"),
        ("안녕 0", "안녕 00"),
        ("프랑스의 수도는 어디인지 알려 주세요", "독일의 수도는 어디인지 알려 주세요"),
        ("请告诉我法国的首都在哪里", "请告诉我德国的首都在哪里"),
    ],
)
def test_other_questions_are_not_near(one, other):
    assert find_near_pairs([one, other]) == []


def test_a_context_has_to_be_equal():
    other = BASE + " please"
    assert find_near_pairs([BASE, other], ["be kind", "be kind"]) == [(0, 1)]
    assert find_near_pairs([BASE, other], ["be kind", "be short"]) == []


def test_one_word_of_a_long_text_may_be_replaced_but_not_in_the_slot_of_a_template():
    long = " ".join(f"{word} and" for word in BASE.split())
    assert find_near_pairs([long, long.replace("herbs", "cheese")]) == [(0, 1)]
    words = ["cheese", "bread", "paper", "coffee", "leather", "candles"]
    assert find_near_pairs([long.replace("herbs", word) for word in words]) == []


def test_the_order_of_texts_does_not_change_what_is_found():
    texts = [normalize(row["prompt"]) for row in make_clean_pairs(300)]
    texts += [text + " please" for text in texts[:20]]
    shuffled = random.Random(5).sample(texts, len(texts))

    def found(texts):
        return {frozenset((texts[i], texts[j])) for i, j in find_near_pairs(texts)}

    assert found(texts) == found(shuffled)
    assert len(found(texts)) >= 15


def test_the_estimate_is_close_to_the_similarity():
    texts = [BASE, BASE + " please"]
    (share,) = near_duplicates.estimate(sign(texts), [0], [1])
    assert abs(share - near_duplicates.compute_jaccard(*texts)) < 0.15


def test_no_text_and_one_text():
    assert find_near_pairs([]) == []
    assert find_near_pairs([BASE]) == []


def test_many_similar_texts_are_not_compared_pair_by_pair():
    texts = [f"{BASE} {i}" for i in range(20_000)]
    first, _, crowded = find_candidates(texts, sign(texts))
    assert len(first) <= len(texts) * BANDS * MOST_IN_BUCKET / 2
    assert crowded.mean() > 0.99
    assert find_near_pairs(texts) == []


def test_equal_prompts_are_one_text():
    examples = make_examples([("Same prompt?", f"a {i}", f"b {i}") for i in range(20_000)])
    index = PromptIndex.build(examples)
    assert len(index.rows) == 1
    assert [finding.places for finding in (*find_near_prompts(index), *find_near_rows(index))] == [[], [], [], []]
