"""Counts of what happens to rows during tokenization, and the lines that report them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.examples import Encoded
from dpo_lightning.errors import Problem


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
    other_openings: int = 0
    respaced: int = 0
    unended: int = 0
    unknown: int = 0
    opening: str = ""
    """The end of the generation prompt that answers are rendered without, of the first such row."""
    ending: str = ""
    """What ends an answer in place of an end token, and the remedy, of the first such row."""
    too_long: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each thing that happened to some rows."""
        lines = {
            "dropped: longer than max_length": self.dropped,
            "lost the start of the prompt to max_length": self.shortened_prompts,
            "have an answer cut at max_length, without its EOS": self.cut_answers,
            "have a mismatched answer cut at max_length": self.cut_mismatches,
            "merge prompt and answer in a token: the answer begins at the last common token": self.crossing,
            "have tool calls whose arguments are JSON text where the template takes objects, or the other way round "
            "(converted)": self.converted_calls,
            "have a template that rewrites earlier turns: only the last answer is learned": self.last_turn_only,
            f"have answers rendered without {self.opening!r}, with which the template ends the prompt of a generation: "
            "begin answers with it, or give a template that writes it in both by --data.chat_template": (
                self.other_openings
            ),
            "have an answer within which the template changes white space": self.respaced,
            "have characters in an answer that the tokenizer lacks (learned as its unknown token)": self.unknown,
            f"have answers that the template ends with {self.ending}; EOS is added": self.unended,
        }
        return [f"{n} of {self.read} rows {what} ({n / self.read:.1%})" for what, n in lines.items() if n]


def unlisted_ends(rows: Sequence[Encoded], renderer: Renderer) -> Iterator[str]:
    """A line for each id that ends answers, and no generation by the model's generation config."""
    ends = {answer.ids[-1] for row in rows for answer in row.answers if not answer.cut}
    for id_ in sorted(ends - renderer.end_ids) if renderer.end_ids else ():
        token = renderer.tokenizer.decode([id_])
        yield (
            f"answers end with {token} (id {id_}), which eos_token_id in the model's generation_config.json does not "
            "list: other programs may generate on past it; add it there"
        )
