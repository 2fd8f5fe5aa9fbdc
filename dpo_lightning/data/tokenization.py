"""Examples into token ids: one prompt for both answers, EOS once, and a policy for what is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dpo_lightning.data.rendering import Renderer
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.examples import (
    TRAIN,
    EncodedAnswer,
    EncodedPair,
    EncodedRanking,
    EncodedSFT,
    EncodedUnpaired,
    Message,
    Origin,
    PreferenceExample,
    RankedExample,
    SFTExample,
    Text,
    UnpairedExample,
)

Overlong = Literal["error", "drop", "truncate"]

MOST_REFUSED = 1000
"""Bad rows after which reading on would tell nothing new."""


@dataclass
class Counts:
    """What happened to rows on their way to tokens; printed, never silent."""

    read: int = 0
    dropped: int = 0
    shortened_prompts: int = 0
    cut_answers: int = 0
    cut_mismatches: int = 0
    crossing: int = 0
    last_turn_only: int = 0
    converted_calls: int = 0
    too_long: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each thing that happened to some rows."""
        told = {
            "dropped: longer than max_length": self.dropped,
            "lost the start of the prompt to max_length": self.shortened_prompts,
            "have an answer cut at max_length, without its EOS": self.cut_answers,
            "have a mismatched answer cut at max_length": self.cut_mismatches,
            "merge prompt and answer in a token: the answer begins at the last common token": self.crossing,
            "have tool calls whose arguments are JSON text where the template takes objects, or the other way round "
            "(converted)": self.converted_calls,
            "have a template that rewrites earlier turns: only the last answer is learned": self.last_turn_only,
        }
        return [f"{n} of {self.read} rows {what} ({n / self.read:.1%})" for what, n in told.items() if n]


@dataclass(frozen=True)
class Encoding:
    """A prompt and its answers as ids, and what happened on the way."""

    prompt_ids: list[int]
    answers: list[EncodedAnswer]
    crossing: bool = False
    last_turn_only: bool = False
    shortened: bool = False

    @property
    def length(self) -> int:
        """Tokens of prompt and longer answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)


@dataclass
class Encoder:
    """Turns examples into ids. `counts` tells what happened to them."""

    renderer: Renderer
    max_length: int
    overlong: Overlong = "error"
    counts: Counts = field(default_factory=Counts)
    _refused: list[UserError] = field(default_factory=list)

    def pairs(self, examples: Sequence[PreferenceExample]) -> list[EncodedPair]:
        """Encode pairs; raises `UserError` naming every row that is too long where that is an error."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, (example.chosen, example.rejected), example.tools)
            if fitted is not None:
                chosen, rejected = fitted.answers
                encoded.append(
                    EncodedPair(example.origin, fitted.prompt_ids, chosen, rejected, example.weight, example.margin)
                )
        self._finish(len(encoded))
        return encoded

    def rankings(self, examples: Sequence[RankedExample]) -> list[EncodedRanking]:
        """Encode ranked lists, as `pairs` does."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, example.responses, example.tools)
            if fitted is not None:
                answers = tuple(fitted.answers)
                encoded.append(EncodedRanking(example.origin, fitted.prompt_ids, answers, example.weight))
        self._finish(len(encoded))
        return encoded

    def demonstrations(self, examples: Sequence[SFTExample]) -> list[EncodedSFT]:
        """Encode demonstrations, as `pairs` does."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, (example.completion,), example.tools)
            if fitted is not None:
                (answer,) = fitted.answers
                encoded.append(EncodedSFT(example.origin, fitted.prompt_ids, answer, example.weight))
        self._finish(len(encoded))
        return encoded

    def judged(self, examples: Sequence[UnpairedExample]) -> list[EncodedUnpaired]:
        """Encode judged answers, as `pairs` does."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, (example.completion,), example.tools)
            if fitted is not None:
                (answer,) = fitted.answers
                encoded.append(EncodedUnpaired(example.origin, fitted.prompt_ids, answer, example.good, example.weight))
        self._finish(len(encoded))
        return encoded

    def _fit(self, origin: Origin, prompt: Text, answers: Sequence[Text], tools: Sequence[Any]) -> Encoding | None:
        """Ids that fit into `max_length`, or None for a row that is left out; bad rows are told together at the end."""
        try:
            return self._fitted(origin, prompt, answers, tools)
        except UserError as error:
            if error.code != ExitCode.DATA:  # the template or the tokenizer: every row would say the same
                raise
            self._refused.append(error)
            if len(self._refused) == MOST_REFUSED:
                self._finish(0)
            return None

    def _fitted(self, origin: Origin, prompt: Text, answers: Sequence[Text], tools: Sequence[Any]) -> Encoding | None:
        self.counts.read += 1
        fitted = self._encode(origin, prompt, answers, tools)
        if not all(any(answer.scored) for answer in fitted.answers):
            raise UserError(
                ExitCode.DATA,
                Problem("the chat template rewrites every turn that is to be learned", str(origin)),
                fix="give a template that keeps earlier turns by --data.chat_template FILE, or remove the row",
            )
        if fitted.length > self.max_length:
            if self.overlong == "drop":
                self.counts.dropped += 1
                return None
            if self.overlong == "error":
                what = f"prompt and longer answer have {fitted.length} tokens, max_length is {self.max_length}"
                self.counts.too_long.append(Problem(what, str(origin)))
                return None
            while fitted.length > self.max_length and (shorter := without_oldest_turn(prompt)) is not None:
                prompt = shorter
                fitted = replace(self._encode(origin, prompt, answers, tools), shortened=True)
            fitted = self._cut(fitted)
            if not all(any(answer.scored) for answer in fitted.answers):
                what = f"max_length {self.max_length} leaves nothing to learn of an answer"
                self.counts.too_long.append(Problem(what, str(origin)))
                return None
        self.counts.crossing += fitted.crossing
        self.counts.last_turn_only += fitted.last_turn_only
        self.counts.converted_calls += self.renderer.converts(prompt, *answers)
        self.counts.shortened_prompts += fitted.shortened
        self.counts.cut_answers += any(answer.cut for answer in fitted.answers)
        return fitted

    def _cut(self, whole: Encoding) -> Encoding:
        """Cut the prompt's start down to half of the room at most, then the end of an answer that is still too long.

        The BOS stays: some models write nonsense without it.
        """
        longest = max(len(answer.ids) for answer in whole.answers)
        prompt_room = max(self.max_length - longest, self.max_length // 2)
        prompt_ids, bos = whole.prompt_ids, list(self.renderer.raw_prefix)
        shorter = len(prompt_ids) > prompt_room
        if shorter:
            head = bos if prompt_ids[: len(bos)] == bos and len(bos) < prompt_room else []
            prompt_ids = head + prompt_ids[len(head) - prompt_room :]
        room = self.max_length - len(prompt_ids)
        answers = [
            answer
            if len(answer.ids) <= room
            else replace(answer, ids=answer.ids[:room], scored=answer.scored[:room], cut=True)
            for answer in whole.answers
        ]
        return replace(whole, prompt_ids=prompt_ids, answers=answers, shortened=whole.shortened or shorter)

    def _encode(self, origin: Origin, prompt: Text, answers: Sequence[Text], tools: Sequence[Any]) -> Encoding:
        prompt_ids = self.renderer.prompt_ids(prompt, tools, origin)
        wholes = [self._whole(origin, prompt, answer, tools) for answer in answers]
        # A template or a tokenizer may write the border otherwise once an answer follows: both sides then begin
        # at the last token that prompt and answers agree on, so that they are conditioned on the same ids.
        border = min(common_prefix(prompt_ids, ids) for ids, _, _ in wholes)
        return Encoding(
            prompt_ids[:border],
            [EncodedAnswer(ids[border:], scored[border:]) for ids, scored, _ in wholes],
            crossing=border < len(prompt_ids),
            last_turn_only=any(rewritten for _, _, rewritten in wholes),
        )

    def _whole(
        self, origin: Origin, prompt: Text, answer: Text, tools: Sequence[Any]
    ) -> tuple[list[int], list[bool], bool]:
        """Ids of prompt and answer together, ended by one EOS; which are the author's; whether turns were rewritten."""
        turns = self.renderer.messages(prompt, "user")
        replies = self.renderer.messages(answer, "assistant")
        if turns is None or replies is None:
            ids = self.renderer.raw_ids(str(prompt), self.renderer.strip_eos(str(answer)), origin)
            ids.append(self.renderer.tokenizer.eos_token_id)
            return ids, [True] * len(ids), False
        whole = (*turns, *replies)
        ids = self.renderer.chat_ids(whole, tools, origin, add_generation_prompt=False)
        ids = self._ended(
            ids,
            common_prefix(ids, self.renderer.chat_ids(whole[:-1], tools, origin, add_generation_prompt=True)),
        )
        if len(replies) == 1:
            return ids, [True] * len(ids), False
        return ids, *self._assistant_turns(ids, whole, len(turns), tools, origin)

    def _ended(self, ids: list[int], start: int) -> list[int]:
        """Cut what a template writes after the last turn (a newline, a second end), or add the EOS it left out."""
        tokenizer = self.renderer.tokenizer
        ends = [i for i in range(start, len(ids)) if ids[i] in self.renderer.stops]
        while len(ends) > 1 and not tokenizer.decode(ids[ends[-2] + 1 : ends[-1]]).strip():
            ends.pop()
        return ids[: ends[-1] + 1] if ends else [*ids, tokenizer.eos_token_id]

    def _assistant_turns(
        self, ids: list[int], messages: Sequence[Message], first: int, tools: Sequence[Any], origin: Origin
    ) -> tuple[list[bool], bool]:
        """Flags of the assistant's turns from message `first` on, alone learned; whether some were rewritten."""
        scored, rewritten = [False] * len(ids), False
        for i in range(first, len(messages)):
            if messages[i]["role"] != "assistant" or not messages[i].get(TRAIN, True):
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
                rewritten = True
                continue
            start = common_prefix(before, ids)
            scored[start : len(through)] = [True] * (len(through) - start)
        return scored, rewritten

    def _finish(self, kept: int) -> None:
        if self._refused:
            problems = [problem for error in self._refused for problem in error.problems]
            raise UserError(ExitCode.DATA, problems, fix=self._refused[0].fix)
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
