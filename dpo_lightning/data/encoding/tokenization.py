"""Examples into token ids: one prompt for both answers, EOS once, and a policy for what is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from dpo_lightning.data.encoding.counts import Counts
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.whole_texts import Conversation, common_prefix
from dpo_lightning.data.examples import Encoded, EncodedAnswer, Example, Origin, Text
from dpo_lightning.errors import ExitCode, Problem, UserError

Overlong = Literal["error", "drop", "truncate"]

MOST_REFUSED = 1000
"""Bad rows after which reading on would tell nothing new."""


@dataclass(frozen=True)
class Encoding:
    """A prompt and its answers as ids, and what happened on the way."""

    prompt_ids: list[int]
    answers: list[EncodedAnswer]
    crossing: bool = False
    last_turn_only: bool = False
    shortened: bool = False
    respaced: bool = False
    opening: str = ""
    ending: str = ""

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

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode rows of any kind; raises `UserError` naming every row that is too long where that is an error."""
        encoded = []
        for example in examples:
            fitted = self._fit(example.origin, example.prompt, example.answers, example.tools)
            if fitted is not None:
                encoded.append(example.encode(fitted.prompt_ids, tuple(fitted.answers)))
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
        self._check_distinct(origin, fitted.answers)
        unknown = self.renderer.unknown_id
        self.counts.unknown += unknown is not None and any(unknown in answer.ids for answer in fitted.answers)
        self.counts.crossing += fitted.crossing
        self.counts.respaced += fitted.respaced
        self.counts.other_openings += bool(fitted.opening)
        self.counts.opening = self.counts.opening or fitted.opening
        self.counts.unended += bool(fitted.ending)
        self.counts.ending = self.counts.ending or fitted.ending
        self.counts.last_turn_only += fitted.last_turn_only
        self.counts.converted_calls += self.renderer.converts(prompt, *answers)
        self.counts.shortened_prompts += fitted.shortened
        self.counts.cut_answers += any(answer.cut for answer in fitted.answers)
        return fitted

    def _check_distinct(self, origin: Origin, answers: Sequence[EncodedAnswer]) -> None:
        """Refuse answers that are the same to the model, though their texts differ: nothing is preferred."""
        for (one, first), (other, second) in combinations(enumerate(answers, 1), 2):
            if first.ids != second.ids:
                continue
            which = "chosen and rejected" if len(answers) == 2 else f"the answers ranked {one} and {other}"
            cut = first.cut or second.cut
            what = f"{which} are the same {len(first.ids)} tokens" + f", cut at max_length {self.max_length}" * cut
            raise UserError(
                ExitCode.DATA,
                Problem(what, str(origin), self.renderer.tokenizer.decode(first.ids)),
                fix="raise --data.max_length, or --data.overlong drop"
                if cut
                else "remove the row, or give a template that keeps what differs by --data.chat_template FILE",
            )

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
        conversation = Conversation(self.renderer, tools, origin)
        rendered_prompt = conversation.render_prompt(prompt)
        rendered_answers = [conversation.render_answer(prompt, rendered_prompt, answer) for answer in answers]
        # A template or a tokenizer may write the border otherwise once an answer follows: both sides then begin
        # at the last token that prompt and answers agree on, so that they are conditioned on the same ids.
        border = min(common_prefix(rendered_prompt.ids, whole.ids) for whole in rendered_answers)
        opening = next((whole.opening for whole in rendered_answers if whole.opening), "")
        return Encoding(
            rendered_prompt.ids[:border],
            [EncodedAnswer(whole.ids[border:], whole.scored[border:]) for whole in rendered_answers],
            crossing=border < len(rendered_prompt.ids) and not opening,
            last_turn_only=any(whole.rewritten for whole in rendered_answers),
            respaced=any(whole.respaced for whole in rendered_answers),
            opening=opening,
            ending=next((whole.ending for whole in rendered_answers if whole.ending), ""),
        )

    def _finish(self, kept: int) -> None:
        if self._refused:
            problems = [replace(problem, fix=error.fix) for error in self._refused for problem in error.problems]
            raise UserError(ExitCode.DATA, problems)
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


def without_oldest_turn(prompt: Text) -> Text | None:
    """The prompt without its first exchange, its system message kept; None where only one turn is left."""
    if isinstance(prompt, str):
        return None
    kept = [message for message in prompt if message["role"] in ("system", "developer")]
    turns = [message for message in prompt if message["role"] not in ("system", "developer")]
    following = next((i for i in range(1, len(turns)) if turns[i]["role"] == "user"), None)
    return None if following is None else (*kept, *turns[following:])
