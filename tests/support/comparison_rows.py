"""Sample rows of comparisons and of scored lists."""

from __future__ import annotations

import json

from support.format_texts import (
    ASKED,
    BAD,
    BAD2,
    CHATS,
    GOOD,
    GOOD2,
    LIST,
    MIDDLE,
    Q2,
    RATINGS,
    TEXTS,
    Q,
    Sample,
    transcript,
    twice,
)
from support.row_files import assistant, user

COMPARISONS = {
    "comparisons": Sample(
        twice({"prompt": Q, "response_a": BAD, "response_b": GOOD, "winner": "b"}, prompt=Q2, winner="a"), **TEXTS
    ),
    "scored-pairs": Sample(
        twice({"prompt": Q, "answer_1": BAD, "answer_2": GOOD, "score_1": -1, "score_2": 0.5}, prompt=Q2), **TEXTS
    ),
    "webgpt": Sample(
        twice(
            {
                "question": {"dataset": "eli5", "id": "x1", "full_text": Q},
                "answer_0": GOOD,
                "answer_1": BAD,
                "score_0": 0.5,
                "score_1": -0.5,
                "tokens_0": {},
            },
            question={"full_text": Q2},
        ),
        **TEXTS,
    ),
    "helpsteer3": Sample(
        twice(
            {
                "domain": "general",
                "language": "english",
                "context": [user(Q)],
                "response1": GOOD,
                "response2": BAD,
                "overall_preference": -2,
                "individual_preference": [{"score": -2, "reasoning": "It names one, as it should."}],
            },
            context=[user(Q2)],
            overall_preference=1,
        ),
        **CHATS,
        fields={"margin": 2.0},
    ),
    "helpsteer2-preference": Sample(
        twice(
            {"prompt": Q, "response_1": BAD, "response_2": GOOD, "preference_strength": 3},
            prompt=f"{Q}\n<extra_id_1>Assistant\n{GOOD}\n<extra_id_1>User\n{Q2}",
        ),
        **CHATS,
        fields={"margin": 3.0},
    ),
    "shp": Sample(
        twice(
            {
                "post_id": "p1",
                "history": Q,
                "human_ref_A": BAD,
                "human_ref_B": GOOD,
                "labels": 0,
                "score_A": 3,
                "score_B": 9,
                "score_ratio": 3.0,
            },
            history=Q2,
            labels=1,
        ),
        **TEXTS,
    ),
    "stack-exchange-paired": Sample(
        twice({"qid": 1, "question": Q, "response_j": GOOD, "response_k": BAD}, question=Q2), **TEXTS
    ),
    "summary-comparisons": Sample(
        twice(
            {
                "info": {"id": "t3", "post": "We saw it.", "title": "The sea", "subreddit": "pics", "article": None},
                "summaries": [{"text": BAD, "policy": "sup1", "note": None}, {"text": GOOD, "policy": "ref"}],
                "choice": 1,
            },
            info={"article": "They saw it too."},
        ),
        "SUBREDDIT: r/pics\n\nTITLE: The sea\n\nPOST: We saw it.\n\nTL;DR:",
        [GOOD, BAD],
    ),
    "arena": Sample(
        twice(
            {
                "model_a": "m-13b",
                "model_b": "n-7b",
                "winner": "model_b",
                "judge": "j1",
                "turn": 1,
                "conversation_a": [user(Q), assistant(BAD), user(Q2), assistant(BAD2)],
                "conversation_b": [user(Q), assistant(GOOD), user(Q2), assistant(GOOD2)],
            },
            turn=2,
        ),
        **CHATS,
    ),
    "arena-texts": Sample(
        twice(
            {
                "id": 3,
                "model_a": "m",
                "model_b": "n",
                "prompt": json.dumps([Q]),
                "response_a": json.dumps([GOOD]),
                "response_b": json.dumps([BAD]),
                "winner_model_a": 1,
                "winner_model_b": 0,
                "winner_tie": 0,
            },
            prompt=json.dumps([Q2]),
        ),
        **CHATS,
    ),
}
LISTS = {
    "scored-lists": Sample(
        twice({"prompt": Q, "responses": [BAD, GOOD, MIDDLE], "ratings": [1, 5, 3]}, prompt=Q2), **LIST
    ),
    "scored-objects": Sample(
        twice(
            {
                "prompt": transcript(Q, ""),
                "answers": [
                    {"answer": text, "model": "m", "rank": rank}
                    for text, rank in ((MIDDLE, 2.0), (GOOD, 1.0), (BAD, 3.0))
                ],
                "turns": 1,
                "good_natured": True,
            },
            prompt=transcript(Q2, ""),
        ),
        ASKED,
        [[("assistant", text)] for text in (GOOD, MIDDLE, BAD)],
    ),
    "ultrafeedback": Sample(
        twice(
            {
                "source": "x",
                "instruction": Q,
                "models": ["m", "n", "o"],
                "correct_answers": ["Blue is right, too."],
                "completions": [
                    {"response": text, "model": "m", "overall_score": score, "fine-grained_score": 1.0, "critique": "-"}
                    for text, score in ((BAD, 2.0), (MIDDLE, 6.5), (GOOD, 8.0))
                ],
            },
            instruction=Q2,
        ),
        **LIST,
    ),
    "kochatgpt": Sample(
        twice(
            {"prompt": Q, "completion_0": MIDDLE, "completion_1": BAD, "completion_2": GOOD, "ranking": [1, 2, 0]},
            prompt=Q2,
        ),
        **LIST,
    ),
    "helpsteer": Sample(
        [
            {"prompt": Q, "response": BAD, "helpfulness": 0, **RATINGS},
            {"prompt": Q, "response": GOOD, "helpfulness": 4, **RATINGS},
            {"prompt": Q2, "response": GOOD2, "helpfulness": 3, **RATINGS},
            {"prompt": Q2, "response": BAD2, "helpfulness": 1, **RATINGS},
        ],
        **CHATS,
    ),
}
