"""Prompt and answer together as ids: where the answer begins, that it ends with one EOS, and which ids are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from dpo_lightning.data.encoding.kept_texts import check_kept, common_length
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.examples import TRAIN, Message, Origin, Text

SHOWN = 40
"""Characters of a generation prompt's end that are shown, and of an end token at most."""


class Asked(NamedTuple):
    """A prompt up to where the model is to answer."""

    ids: list[int]
    turns: tuple[Message, ...] | None = None
    """Its messages; None where it is read raw."""
    text: str = ""
    """The messages as rendered."""


@dataclass(frozen=True)
class Whole:
    """Prompt and answer together as ids, ended by one EOS, and what the template made of them."""

    ids: list[int]
    scored: list[bool]
    """Which are the author's own."""
    opening: str = ""
    """The end of the generation prompt, where the answer is rendered without it."""
    ending: str = ""
    """What the template ends the answer with in place of an end token."""
    rewritten: bool = False
    """Whether a turn is not learned since the template writes it otherwise once others follow."""
    respaced: bool = False
    """Whether the template changes white space within a learned turn."""


@dataclass(frozen=True)
class Conversation:
    """Renders the texts of one row."""

    renderer: Renderer
    tools: Sequence[Any]
    origin: Origin

    def asked(self, prompt: Text) -> Asked:
        """The prompt as generation has it."""
        turns = self.renderer.messages(prompt, "user")
        if turns is None:
            return Asked(self.renderer.prompt_ids(prompt, self.tools, self.origin))
        text = self._text(turns, generation=True)
        ids = self.renderer.encode(text)
        self.renderer.check_one_bos(ids, self.origin)
        return Asked(ids, turns, text)

    def whole(self, prompt: Text, asked: Asked, answer: Text) -> Whole:
        """Prompt and answer.

        Raises:
            UserError: the template refuses them, or leaves out a part of the answer.
        """
        replies = self.renderer.messages(answer, "assistant")
        if asked.turns is None or replies is None:
            ids = self.renderer.raw_ids(str(prompt), self.renderer.strip_eos(str(answer)), self.origin)
            ids.append(self.renderer.tokenizer.eos_token_id)
            return Whole(ids, [True] * len(ids))
        said = (*asked.turns, *replies)
        text = self._text(said)
        rendered = self.renderer.encode(text)
        before = asked if len(replies) == 1 else self.asked(said[:-1])
        ids = self._ended(rendered, common_prefix(rendered, before.ids))
        ending = self._ending(text) if len(ids) > len(rendered) else ""
        whole = Whole(ids, [True] * len(ids), asked.text[common_length(asked.text, text) :][-SHOWN:], ending)
        if len(replies) > 1:
            return self._assistant_turns(whole, text, said, {len(asked.turns): asked, len(said) - 1: before})
        return replace(whole, respaced=self._check_kept(said, text, before.text, len(text)))

    def _text(self, turns: Sequence[Message], *, generation: bool = False) -> str:
        return self.renderer.chat_text(turns, self.tools, self.origin, add_generation_prompt=generation)

    def _ended(self, ids: list[int], start: int) -> list[int]:
        """Cut what a template writes after the last turn (a newline, a second end), or add the EOS it left out."""
        tokenizer = self.renderer.tokenizer
        ends = [i for i in range(start, len(ids)) if ids[i] in self.renderer.stops]
        while len(ends) > 1 and not tokenizer.decode(ids[ends[-2] + 1 : ends[-1]]).strip():
            ends.pop()
        return ids[: ends[-1] + 1] if ends else [*ids, tokenizer.eos_token_id]

    def _ending(self, text: str) -> str:
        """What stands at the end of a text where no end token does, and the remedy."""
        _, start, end = text.rstrip().rpartition("<")
        marker = start + end
        if not (start and marker.endswith(">") and len(marker) <= SHOWN and marker.isprintable()):
            return "no end token: give a template that writes one by --data.chat_template"
        ids = self.renderer.encode(marker)
        if len(ids) > 1:
            return f"{marker}, {len(ids)} tokens here: give a template that writes EOS by --data.chat_template"
        return f"{marker}, which ends no generation: add its id {ids[0]} to eos_token_id in generation_config.json"

    def _assistant_turns(
        self, whole: Whole, text: str, messages: tuple[Message, ...], rendered: Mapping[int, Asked]
    ) -> Whole:
        """The same, with only the assistant's turns of the answer learned.

        Args:
            whole: prompt and answer with everything learned.
            text: the same as rendered.
            messages: the same as turns.
            rendered: number of turns -> these turns as a prompt, for the prompt itself and for all turns but the last.
        """
        ids, scored, rewritten, respaced = whole.ids, [False] * len(whole.ids), False, False
        for i in range(min(rendered), len(messages)):
            if messages[i]["role"] != "assistant" or not messages[i].get(TRAIN, True):
                continue
            before, through, end = rendered.get(i) or self.asked(messages[:i]), ids, len(text)
            if i < len(messages) - 1:
                said = self._text(messages[: i + 1])
                through, end = self.renderer.encode(said), common_length(said, text)
                through = self._ended(through, common_prefix(through, before.ids))
                if common_prefix(through, ids) < len(through):
                    rewritten = True
                    continue
            respaced |= self._check_kept(messages[: i + 1], text, before.text, end)
            start = common_prefix(before.ids, ids)
            scored[start : len(through)] = [True] * (len(through) - start)
        return replace(whole, scored=scored, rewritten=rewritten, respaced=respaced)

    def _check_kept(self, said: Sequence[Message], text: str, asked: str, end: int) -> bool:
        """Refuse a template that leaves out a part of the last of these turns; whether white space in it differs."""
        reply = self.renderer.guarded_message(said[-1], self.origin)
        return check_kept(reply, text, asked, partial(self._text, said[:-1]), end, self.origin)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
