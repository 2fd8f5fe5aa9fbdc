"""`Finding`, and the findings about single rows: answers that hardly differ, copy the prompt or change the script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_lightning.data.checks.normalization import normalize, read_content, read_plain
from dpo_lightning.data.checks.scripts import NAMED_LANGUAGE, count_scripts, differ_in_script
from dpo_lightning.data.examples import Example, Text
from dpo_lightning.data.kinds.fields import look_alike_texts
from dpo_lightning.data.readers.left_out import format_places

HEAD = 40
"""Characters of two answers that are compared before the whole of them is."""

LENGTH_SHARE = 0.2
"""Share of its length, besides `HEAD`, that a text may lose by normalization."""

LEAST_COPY = 8
"""Characters of a prompt below which an answer may begin with it by chance."""


@dataclass
class Finding:
    """One kind of doubtful rows.

    Attributes:
        name: a stable name, for programs.
        what: what is doubtful.
        advice: what to do about it.
        places: the rows, as `file:line`, or `file:line = file:line` where two are compared.
    """

    name: str
    what: str
    advice: str
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Format the finding with its count and the first rows."""
        return f"{self.what}: {len(self.places):,} ({format_places(self.places)})"


def find_equal_answers(examples: Sequence[Example]) -> Finding:
    """Find rows with two answers that differ only in case, white space or punctuation."""
    finding = Finding(
        "nearly_equal_answers",
        "rows with two answers that differ only in case, white space or punctuation",
        "remove the rows, unless this difference is what is to be learned",
    )
    for example in examples:
        answers = list(map(read_plain, example.answers))
        # What `fit` notes by itself, outer white space and invisible characters, is not repeated here.
        if any(
            hardly_differ(one, other) and not look_alike_texts(example.answers[i], example.answers[j])
            for j, other in enumerate(answers)
            for i, one in enumerate(answers[:j])
        ):
            finding.places.append(str(example.origin))
    return finding


def hardly_differ(one: str, other: str) -> bool:
    """Whether two texts are equal once they are normalized; what is cheap to compare is compared first."""
    if abs(len(one) - len(other)) > LENGTH_SHARE * max(len(one), len(other)) + HEAD:
        return False
    heads = normalize(one[:HEAD]), normalize(other[:HEAD])
    common = min(map(len, heads)) // 2  # the ends of the heads may be cut differently
    return heads[0][:common] == heads[1][:common] and normalize(one) == normalize(other)


def find_copied_prompts(examples: Sequence[Example]) -> Finding:
    """Find rows with an answer that begins with a copy of the prompt's last turn."""
    finding = Finding(
        "copied_prompts",
        "rows with an answer that begins with a copy of the prompt",
        "remove the prompt from the answers",
    )
    for example in examples:
        prompt = read_question(example.prompt)
        if len(prompt) >= LEAST_COPY and any(begins_with(read_first(text), prompt) for text in example.answers):
            finding.places.append(str(example.origin))
    return finding


def begins_with(answer: str, prompt: str) -> bool:
    """Whether an answer begins with a prompt, apart from white space; a title in another case is not a copy."""
    answer, prompt = answer.lstrip(), prompt.strip()
    if answer[:4] != prompt[:4]:
        return False
    wanted, start = " ".join(prompt.split()), " ".join(answer[: 2 * len(prompt) + HEAD].split())
    follows = start[len(wanted) : len(wanted) + 1]
    return start.startswith(wanted) and not (follows.isalnum() and wanted[-1:].isalnum())


def read_question(text: Text) -> str:
    """The last message of the user in a prompt as text, or the last message where the user has none."""
    if isinstance(text, str):
        return text
    asked = [message for message in text if message["role"] == "user"] or text
    return read_content(asked[-1]) if asked else ""


def read_first(text: Text) -> str:
    """The first message of an answer as text."""
    return text if isinstance(text, str) else read_content(text[0])


def find_other_scripts(examples: Sequence[Example], scripts: Sequence[Any]) -> Finding:
    """Find rows whose first answer is in another script than the prompt.

    Args:
        examples: the rows.
        scripts: the counts of letters of each prompt by script.
    """
    finding = Finding(
        "other_scripts",
        "rows whose prompt and best answer are in different scripts",
        "the answer may be in the wrong language; prompts that name a language are not among them",
    )
    for example, counts in zip(examples, scripts, strict=True):
        if getattr(example, "good", True) is False:
            continue  # the label of an unpaired row says already that the answer is bad
        answer = count_scripts(read_plain(example.answers[0]))
        if differ_in_script(counts, answer) and not NAMED_LANGUAGE.search(read_plain(example.prompt)):
            finding.places.append(str(example.origin))
    return finding


def find_row_faults(examples: Sequence[Example], scripts: Sequence[Any]) -> Iterator[Finding]:
    """Yield the findings about single rows."""
    yield find_equal_answers(examples)
    yield find_copied_prompts(examples)
    yield find_other_scripts(examples, scripts)
