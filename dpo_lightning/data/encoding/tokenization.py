"""Converts examples to token ids: all answers of a row follow the same prompt ids, and rows fit into `max_length`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.encoding.counts import Counts
from dpo_lightning.data.encoding.lockstep import Steps, run_in_lockstep
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.whole_texts import Conversation, RenderedAnswer
from dpo_lightning.data.examples import Encoded, EncodedAnswer, Example, Origin, Text
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.errors import ExitCode, Problem, UserError

Overlong = Literal["error", "drop", "truncate"]
"""What happens to rows longer than `max_length`."""

MAX_REFUSED = 1000
"""Bad rows after which tokenization stops: further errors would be of the same kinds."""

MAX_ROWS = 256
"""Rows that are encoded side by side."""

MAX_CHARACTERS = 1 << 22
"""Characters of all rows that are encoded side by side, for a bound on memory."""


@dataclass(frozen=True)
class Encoding:
    """A prompt and its answers as ids, and what was changed; `Counts` counts the rows with each change."""

    prompt_ids: list[int]
    answers: list[EncodedAnswer]
    crossing: bool = False
    """Whether a token contains the end of the prompt and the beginning of an answer."""
    last_turn_only: bool = False
    """Whether the template rewrites earlier turns of an answer, so that only the last one is learned."""
    converted: bool = False
    """Whether the arguments of a tool call were converted to what the template takes."""
    shortened: bool = False
    """Whether the start of the prompt was removed."""
    respaced: bool = False
    """Whether the template changes white space in an answer."""
    opening: str = ""
    """The end of the generation prompt that answers are rendered without."""
    ending: str = ""
    """What the template writes at the end of an answer in place of an end token, and the remedy."""

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)


@dataclass
class Encoder:
    """Converts examples to ids, and counts in `counts` what was dropped or changed."""

    renderer: Renderer
    max_length: int
    """Tokens of the prompt and the longest answer together."""
    overlong: Overlong = "error"
    counts: Counts = field(default_factory=Counts)
    bad: BadRows | None = None
    """Collects the bad rows where these are left out."""
    _refused: list[UserError] = field(default_factory=list)

    def encode(self, examples: Iterable[Example]) -> list[Encoded]:
        """Return the rows of `encode_rows` as a list."""
        return list(self.encode_rows(examples))

    def encode_rows(self, examples: Iterable[Example]) -> Iterator[Encoded]:
        """Encode rows of any kind, in order; those that `overlong="drop"` drops are left out.

        Errors of rows are raised together after the last row, or after `MAX_REFUSED` of them.

        Raises:
            UserError: 65 with all bad rows, or all rows that are too long; 67 if the template or the tokenizer cannot
                be used for any row.
        """
        kept = 0
        for chunk in split_into_chunks(examples):
            steps = [self._encode_within_limit(example) for example in chunk]
            # Zipped to the rows before an error that ends all.
            for example, encoding in zip(chunk, run_in_lockstep(steps, self.renderer.encode_texts), strict=False):
                fitted = self._try_count(example, encoding)
                if fitted is not None:
                    kept += 1
                    yield example.encode(fitted.prompt_ids, tuple(fitted.answers))
        self._raise_errors(kept)

    def _try_count(self, example: Example, encoding: Encoding | UserError) -> Encoding | None:
        """Count what was changed in a row; None if it is dropped, or bad: errors are raised together at the end."""
        self.counts.read += 1
        try:
            if isinstance(encoding, UserError):
                raise encoding
            return self._count(example.origin, encoding)
        except UserError as error:
            if error.code != ExitCode.DATA:  # of the template or the tokenizer: the same for every row
                raise
            if self.bad is not None and self.bad.drops:
                for problem in error.problems:
                    self.bad.add(example.origin, RowError(problem.what, problem.text, problem.fix or error.fix))
                return None
            self._refused.append(error)
            if len(self._refused) == MAX_REFUSED:
                self._raise_errors(0)
            return None

    def _encode_within_limit(self, example: Example) -> Steps[Encoding]:
        """Encode a row; if `overlong="truncate"`, within `max_length`."""
        origin, prompt = example.origin, example.prompt
        fitted = yield from self._encode(origin, prompt, example.answers, example.tools)
        if not all(any(answer.scored) for answer in fitted.answers):
            raise UserError(
                ExitCode.DATA,
                Problem("the chat template rewrites every learned turn once others follow", str(origin)),
                fix="give a template that keeps earlier turns by --data.chat_template FILE, or remove the row",
            )
        if fitted.length <= self.max_length or self.overlong != "truncate":
            return fitted
        # Whole exchanges are removed first; only then is the rest of the prompt cut, even within a message.
        while fitted.length > self.max_length and (shorter := drop_oldest_turn(prompt)) is not None:
            prompt = shorter
            shortest = yield from self._encode(origin, prompt, example.answers, example.tools)
            fitted = replace(shortest, shortened=True)
        return self._cut(fitted)

    def _count(self, origin: Origin, fitted: Encoding) -> Encoding | None:
        """Count what was changed in a row; None if it is dropped or too long."""
        if fitted.length > self.max_length:
            if self.overlong == "drop":
                self.counts.dropped += 1
            else:
                what = f"prompt and longest answer have {fitted.length} tokens, but max_length is {self.max_length}"
                self.counts.too_long.append(Problem(what, str(origin)))
            return None
        if not all(any(answer.scored) for answer in fitted.answers):
            what = f"max_length {self.max_length} leaves nothing to learn of an answer"
            self.counts.too_long.append(Problem(what, str(origin)))
            return None
        self._check_distinct(origin, fitted.answers)
        counts, unknown = self.counts, self.renderer.unknown_id
        counts.unknown += unknown is not None and any(unknown in answer.ids for answer in fitted.answers)
        counts.crossing += fitted.crossing
        counts.respaced += fitted.respaced
        counts.other_openings += bool(fitted.opening)
        counts.opening = counts.opening or fitted.opening
        counts.unended += bool(fitted.ending)
        counts.ending = counts.ending or fitted.ending
        counts.last_turn_only += fitted.last_turn_only
        counts.converted_calls += fitted.converted
        counts.shortened_prompts += fitted.shortened
        counts.cut_answers += any(answer.cut for answer in fitted.answers)
        counts.ends.update(answer.ids[-1] for answer in fitted.answers if not answer.cut)
        return fitted

    def _check_distinct(self, origin: Origin, answers: Sequence[EncodedAnswer]) -> None:
        """Refuse answers with the same ids, though their texts differ: there is no preference to learn."""
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
        """Remove the start of the prompt, down to half of `max_length`, then the end of answers if needed.

        The BOS is kept: some models write nonsense without it.
        """
        longest = max(len(answer.ids) for answer in whole.answers)
        prompt_room = max(self.max_length - longest, self.max_length // 2)
        prompt_ids, bos = whole.prompt_ids, list(self.renderer.raw_prefix)
        shorter = len(prompt_ids) > prompt_room
        if shorter:
            # Without room for an id after it, the BOS is not kept.
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

    def _encode(self, origin: Origin, prompt: Text, answers: Sequence[Text], tools: Sequence[Any]) -> Steps[Encoding]:
        """Encode prompt and answers without a limit of length."""
        conversation = Conversation(self.renderer, tools, origin)
        rendered_prompt = yield from conversation.render_prompt(prompt)
        rendered_answers: list[RenderedAnswer] = []
        for answer in answers:
            rendered_answer = yield from conversation.render_answer(prompt, rendered_prompt, answer)
            rendered_answers.append(rendered_answer)
        # The last ids of the prompt may differ once an answer follows, by the template or by a token that contains
        # both. All answers then begin after the ids that they have in common with the prompt: each is conditioned on
        # the same prompt ids.
        border = min(count_common(rendered_prompt.ids, whole.ids) for whole in rendered_answers)
        opening = next((whole.opening for whole in rendered_answers if whole.opening), "")
        return Encoding(
            rendered_prompt.ids[:border],
            [EncodedAnswer(whole.ids[border:], whole.scored[border:]) for whole in rendered_answers],
            crossing=border < len(rendered_prompt.ids) and not opening,
            last_turn_only=any(whole.rewritten for whole in rendered_answers),
            converted=self.renderer.needs_conversion(prompt, *answers),
            respaced=any(whole.respaced for whole in rendered_answers),
            opening=opening,
            ending=next((whole.ending for whole in rendered_answers if whole.ending), ""),
        )

    def _raise_errors(self, kept: int) -> None:
        """Raise the errors of all rows together, or one if no row is kept; bad rows come before those too long."""
        if self._refused:
            # Each problem is printed with the remedy of its own error.
            problems = [replace(problem, fix=error.fix) for error in self._refused for problem in error.problems]
            raise UserError(ExitCode.DATA, problems)
        if self.counts.too_long:
            raise UserError(
                ExitCode.DATA,
                self.counts.too_long,
                fix="raise --data.max_length, or --data.overlong drop, or --data.overlong truncate",
            )
        if not kept and not self.bad:
            raise UserError(
                ExitCode.DATA,
                f"all {self.counts.read} rows are longer than max_length {self.max_length}",
                fix="raise --data.max_length",
            )


def drop_oldest_turn(prompt: Text) -> Text | None:
    """Remove the first exchange of a prompt, up to the next message of the user; system messages are kept.

    Returns:
        The shorter prompt, or None for a string and for a prompt with one exchange.
    """
    if isinstance(prompt, str):
        return None
    kept = [message for message in prompt if message["role"] in ("system", "developer")]
    turns = [message for message in prompt if message["role"] not in ("system", "developer")]
    following = next((i for i in range(1, len(turns)) if turns[i]["role"] == "user"), None)
    return None if following is None else (*kept, *turns[following:])


def split_into_chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Split rows into chunks of at most `MAX_ROWS` rows and, unless one row has more, of `MAX_CHARACTERS`."""
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        own = sum(map(count_characters, (example.prompt, *example.answers)))
        if chunk and (len(chunk) == MAX_ROWS or characters + own > MAX_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(example)
        characters += own
    if chunk:
        yield chunk


def count_characters(text: Text) -> int:
    """Return how many characters a text has, or the contents of its messages."""
    return len(text) if isinstance(text, str) else sum(len(message.get("content") or "") for message in text)
