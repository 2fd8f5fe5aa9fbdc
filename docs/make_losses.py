"""Writes losses.md from losses.template.md and the classes, and losses.png: `python docs/make_losses.py`."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch
from check_rows import render_check_rows
from plot_losses import CHOSEN_TOKENS, PER_TOKEN, REJECTED_TOKENS, Curve, compute_curves, draw, make_pair

from dpo_lightning import losses
from dpo_lightning.losses import Divergence, ListwiseLoss, MarginLoss, PairwiseLoss, PreferenceLoss, UnpairedLoss
from dpo_lightning.losses.base import PolicyLoss

FOLDER = Path(__file__).parent
LABELS = {
    "Paper": "Paper",
    "Loss": "Formula",
    "Rewards": "Rewards",
    "TRL": "TRL's name",
    "Use": "When",
    "Typical": "Typical",
    "Check": "Check numbers",
}
"""First words of the lines of a loss's docstring, and their labels on the page."""


def make_mpo() -> losses.WeightedSum:
    """The weighted sum that is the example of its class."""
    return losses.WeightedSum([losses.DPOLoss(), losses.BCOPairLoss(), losses.SFTLoss()], [0.8, 0.2, 1.0])


EXAMPLES: dict[str, Callable[[], PairwiseLoss]] = {"WeightedSum": make_mpo}
"""Instances of classes that have no default for every option."""


def make_instance(kind: type) -> Any:
    """A loss at its default options."""
    return EXAMPLES.get(kind.__name__, kind)()


SECTIONS: dict[str, Callable[[type], bool]] = {
    "Pairs: losses of the difference of both scores": lambda kind: issubclass(kind, MarginLoss),
    "Pairs: losses without a reference": lambda kind: issubclass(kind, PairwiseLoss) and is_reference_free(kind),
    "Pairs: other losses with a reference": lambda kind: issubclass(kind, PreferenceLoss),
    "Pairs: losses made of other losses": lambda kind: issubclass(kind, PairwiseLoss),
    "Single answers, labelled good or bad": lambda kind: issubclass(kind, UnpairedLoss),
    "Ranked lists": lambda kind: issubclass(kind, ListwiseLoss),
}
"""The order of the page: a loss belongs to the first section that takes it; within one, DPO and then by name."""


def is_reference_free(kind: type) -> bool:
    """Whether a loss at its default options reads no reference."""
    return bool(make_instance(kind).reference_free)


class Entry(NamedTuple):
    """A loss with the parts of its docstring."""

    kind: type
    about: str
    """The text before the first line of `LABELS`."""
    lines: dict[str, str]
    """The lines of `LABELS`, by their first words."""

    @property
    def name(self) -> str:
        """Name of the class."""
        return self.kind.__name__

    @property
    def summary(self) -> str:
        """The first paragraph in one line, for the table."""
        return self.about.partition("\n\n")[0].replace("\n", " ")

    @property
    def section(self) -> str:
        """The heading below which the loss is described."""
        found = next((heading for heading, takes in SECTIONS.items() if takes(self.kind)), None)
        if found is None:
            raise SystemExit(f"{self.name} belongs to no section: add one for its base class to SECTIONS in {__file__}")
        return found

    @property
    def check_numbers(self) -> list[float]:
        """The declared losses of the check rows. What follows in brackets is a remark."""
        numbers = self.lines.get("Check", "").partition("(")[0]
        return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", numbers)]


def parse_entry(kind: type) -> Entry:
    """Take the docstring of a loss apart."""
    text = inspect.getdoc(kind) or ""
    about, mark, rest = text.partition("\nPaper: ")
    lines: dict[str, str] = {}
    word = ""
    for line in (mark + rest).strip().splitlines():
        if found := re.match(rf"({'|'.join(LABELS)}): (.*)", line):
            word, lines[found[1]] = found.groups()
        else:
            lines[word] += " " + line.strip()
    return Entry(kind, about.strip(), lines)


def list_entries() -> list[Entry]:
    """Every loss that the package exports, in the order of the page."""
    kinds = (getattr(losses, name) for name in losses.__all__)
    entries = [parse_entry(kind) for kind in kinds if issubclass(kind, PolicyLoss) and not inspect.isabstract(kind)]
    order = list(SECTIONS)
    return sorted(entries, key=lambda each: (order.index(each.section), each.name != "DPOLoss", each.name.lower()))


def link_papers(text: str) -> str:
    """Replace arXiv numbers by links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def find_option_texts(kind: type) -> dict[str, str]:
    """The docstrings of the fields of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, PolicyLoss):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def render_options(kind: type) -> Iterator[str]:
    """A line for each option."""
    texts = find_option_texts(kind)
    for field in fields(kind):
        if field.init:
            default = "" if field.default is MISSING else f" = {field.default!r}"
            yield f"  - `{field.name}{default}`: {texts[field.name]}"


def describe_start(kind: type) -> str:
    """The loss where policy and reference agree: a number where it is the same for all rows, else words."""
    text = " ".join((inspect.getdoc(kind.__call__) or "").split())
    found = re.search(r"[;,] ([^;]* where [^;]* agree[^;.]*)", text)
    words = found[1] if found else ""
    if not issubclass(kind, PairwiseLoss):
        return words or "depends on the model"
    loss = make_instance(kind)
    starts = {
        round(float(loss(make_pair(torch.tensor(h, dtype=torch.float64), True, tokens)).losses), 6)
        for h in (0.0, 3.0)
        for tokens in ((12, 8), (3, 7))
    }
    if len(starts) > 1:
        return words or "depends on the model"
    return f"{starts.pop():.6f} by default" + (f": {words}" if words else "")


def list_needs(kind: type) -> Iterator[str]:
    """What a loss needs of reference and rows."""
    if issubclass(kind, PairwiseLoss):
        loss = make_instance(kind)
        if loss.reference_free:
            yield "no reference"
        if "kl" in loss.statistics:
            yield "a reference model, not a precomputed reference"
        if "margin" in loss.statistics:
            yield "a column `margin`"
        if not loss.accepts_weights:
            yield "rows without `weight`"


def render_entry(each: Entry) -> Iterator[str]:
    """The description of one loss."""
    yield f"### {each.name}\n"
    yield link_papers(each.about) + "\n"
    for word, text in each.lines.items():
        yield f"- **{LABELS[word]}**: {link_papers(text)}"
    yield f"- **At the start**: {describe_start(each.kind)}"
    if needs := "; ".join(list_needs(each.kind)):
        yield f"- **Needs**: {needs}"
    if issubclass(each.kind, MarginLoss):
        yield "- **Divergence**: any"
    if make_instance(each.kind).state is not None:
        yield "- **State**: saved in checkpoints, and the same on all ranks"
    if options := list(render_options(each.kind)):
        yield "- **Options**:\n" + "\n".join(options)
    yield ""


def link_losses(entries: list[Entry], wanted: Callable[[PairwiseLoss], bool]) -> str:
    """Links to the pairwise losses for which `wanted` is true."""
    pairwise = [each for each in entries if issubclass(each.kind, PairwiseLoss)]
    return ", ".join(f"[{each.name}](#{each.name.lower()})" for each in pairwise if wanted(make_instance(each.kind)))


def render_divergences() -> Iterator[str]:
    """A row for each divergence."""
    for kind in (losses.ReverseKL, losses.ForwardKL, losses.JensenShannon, losses.AlphaDivergence):
        assert issubclass(kind, Divergence)
        what, _, name = " ".join((inspect.getdoc(kind) or "").split()).partition(" TRL: ")
        own = "; ".join(f"`{field.name} = {field.default!r}`" for field in fields(kind))
        yield f"| `{kind.__name__}` | {what} | {name.removesuffix('.')} | {own} |".replace("||", "\\|\\|")


def render_page() -> str:
    """The text of losses.md."""
    entries = list_entries()
    body: list[str] = []
    for heading in SECTIONS:
        body.append(f"## {heading}\n")
        body.extend(line for each in entries if each.section == heading for line in render_entry(each))
    return Template((FOLDER / "losses.template.md").read_text(encoding="utf-8")).substitute(
        check="\n".join(render_check_rows()),
        contents="\n".join(f"| [{each.name}](#{each.name.lower()}) | {each.summary} |" for each in entries),
        body="\n".join(body),
        divergences="\n".join(render_divergences()),
        of_margin=link_losses(entries, lambda loss: isinstance(loss, MarginLoss)),
        unweighted=link_losses(entries, lambda loss: not loss.accepts_weights),
        with_margin=link_losses(entries, lambda loss: "margin" in loss.statistics),
        picture=f"{CHOSEN_TOKENS} and {REJECTED_TOKENS} tokens of {PER_TOKEN:g} nats under the reference",
    )


def compute_all_curves() -> dict[str, Curve]:
    """Every pairwise loss of the page at its defaults, and some of their options."""
    pairwise = {each.name: make_instance(each.kind) for each in list_entries() if issubclass(each.kind, PairwiseLoss)}
    return compute_curves(
        {("WeightedSum: MPO" if name == "WeightedSum" else name): of for name, of in pairwise.items()}
    )


if __name__ == "__main__":
    (FOLDER / "losses.md").write_text(render_page(), encoding="utf-8")
    draw(compute_all_curves(), FOLDER / "losses.png")
