"""Conversations in one string whose turns are marked by words, such as `Q:` and `A:`, or by a template's tokens."""

from __future__ import annotations

import re

SPEAKERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Question", ("Answer|Response", "A")),  # `A:` may also be an option of a question
    ("Q", ("A", "Answer|Response")),
    ("Human|User", ("Assistant|AI|Chatbot|Bot|GPT|Model|Agent",)),
    ("Instruction|Prompt|Input", ("Response|Output|Answer|Completion",)),
    ("질문|문", ("답변|답",)),
    ("사용자|유저", ("어시스턴트|도우미|챗봇|AI|봇",)),
    ("问题|問題|问|問", ("答案|回答|答",)),
    ("用户|用戶|ユーザー", ("助手|アシスタント|AI",)),
)
"""Words that begin a question, and those of its answer: a later group only where no line begins with one before."""

MARK = r"(?:#{{2,4}} ?|\*\*)?(?:{})(?:\*\*)?[ \t]?[:：](?:\*\*)?"
SPOKEN = tuple(
    (
        re.compile(rf"\s*+({MARK.format(asked)})", re.IGNORECASE),
        [re.compile(rf"\n[ \t]*({MARK.format(words)})", re.IGNORECASE) for words in answered],
    )
    for asked, answered in SPEAKERS
)

NAMES = (
    r"(system|[Uu]ser|prompter|[Aa]ssistant|model"
    r"|(?:tool|function|observation|ipython|environment|developer)[^<>|\uff5c\n]*)"
)
RENDERED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"<\|im_start\|>{NAMES}(?:\n|<\|im_sep\|>)",
        rf"<\|start_header_id\|>{NAMES}<\|end_header_id\|>",
        rf"<start_of_turn>{NAMES}\n",
        rf"<[|\uff5c]{NAMES}[|\uff5c]>",
        r"(\[/?INST\]|\[TOOL_(?:CALL|RESULT)S\])",
    )
)
"""The beginning of a turn as chat templates write it, also one of a tool."""

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "prompter", "[inst]"), "user"),
    **dict.fromkeys(("assistant", "model", "[/inst]"), "assistant"),
}
"""What these patterns find -> the role; all else are tools."""

OPENED = re.compile(r"(?:\s|<s>|<bos>|<\|(?:begin_of_text|endoftext)\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)*+")
"""What templates write before the first turn."""

ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "<eos>", "</s>"),
    *("<s>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
"""What templates write after a turn; each begins with its only `<`."""

SYSTEM = re.compile(r"\s*+<<SYS>>(.*?)<</SYS>>", re.DOTALL)
"""The system prompt within the first turn between `[INST]` and `[/INST]`."""


def split_marked_turns(text: str) -> list[dict[str, str]]:
    """Split a string into messages at the marks of its turns.

    The result is empty if the string does not begin with a mark, has no answer, or has turns of tools.
    Words are marks at the beginning of a line. A conversation names each side in one way, and answers follow questions:
    other such words are part of what is said.
    """
    return _split_rendered(text) or _split_spoken(text)


def _split_rendered(text: str) -> list[dict[str, str]]:
    start = OPENED.match(text).end()  # type: ignore[union-attr]  # it matches the empty string
    for opening in RENDERED:
        if not opening.match(text, start):
            continue
        found = list(opening.finditer(text, start))
        ends = [*(mark.start() for mark in found[1:]), len(text)]
        turns = [
            {"role": find_role(mark[1]), "content": _strip_ends(text[mark.end() : end])}
            for mark, end in zip(found, ends, strict=True)
        ]
        if system := SYSTEM.match(turns[0]["content"]):
            turns[0]["content"] = turns[0]["content"][system.end() :].strip()
            turns.insert(0, {"role": "system", "content": system[1].strip()})
        roles = [turn["role"] for turn in turns]
        if roles[0] == "assistant" or "assistant" not in roles or not all(roles):
            return []
        return turns[1:] if roles[:2] == ["system", "user"] and not turns[0]["content"] else turns
    return []


def find_role(name: str) -> str:
    """The role that a mark of a turn names; "" for tools."""
    return ROLES.get(name.lower(), "")


def _strip_ends(text: str) -> str:
    text = text.strip()
    while text.endswith(ENDS):
        text = text[: text.rindex("<")].rstrip()
    return text


def _split_spoken(text: str) -> list[dict[str, str]]:
    for asked, answered in SPOKEN:
        first = asked.match(text)
        if first:
            answer = next(filter(None, (words.search(text, first.end()) for words in answered)), None)
            return _alternate(text, first[1], answer[1]) if answer else []
    return []


def _alternate(text: str, asked: str, answered: str) -> list[dict[str, str]]:
    """Split at the marks that change the side; the first one is that of a question."""
    mark = re.compile(rf"(?:\A\s*+|\n[ \t]*)({re.escape(asked)}|{re.escape(answered)})")
    turns: list[dict[str, str]] = []
    start = 0
    for found in mark.finditer(text):
        role = "user" if found[1] == asked else "assistant"
        if turns and role == turns[-1]["role"]:
            continue
        if turns:
            turns[-1]["content"] = text[start : found.start()].strip()
        turns.append({"role": role, "content": ""})
        start = found.end()
    turns[-1]["content"] = text[start:].strip()
    return turns
