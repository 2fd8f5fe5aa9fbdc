"""Counts rows that tokenization drops or changes, and formats the notes that report them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import Problem


@dataclass
class Counts:
    """Counts of rows that were dropped or changed; one row may be in several."""

    read: int = 0
    """All rows."""
    dropped: int = 0
    shortened_prompts: int = 0
    cut_answers: int = 0
    cut_mismatches: int = 0
    """Rows whose mismatched answer (of KTO) was cut at `max_length`."""
    crossing: int = 0
    """Rows with a token that contains the end of the prompt and the beginning of an answer."""
    last_turn_only: int = 0
    converted_calls: int = 0
    other_openings: int = 0
    """Rows whose answers do not begin with the end of the generation prompt."""
    respaced: int = 0
    """Rows in whose answers the template changes white space."""
    unended: int = 0
    """Rows with an answer that the template ends without an end token."""
    unknown: int = 0
    """Rows with the tokenizer's unknown token in an answer."""
    opening: str = ""
    """The end of the generation prompt that answers are rendered without, of the first such row."""
    ending: str = ""
    """What ends an answer in place of an end token, and the remedy, of the first such row."""
    ends: set[int] = field(default_factory=set)
    """Ids at the end of answers that were not cut."""
    too_long: list[Problem] = field(default_factory=list)
    """An error for each row that does not fit into `max_length`."""

    def format_lines(self) -> list[str]:
        """Format a line for each count above 0, with the share of the rows."""
        lines = {
            "dropped: longer than max_length": self.dropped,
            "lost the start of the prompt to max_length": self.shortened_prompts,
            "have an answer cut at max_length, without its EOS": self.cut_answers,
            "have a mismatched answer cut at max_length": self.cut_mismatches,
            "have a token across the end of the prompt: the answers begin with it": self.crossing,
            "have tool calls whose arguments were converted to what the template takes": self.converted_calls,
            "have earlier answers that the template rewrites: only the last answer is learned": self.last_turn_only,
            f"have answers rendered without {self.opening!r}, with which the template ends the prompt of a generation: "
            "begin answers with it, or give a template that writes it in both cases by --data.chat_template FILE": (
                self.other_openings
            ),
            "have an answer in which the template changes white space": self.respaced,
            "have characters in an answer that the tokenizer lacks: its unknown token is learned": self.unknown,
            f"have answers that the template ends with {self.ending}; EOS is added": self.unended,
        }
        return [f"{n} of {self.read} rows {what} ({n / self.read:.1%})" for what, n in lines.items() if n]


def format_unlisted_ends(ends: Collection[int], renderer: Renderer) -> Iterator[str]:
    """Format a line for each id at the end of answers that the model's generation config does not list as an end.

    A model learns to end its answers with it, and a program that reads only the generation config does not stop there.
    Without a list in the generation config there is nothing to compare.

    Args:
        ends: the ids at the end of answers, `Counts.ends`.
        renderer: has the ids of the generation config.
    """
    for id_ in sorted(set(ends) - renderer.end_ids) if renderer.end_ids else ():
        token = renderer.tokenizer.decode([id_])
        yield (
            f"answers end with {token} (id {id_}), which eos_token_id in the model's generation_config.json does not "
            "list: other programs may continue after it; add it to the list"
        )
