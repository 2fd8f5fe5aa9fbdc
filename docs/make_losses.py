"""Writes losses.md and losses.png out of the classes: `python docs/make_losses.py`."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dpo_lightning import losses
from dpo_lightning.losses import divergences
from dpo_lightning.losses.base import MarginLoss, PairwiseLoss, PolicyLoss
from dpo_lightning.losses.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon
from dpo_lightning.types import PairLogps

FOLDER = Path(__file__).parent
LABELS = {
    "Paper": "Paper",
    "Loss": "Formula",
    "Rewards": "Rewards",
    "TRL": "TRL's name",
    "Use": "When",
    "Typical": "Typical",
}
"""A line of a docstring, and what the page calls it."""

CHOSEN_TOKENS, REJECTED_TOKENS, PER_TOKEN = 12, 8, -3.0
"""The pair of the picture: its reference gives every token this log-probability."""

MARGINS = [h / 2 for h in range(-80, 81)]
"""Where losses are drawn, in nats."""

STEEP = {"DPOLoss, ForwardKL", "DPOLoss, AlphaDivergence 0.5", "ChiPOLoss", "DiscoPOPLoss"}
"""Those in which much happens near 0: drawn over a fifth of that."""

MPO = """\
model:
  loss:
    class_path: WeightedSum
    init_args:
      losses:
        - class_path: DPOLoss
          init_args: {beta: 0.1}
        - class_path: BCOPairLoss
          init_args: {beta: 0.1}
        - class_path: SFTLoss
      weights: [0.8, 0.2, 1.0]
"""
RPO = """\
model:
  loss:
    class_path: WeightedSum
    init_args:
      losses:
        - class_path: DPOLoss
          init_args: {beta: 0.1}
        - class_path: SFTLoss
          init_args: {normalization: sequence_mean}
      weights: [1.0, 1.0]
"""


def mpo() -> losses.WeightedSum:
    """The mixture that stands for its class."""
    return losses.WeightedSum([losses.DPOLoss(), losses.BCOPairLoss(), losses.SFTLoss()], [0.8, 0.2, 1.0])


EXAMPLES: dict[str, Callable[[], PairwiseLoss]] = {"WeightedSum": mpo}
"""Of classes that have no default for every option."""


class Entry(NamedTuple):
    """What the page tells of a loss."""

    kind: type
    about: str
    """Its first sentence or paragraphs."""
    lines: dict[str, str]
    """By the word that a line of its docstring begins with."""

    @property
    def name(self) -> str:
        """That of the class."""
        return self.kind.__name__

    @property
    def summary(self) -> str:
        """The first line, as a table has it."""
        return self.about.partition("\n\n")[0].replace("\n", " ")


def entry(kind: type) -> Entry:
    """Take a docstring apart."""
    text = inspect.getdoc(kind) or ""
    about, mark, rest = text.partition("\nPaper: ")
    lines: dict[str, str] = {}
    word = ""
    for line in (mark + rest).strip().splitlines():
        if found := re.match(rf"({'|'.join(LABELS)}): (.*)", line):
            word, said = found.groups()
            lines[word] = said
        else:
            lines[word] += " " + line.strip()
    return Entry(kind, about.strip(), lines)


def public() -> list[Entry]:
    """Every loss that the package offers, by the module that it stands in: whatever has a paper and can be made."""
    kinds = (getattr(losses, name) for name in losses.__all__)
    found = [entry(kind) for kind in kinds if inspect.isclass(kind) and not inspect.isabstract(kind)]
    described = [each for each in found if each.lines]
    order = {name: place for place, name in enumerate(reading_order())}
    return sorted(described, key=lambda each: order[each.name])


def reading_order() -> Iterator[str]:
    """Names as they stand in their modules: DPO's first, what is built out of others last."""
    modules = {getattr(losses, name).__module__ for name in losses.__all__}
    first, last = ["logistic", "hinge", "ipo"], ["mixture"]

    def rank(name: str) -> tuple[int, str]:
        short = name.rpartition(".")[2]
        return (first.index(short) if short in first else len(first) + (short in last), short)

    for name in sorted(modules, key=rank):
        for node in ast.parse(inspect.getsource(sys.modules[name])).body:
            if isinstance(node, ast.ClassDef):
                yield node.name


def linked(text: str) -> str:
    """Paper numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def option_texts(kind: type) -> dict[str, str]:
    """What stands below each field, in its class or one that it is built on."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("dpo_lightning"):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def options(kind: type) -> Iterator[str]:
    """A line for each option."""
    texts = option_texts(kind)
    for field in fields(kind):
        if field.init:
            default = "" if field.default is MISSING else f" = {field.default!r}"
            yield f"  - `{field.name}{default}`: {texts[field.name]}"


def pair(h: torch.Tensor, start: bool = False, tokens: tuple[int, int] = (CHOSEN_TOKENS, REJECTED_TOKENS)) -> PairLogps:
    """One pair of which the chosen answer has gained half of `h` nats and the rejected one lost as much."""
    one = torch.ones(1, dtype=torch.float64)
    lengths = torch.tensor([float(n) for n in tokens], dtype=torch.float64)
    reference = PER_TOKEN * lengths
    policy = reference + torch.stack([h, -h]) / 2
    within = torch.arange(max(tokens)) < lengths[:, None]
    made = PairLogps(
        policy[:1], policy[1:], reference[:1], reference[1:], lengths[:1], lengths[1:], one, one,
        torch.where(within, (policy / lengths)[:, None], 0),
        torch.where(within, (reference / lengths)[:, None], 0),
        collisions=-2.5 * lengths,
        kl=torch.zeros(2, dtype=torch.float64),
    )  # fmt: skip
    return made.at_start() if start else made


def instance(kind: type) -> Any:
    """A loss with its defaults."""
    return EXAMPLES.get(kind.__name__, kind)()


def starting_value(kind: type) -> str:
    """The loss where policy and reference agree: a number where it is one for all rows, else the words."""
    told = re.search(r"[;,] ([^;]* where [^;]* agree[^;.]*)", " ".join((inspect.getdoc(kind.__call__) or "").split()))
    words = told.group(1) if told else ""
    if not issubclass(kind, PairwiseLoss):
        return words or "as the model has it"
    loss = instance(kind)
    starts = {
        round(float(loss(pair(torch.tensor(h, dtype=torch.float64), True, tokens)).losses), 6)
        for h in (0.0, 3.0)
        for tokens in ((12, 8), (3, 7))
    }
    if len(starts) > 1:
        return words or "as the model has it"
    return f"{starts.pop():.6f}" + (f" by default: {words}" if words else " by default")


def needs(kind: type) -> Iterator[str]:
    """What a loss asks of a run."""
    if not issubclass(kind, PairwiseLoss):
        return
    loss = instance(kind)
    if loss.reference_free:
        yield "no reference"
    if "kl" in loss.statistics:
        yield "a live reference, not a precomputed one"
    if "margin" in loss.statistics:
        yield "a column `margin`"
    if not loss.weighted:
        yield "rows without `weight`"


def takes(kind: type) -> Iterator[str]:
    """What else there is to know about a loss."""
    if issubclass(kind, MarginLoss):
        yield "- **Divergence**: any"
    if issubclass(kind, PolicyLoss) and instance(kind).state is not None:
        yield "- **State**: checkpointed, and the same on all ranks"


def section(each: Entry) -> Iterator[str]:
    """All about a loss."""
    yield f"### {each.name}\n"
    yield linked(each.about) + "\n"
    for word, said in each.lines.items():
        yield f"- **{LABELS[word]}**: {linked(said)}"
    yield f"- **At the start**: {starting_value(each.kind)}"
    if wanted := "; ".join(needs(each.kind)):
        yield f"- **Needs**: {wanted}"
    yield from takes(each.kind)
    if own := list(options(each.kind)):
        yield "- **Options**:\n" + "\n".join(own)
    yield ""


def listed(found: list[Entry], wanted: Callable[[PairwiseLoss], bool]) -> str:
    """Names of the pairwise losses of a kind."""
    pairwise = [each for each in found if issubclass(each.kind, PairwiseLoss)]
    return ", ".join(f"[{each.name}](#{each.name.lower()})" for each in pairwise if wanted(instance(each.kind)))


def measures() -> Iterator[str]:
    """A row for each divergence."""
    for kind in vars(divergences).values():
        if inspect.isclass(kind) and issubclass(kind, Divergence) and not inspect.isabstract(kind):
            text = " ".join((inspect.getdoc(kind) or "").split())
            what, _, name = text.partition(" TRL: ")
            own = "; ".join(f"`{field.name} = {field.default!r}`" for field in fields(kind))
            yield f"| `{kind.__name__}` | {what} | {name.removesuffix('.')} | {own} |".replace("||", "\\|\\|")


def page() -> str:
    """The whole page."""
    found = public()
    rows = [f"| [{each.name}](#{each.name.lower()}) | {each.summary} |" for each in found]
    body: list[str] = []
    module = ""
    for each in found:
        if each.kind.__module__ != module:
            module = each.kind.__module__
            body.append("## " + (inspect.getdoc(sys.modules[module]) or "").splitlines()[0].removesuffix(".") + "\n")
        body.extend(section(each))
    return TEXT.format(
        contents="\n".join(rows),
        body="\n".join(body),
        divergences="\n".join(measures()),
        of_margin=listed(found, lambda loss: isinstance(loss, MarginLoss)),
        unweighted=listed(found, lambda loss: not loss.weighted),
        with_margin=listed(found, lambda loss: "margin" in loss.statistics),
        mpo=MPO.strip(),
        rpo=RPO.strip(),
        picture=f"{CHOSEN_TOKENS} and {REJECTED_TOKENS} tokens of {PER_TOKEN:g} nats under the reference",
    )


TEXT = """\
<!-- Written by docs/make_losses.py from the classes: change a docstring there, then run it. -->
# The losses

Each is a class of `dpo_lightning.losses` with a paper, named by `--model.loss NAME`, its options by
`--model.loss.OPTION VALUE`. An option that a loss does not use cannot be written.

`a` and `r` are the log-ratios of policy to reference of the chosen and the rejected answer, summed over scored tokens;
`h = a - r`; `nw` and `nl` are their scored tokens, `mw` and `ml` the policy's mean log-probabilities per token. A loss
is a number per pair, and a batch's loss their mean, weighted where rows have a weight. Rewards are `beta` times what
the loss compares. Typical values are for whole models; an adapter takes 10 to 100 times the learning rate.

| loss | in a line |
|---|---|
{contents}

![Every loss and its gradient over the margin](losses.png)

Loss (blue, left) and the gradient by h that trains (orange, right) over h in nats, at default options, for a pair of
{picture}: the chosen answer has gained h/2 and the rejected one lost as much. For a pair by itself AOT is DPO, and so
is TDPO where the distributions along both answers are the reference's.

{body}
## Divergences

DPO holds the policy to its reference by the reverse KL. Wang et al. 2023 (f-DPO,
[arXiv:2309.16240](https://arxiv.org/abs/2309.16240)) replace each log-ratio by the derivative of another divergence:
`--model.loss.divergence ForwardKL`. That is sound where a loss sees the difference of both alone, since an unknown
constant then cancels, and can be written for these only: {of_margin}.

| divergence | in place of the log-ratio, t = policy / reference | TRL's name | options |
|---|---|---|---|
{divergences}

## Weights and margins

A column `weight` says how much a pair counts: 2 is the pair twice, 0 leaves it out, and a batch's loss is the weighted
mean, over micro-batches and ranks as well; so is the loss that is logged, while rewards and accuracies count every pair
once. Rows with weights are refused for losses that compare pairs with one another: {unweighted}.

A column `margin` says by how much the chosen answer was found better, 0 or more. Rows without one, or with one below 0,
are refused by what reads it: {with_margin}. Columns of other names: `--data.columns.margin NAME`.

## Mixtures

`WeightedSum` takes any losses, each with its own options. A part of weight 0 is switched off. Rewards and accuracies
are those of the first part that compares answers, and not multiplied. MPO:

```yaml
{mpo}
```

Iterative RPO, whose likelihood is a mean over each answer:

```yaml
{rpo}
```

As an overlay, `fit --config configs/dpo.yaml --config mpo.yaml` lays it over a recipe.

## Your own loss

Subclass `PreferenceLoss`, or `MarginLoss` for one that takes divergences, in a package of yours. A loss that needs more
than sums and lengths names it in `statistics` (`tokens`, `collisions`, `kl`, `margin`); one without a reference says so
in `reference_free`; one that compares pairs in `weighted`; one with state returns a module in `state` and counts in
`observe`. It is named by `--allow-class-path your_package --model.loss your_package.YourLoss`, or in YAML:

```yaml
model:
  loss:
    class_path: your_package.YourLoss
    init_args: {{beta: 0.2}}
```

The [README](../README.md#your-own-loss) has a whole one.
"""


class Curve(NamedTuple):
    """A loss and its gradient at every margin."""

    margins: list[float]
    losses: list[float]
    slopes: list[float]


def curve(loss: Any, margins: list[float]) -> Curve:
    """Computed pair by pair, since some losses compare the pairs of a batch."""
    values, slopes = [], []
    for margin in margins:
        h = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
        output = loss(pair(h)).losses.sum()
        values.append(float(output.detach()))
        slopes.append(float(torch.autograd.grad(output, h)[0]))
    return Curve(margins, values, slopes)


def curves() -> dict[str, Curve]:
    """Every pairwise loss at its defaults, and some of their options."""
    shown = {each.name: instance(each.kind) for each in public() if issubclass(each.kind, PairwiseLoss)}
    shown["WeightedSum: MPO"] = shown.pop("WeightedSum")
    shown |= {
        "DPOLoss, label_smoothing 0.2": losses.DPOLoss(label_smoothing=0.2),
        "IPOLoss, normalization sum": losses.IPOLoss(normalization="sum"),
        "DPOLoss, ForwardKL": losses.DPOLoss(divergence=ForwardKL()),
        "DPOLoss, JensenShannon": losses.DPOLoss(divergence=JensenShannon()),
        "DPOLoss, AlphaDivergence 0.5": losses.DPOLoss(divergence=AlphaDivergence(0.5)),
    }
    near = [h / 5 for h in MARGINS]
    return {name: curve(loss, near if name in STEEP else MARGINS) for name, loss in shown.items()}


def digest(drawn: dict[str, Curve]) -> str:
    """What a picture is made of, so that an old one is told from a new one."""
    text = "".join(
        f"{name}{[f'{x:.3g}' for x in (*found.losses[::8], *found.slopes[::8])]}" for name, found in drawn.items()
    )
    return hashlib.sha256(text.encode()).hexdigest()


def draw(drawn: dict[str, Curve], target: Path) -> None:
    """Small multiples, loss and gradient each on its own scale."""
    from matplotlib.figure import Figure

    columns = 5
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns).flatten()
    for axes, (name, found) in zip(panels, drawn.items(), strict=False):
        axes.axvline(0, color="#cccccc", linewidth=0.8)
        axes.plot(found.margins, found.losses, color=BLUE, linewidth=1.8)
        axes.plot(0, found.losses[len(found.margins) // 2], "o", color=BLUE, markersize=4)
        axes.set_title(name, fontsize=10)
        slope = axes.twinx()
        slope.plot(found.margins, found.slopes, color=ORANGE, linewidth=1.2, linestyle="--")
        slope.set_ylim(*around(found.slopes))
        axes.set_ylim(*around(found.losses))
        for side, colour in ((axes, BLUE), (slope, ORANGE)):
            side.tick_params(axis="y", colors=colour, labelsize=7)
            side.locator_params(axis="y", nbins=4)
            side.spines[["top"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=7)
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    figure.suptitle(
        "loss (solid, left) and its gradient (dashed, right) over h in nats; the dot is the start", fontsize=12
    )
    figure.savefig(target, dpi=80, metadata={"Description": digest(drawn)})


BLUE, ORANGE = "#0b6e99", "#d1691f"


def around(values: list[float]) -> tuple[float, float]:
    """Limits with some air; those of a constant as well."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.1
    return low - air, high + air


if __name__ == "__main__":
    (FOLDER / "losses.md").write_text(page(), encoding="utf-8")
    draw(curves(), FOLDER / "losses.png")
