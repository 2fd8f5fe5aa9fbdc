"""`make_points`: the product of swept values and seeds, as points with names and flags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from dpo_lightning.errors import ExitCode, Problem, UserError

SEED = "seed_everything"

OWN_KEYS = ("output_dir", "ckpt_path", "config", "fresh")
"""Options of `fit` that the sweep sets for each point."""

NAME = r"[A-Za-z_][\w.+-]*"
"""A point's name, as a regular expression: it is that of a folder."""

VALUE_LIMIT = 40
"""Characters of a value in a point's name."""

UNNAMED_PACKAGES = r"(dpo_lightning|torch\.optim)\.([A-Za-z_]\w*\.)*"
"""Packages that are left out of a point's name, as a regular expression: classes of others may have the same names."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: of its folder, such as `beta-0.1_seed-42`.
        overrides: config key -> value as it was written, the seed included.
    """

    name: str
    overrides: dict[str, str]

    @property
    def setting(self) -> dict[str, str]:
        """The overrides without the seed; points that differ in the seed alone share it."""
        return {key: text for key, text in self.overrides.items() if key != SEED}

    def flags(self) -> list[str]:
        """Flags of `fit`. A class comes before its options, which would otherwise belong to the class before it."""
        return [f"--{key}={text}" for key, text in sorted(self.overrides.items(), key=lambda pair: pair[0].count("."))]


def make_points(over: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Point]:
    """Return a point for each combination of values, the last key varying fastest.

    Args:
        over: config key -> its values as texts.
        seeds: values of `seed_everything`; empty for the config's own.

    Raises:
        UserError: 64, a key cannot be swept, or a value is given twice.
    """
    swept = {plain_key(key): list(texts) for key, texts in over.items()}
    if seeds:
        swept[SEED] = [str(seed) for seed in seeds]
    check_swept(swept)
    short = short_keys(list(swept))
    points = [Point(make_name(short, dict(zip(swept, texts, strict=True))), dict(zip(swept, texts, strict=True)))
              for texts in product(*swept.values())]  # fmt: skip
    again = [name for name, count in Counter(point.name for point in points).items() if count > 1]
    if again:
        what = Problem("two values have the same name", "--over", again[0])
        raise UserError(ExitCode.CONFIG, what, fix="shorter values, for example the name of a config file for each")
    return points


def check_swept(swept: Mapping[str, Sequence[str]]) -> None:
    """Check keys and values.

    Raises:
        UserError: as `make_points`.
    """
    problems = []
    for key, texts in swept.items():
        where = "--seeds" if key == SEED else f"--over {key}"
        if key in OWN_KEYS:
            problems.append(Problem("the sweep sets this option itself", where))
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
            problems.append(Problem("not a key of a config, such as model.loss.beta", where, key))
        if not texts:
            problems.append(Problem("no values", where))
        values = [repr(parse_value(text)) for text in texts]
        problems += [Problem("the value is given twice", where, text)
                     for place, text in enumerate(texts) if values[place] in values[:place]]  # fmt: skip
    if problems:
        raise UserError(ExitCode.CONFIG, problems, fix="--over model.loss.beta 0.01 0.1 0.5, and --seeds 1 2 3")


def plain_key(key: str) -> str:
    """Return a key as it is written on the command line, without dashes and `init_args`."""
    return key.removeprefix("--").replace("init_args.", "")


def parse_value(text: str) -> Any:
    """Return a number, or the text as YAML; `1e-5` is a number, although YAML 1.1 reads it as text."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Map each key to its last parts, as many as it takes to tell the keys apart; `seed` for the seed."""
    found = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        found[key] = next(tail for tail in [*tails, key] if not any(other.endswith(f".{tail}") for other in others))
    return {key: "seed" if key == SEED else tail for key, tail in found.items()}


def make_name(short: Mapping[str, str], overrides: Mapping[str, str]) -> str:
    """Return a point's name out of keys and values, with the characters that every file system takes."""
    parts = [f"{short[key]}-{clean(text)}" for key, text in overrides.items()]
    return "_".join(parts) or "point"


def clean(text: str) -> str:
    """Return a value for a file name: of a class of `UNNAMED_PACKAGES` its name alone, other characters as dashes."""
    if known := re.fullmatch(rf"{UNNAMED_PACKAGES}(?P<name>[A-Za-z_]\w*)", text):
        text = known["name"]
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")[:VALUE_LIMIT] or "empty"
