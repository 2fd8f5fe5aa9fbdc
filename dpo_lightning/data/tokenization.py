"""Examples into token ids: one prompt for both answers, EOS once, and a policy for what is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dpo_lightning.data.rendering import Renderer
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.types import (
    EncodedAnswer,
    EncodedPair,
    EncodedSFT,
    Message,
    Origin,
    PreferenceExample,
    SFTExample,
    Text,
)

Overlong = Literal["error", "drop", "truncate"]


@dataclass
class Counts:
    """What happened to rows on their way to tokens; printed, never silent."""

    read: int = 0
    dropped: int = 0
    shortened_prompts: int = 0
    cut_answers: int = 0
    crossing: int = 0
    last_turn_only: int = 0
    too_long: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each thing that happened to some rows."""
        told = {
            "dropped: longer than max_length": self.dropped,
            "lost the start of the prompt to max_length": self.shortened_prompts,
            "have an answer cut at max_length, without its EOS": self.cut_answers,
            "merge prompt and answer in a token: the answer begins at the last common token": self.crossing,
            "have a template that rewrites earlier turns: only the last answer is learned": self.last_turn_only,
        }
        return [f"{n} of {self.read} rows {what} ({n / self.read:.1%})" for what, n in told.items() if n]


@dataclass
class Encoder:
    """Turns examples into ids. `counts` tells what happened to them."""

    renderer: Renderer
    max_length: int
    overlong: Overlong = "error"
    counts: Counts = field(default_factory=Counts)

    def pairs(self, examples: Sequence[PreferenceExample]) -> list[EncodedPair]:
        """Encode pairs; raises `UserError` naming every row that is too long where that is an error."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, (example.chosen, example.rejected), example.tools)
            if fitted is not None:
                prompt_ids, (chosen, rejected) = fitted
                encoded.append(EncodedPair(example.origin, prompt_ids, chosen, rejected))
        self._finish(len(encoded))
        return encoded

    def demonstrations(self, examples: Sequence[SFTExample]) -> list[EncodedSFT]:
        """Encode demonstrations, as `pairs` does."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, (example.completion,), example.tools)
            if fitted is not None:
                prompt_ids, (completion,) = fitted
                encoded.append(EncodedSFT(example.origin, prompt_ids, completion))
        self._finish(len(encoded))
        return encoded

    def _fit(
        self, origin: Origin, prompt: Text, answers: Sequence[Text], tools: Sequence[Any]
    ) -> tuple[list[int], list[EncodedAnswer]] | None:
        """Ids that fit into `max_length`, or None for a row that is left out."""
        self.counts.read += 1
        prompt_ids, encoded = self._encode(origin, prompt, answers, tools)
        length = len(prompt_ids) + max(len(answer.ids) for answer in encoded)
        if length <= self.max_length:
            return prompt_ids, encoded
        if self.overlong == "drop":
            self.counts.dropped += 1
            return None
        if self.overlong == "error":
            self.counts.too_long.append(
                Problem(
                    f"prompt and longer answer have {length} tokens, max_length is {self.max_length}",
                    str(origin),
                )
            )
            return None
        self.counts.shortened_prompts += 1
        while length > self.max_length and (shorter := without_oldest_turn(prompt)) is not None:
            prompt = shorter
            prompt_ids, encoded = self._encode(origin, prompt, answers, tools)
            length = len(prompt_ids) + max(len(answer.ids) for answer in encoded)
        return self._cut(prompt_ids, encoded)

    def _cut(self, prompt_ids: list[int], answers: list[EncodedAnswer]) -> tuple[list[int], list[EncodedAnswer]]:
        """Cut the prompt's start down to half of the room at most, then the end of an answer that is still too long."""
        longest = max(len(answer.ids) for answer in answers)
        prompt_room = max(self.max_length - longest, self.max_length // 2)
        prompt_ids = prompt_ids[-prompt_room:]
        room = self.max_length - len(prompt_ids)
        kept = [
            answer
            if len(answer.ids) <= room
            else replace(answer, ids=answer.ids[:room], scored=answer.scored[:room], cut=True)
            for answer in answers
        ]
        self.counts.cut_answers += any(answer.cut for answer in kept)
        return prompt_ids, kept

    def _encode(
        self, origin: Origin, prompt: Text, answers: Sequence[Text], tools: Sequence[Any]
    ) -> tuple[list[int], list[EncodedAnswer]]:
        prompt_ids = self.renderer.prompt_ids(prompt, tools, origin)
        wholes = [self._whole(origin, prompt, answer, tools) for answer in answers]
        # A template or a tokenizer may write the border otherwise once an answer follows: both sides then begin
        # at the last token that prompt and answers agree on, so that they are conditioned on the same ids.
        border = min(common_prefix(prompt_ids, ids) for ids, _ in wholes)
        self.counts.crossing += border < len(prompt_ids)
        return prompt_ids[:border], [EncodedAnswer(ids[border:], scored[border:]) for ids, scored in wholes]

    def _whole(self, origin: Origin, prompt: Text, answer: Text, tools: Sequence[Any]) -> tuple[list[int], list[bool]]:
        """Ids of prompt and answer together, ended by one EOS, and which of them the answer's author wrote."""
        turns = self.renderer.messages(prompt, "user")
        replies = self.renderer.messages(answer, "assistant")
        if turns is None or replies is None:
            ids = self.renderer.raw_ids(str(prompt), self.renderer.strip_eos(str(answer)), origin)
            ids.append(self.renderer.tokenizer.eos_token_id)
            return ids, [True] * len(ids)
        whole = (*turns, *replies)
        ids = self.renderer.chat_ids(whole, tools, origin, add_generation_prompt=False)
        ids = self._ended(
            ids,
            common_prefix(ids, self.renderer.chat_ids(whole[:-1], tools, origin, add_generation_prompt=True)),
        )
        if len(replies) == 1:
            return ids, [True] * len(ids)
        return ids, self._assistant_turns(ids, whole, len(turns), tools, origin)

    def _ended(self, ids: list[int], start: int) -> list[int]:
        """Cut what a template writes after the end of the last turn (a newline), or add the EOS it left out."""
        ends = [i for i in range(start, len(ids)) if ids[i] in self.renderer.stops]
        return ids[: ends[-1] + 1] if ends else [*ids, self.renderer.tokenizer.eos_token_id]

    def _assistant_turns(
        self, ids: list[int], messages: Sequence[Message], first: int, tools: Sequence[Any], origin: Origin
    ) -> list[bool]:
        """Flags of the assistant's turns from message `first` on: other turns of an answer are never learned."""
        scored = [False] * len(ids)
        for i in range(first, len(messages)):
            if messages[i]["role"] != "assistant":
                continue
            before = self.renderer.chat_ids(messages[:i], tools, origin, add_generation_prompt=True)
            last = i == len(messages) - 1
            through = (
                ids
                if last
                else self._ended(
                    self.renderer.chat_ids(messages[: i + 1], tools, origin, add_generation_prompt=False),
                    len(before),
                )
            )
            if not last and common_prefix(through, ids) < len(through):
                self.counts.last_turn_only += 1
                continue
            start = common_prefix(before, ids)
            scored[start : len(through)] = [True] * (len(through) - start)
        return scored

    def _finish(self, kept: int) -> None:
        if self.counts.too_long:
            raise UserError(
                ExitCode.DATA,
                self.counts.too_long,
                fix="raise --data.max_length, or --data.overlong drop, or --data.overlong truncate",
            )
        if not kept:
            raise UserError(
                ExitCode.DATA,
                f"all {self.counts.read} rows are longer than max_length {self.max_length}",
                fix="raise --data.max_length",
            )


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


def without_oldest_turn(prompt: Text) -> Text | None:
    """The prompt without its first exchange, its system message kept; None where only one turn is left."""
    if isinstance(prompt, str):
        return None
    kept = [message for message in prompt if message["role"] in ("system", "developer")]
    turns = [message for message in prompt if message["role"] not in ("system", "developer")]
    following = next((i for i in range(1, len(turns)) if turns[i]["role"] == "user"), None)
    return None if following is None else (*kept, *turns[following:])
