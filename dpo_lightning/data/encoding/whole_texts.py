"""Converts prompt and answer to one sequence of ids: where the answer starts, its EOS, and which ids are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.encoding.kept_texts import check_kept
from dpo_lightning.data.encoding.lockstep import Steps
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.examples import TRAIN, Message, Origin, Text

SHOWN = 40
"""Characters of the end of a generation prompt, and of an end token, that messages quote."""


class RenderedPrompt(NamedTuple):
    """A prompt up to where the model is to answer."""

    ids: list[int]
    turns: tuple[Message, ...] | None = None
    """Its messages; None if it is used as raw text."""
    text: str = ""
    """The messages as the chat template renders them."""


@dataclass(frozen=True)
class RenderedAnswer:
    """Prompt and answer as ids that end with one EOS, and what the template changed."""

    ids: list[int]
    scored: list[bool]
    """Which ids are learned, one value for each; before `Encoder` cuts the prompt off, its ids are included."""
    opening: str = ""
    """The end of the generation prompt if the template omits it before an answer."""
    ending: str = ""
    """The text with which the template ends the answer if it writes no end token."""
    rewritten: bool = False
    """Whether a turn is not learned because the template renders it differently once others follow."""
    respaced: bool = False
    """Whether the template changes white space within a learned turn."""


@dataclass(frozen=True)
class Conversation:
    """Renders the prompt and the answers of one row."""

    renderer: Renderer
    tools: Sequence[Any]
    """Schemas of tools, which the template writes into the prompt."""
    origin: Origin
    """The row, for errors."""
    _guarded: dict[int, tuple[Message, dict[str, Any]]] = field(default_factory=dict)
    """Messages as the template receives them, by the address of the message, which is kept with it."""

    def render_prompt(self, prompt: Text) -> Steps[RenderedPrompt]:
        """Render a prompt as for generation.

        Raises:
            UserError: the template rejects it or omits a part, or it contains a control token.
        """
        turns = self.renderer.to_messages(prompt, "user")
        if turns is None:
            raw = self.renderer.render_raw_prompt(str(prompt), self.tools, self.origin)
            return RenderedPrompt([*self.renderer.raw_prefix, *(yield raw)])
        text = self._render(turns, generation=True)
        ids = yield text
        self.renderer.check_one_bos(ids, self.origin)
        return RenderedPrompt(ids, turns, text)

    def render_answer(self, prompt: Text, start: RenderedPrompt, answer: Text) -> Steps[RenderedAnswer]:
        """Render prompt and answer.

        Args:
            prompt: the prompt.
            start: what `render_prompt` returned for it.
            answer: a text, or messages of which the last is the assistant's.

        Raises:
            UserError: the template rejects them or omits a part, or they contain a control token.
        """
        replies = self.renderer.to_messages(answer, "assistant")
        if start.turns is None or replies is None:
            raw = self.renderer.render_raw(str(prompt), str(answer), self.origin)
            ids = [*self.renderer.raw_prefix, *(yield raw), self.renderer.tokenizer.eos_token_id]
            return RenderedAnswer(ids, [True] * len(ids))
        turns = (*start.turns, *replies)
        text = self._render(turns)
        rendered = yield text
        # With several turns in the answer, the last one begins after the others.
        before = start if len(replies) == 1 else (yield from self.render_prompt(turns[:-1]))
        ids = self._end_with_eos(rendered, count_common(rendered, before.ids))
        ending = self._describe_ending(text) if len(ids) > len(rendered) else ""
        # The end of the generation prompt that differs from the conversation is what the answer is rendered without.
        opening = start.text[count_common(start.text, text) :][-SHOWN:]
        whole = RenderedAnswer(ids, [True] * len(ids), opening, ending)
        if len(replies) > 1:
            known = {len(start.turns): start, len(turns) - 1: before}
            return (yield from self._score_assistant_turns(whole, text, turns, known))
        return replace(whole, respaced=self._check_kept(turns, text, before.text, len(text)))

    def _render(self, turns: Sequence[Message], *, generation: bool = False) -> str:
        self.renderer.check_template(self.origin)
        guarded = [self._guard(turn) for turn in turns]
        return self.renderer.render_guarded(guarded, self._guarded_tools, self.origin, generation)

    def _guard(self, turn: Message) -> dict[str, Any]:
        """Prepare a message for the template once, though several texts contain it."""
        if id(turn) not in self._guarded:
            self._guarded[id(turn)] = turn, self.renderer.guard_message(turn, self.origin)
        return self._guarded[id(turn)][1]

    @cached_property
    def _guarded_tools(self) -> list[Any]:
        tools: list[Any] = self.renderer.control.guard(list(self.tools), self.origin)
        return tools

    def _end_with_eos(self, ids: list[int], start: int) -> list[int]:
        """Remove what a template writes after the last turn (a newline, a second end), or append a missing EOS.

        `start` is the index from which end tokens belong to the last turn.
        """
        tokenizer = self.renderer.tokenizer
        ends = sorted(i for stop in self.renderer.stops for i in find_all(ids, stop, start))
        while len(ends) > 1 and not tokenizer.decode(ids[ends[-2] + 1 : ends[-1]]).strip():
            ends.pop()
        return ids[: ends[-1] + 1] if ends else [*ids, tokenizer.eos_token_id]

    def _describe_ending(self, text: str) -> str:
        """Describe how a text without an end token ends, such as `</s>` in several tokens, and the remedy."""
        _, start, end = text.rstrip().rpartition("<")
        marker = start + end
        if not (start and marker.endswith(">") and len(marker) <= SHOWN and marker.isprintable()):
            return "no end token: give a template that writes one by --data.chat_template FILE"
        ids = self.renderer.encode(marker)
        if len(ids) > 1:
            return f"{marker}, {len(ids)} tokens here: give a template that writes EOS by --data.chat_template FILE"
        return f"{marker}, which ends no generation: add its id {ids[0]} to eos_token_id in generation_config.json"

    def _score_assistant_turns(
        self, whole: RenderedAnswer, text: str, messages: tuple[Message, ...], rendered: Mapping[int, RenderedPrompt]
    ) -> Steps[RenderedAnswer]:
        """Mark only the assistant's turns of the answer as learned.

        Args:
            whole: prompt and answer, with all ids marked as learned.
            text: prompt and answer as the template renders them.
            messages: prompt and answer as messages.
            rendered: rendered prompts by their number of turns, which need not be rendered again.
        """
        ids, scored, rewritten, respaced = whole.ids, [False] * len(whole.ids), False, False
        for i in range(min(rendered), len(messages)):
            if messages[i]["role"] != "assistant" or not messages[i].get(TRAIN, True):
                continue
            before = rendered.get(i) or (yield from self.render_prompt(messages[:i]))
            through, end = ids, len(text)
            if i < len(messages) - 1:
                part = self._render(messages[: i + 1])
                through, end = (yield part), count_common(part, text)
                through = self._end_with_eos(through, count_common(through, before.ids))
                # Ids of a turn that change once others follow are not those that the model would generate.
                if count_common(through, ids) < len(through):
                    rewritten = True
                    continue
            respaced |= self._check_kept(messages[: i + 1], text, before.text, end)
            # Before the turn: what the generation prompt gives is not generated by the model.
            start = count_common(before.ids, ids)
            scored[start : len(through)] = [True] * (len(through) - start)
        return replace(whole, scored=scored, rewritten=rewritten, respaced=respaced)

    def _check_kept(self, turns: Sequence[Message], text: str, prompt: str, end: int) -> bool:
        """Check that the text contains every part of the last turn; return whether white space in it is changed."""
        return check_kept(self._guard(turns[-1]), text, prompt, partial(self._render, turns[:-1]), end, self.origin)


def find_all(ids: list[int], wanted: int, start: int) -> Iterator[int]:
    """Find the places of an id from an index on; several times faster than a loop over the ids."""
    for _ in range(ids[start:].count(wanted)):
        start = ids.index(wanted, start) + 1
        yield start - 1
