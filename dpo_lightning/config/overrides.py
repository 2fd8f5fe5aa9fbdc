"""What becomes of a file's options where a later file or a flag names another class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any

from dpo_lightning import losses

OPTION = re.compile(r"--model\.(?:init_args\.)?loss\.(?:init_args\.)?(\w+)")
"""A flag that gives an option of the loss."""


def loss_defaults(files: Sequence[Mapping[str, Any]], flags: Sequence[str]) -> list[str]:
    """Flags that give a loss its own values where the file's are those of another loss.

    The parser carries over every option that both classes have: SimPO with the beta of DPO would hardly train. What is
    given beside the class, in its file or as a flag, stays.
    """
    given = [part for content in files if isinstance(part := section(content).get("loss"), Mapping)]
    names = [short(str(part["class_path"])) for part in given if part.get("class_path")]
    following = zip(flags, [*flags[1:], ""], strict=True)
    named = [value for flag, value in following if flag == "--model.loss"]
    named += [flag.partition("=")[2] for flag in flags if flag.startswith("--model.loss=")]
    last = short((named or names or [""])[-1])
    if last not in losses.__all__:  # one of a user's own is not imported here
        return []
    beside, carried = set(), {}
    for part in given:
        own = short(str(part.get("class_path") or last)) == last
        for option, value in (part.get("init_args") or {}).items():
            if own:
                beside.add(option)
            else:
                carried[option] = value
    beside |= {match[1] for flag in flags if (match := OPTION.match(flag))}
    defaults = own_defaults(f"{losses.__name__}.{last}")
    return [
        f"--model.loss.{option}={default}"
        for option, value in carried.items()
        if option not in beside and isinstance(default := defaults.get(option), int | float | str) and value != default
    ]


def section(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a file's model."""
    model = content.get("model")
    return (model.get("init_args") or model) if isinstance(model, Mapping) else {}


def dropped_options(files: Sequence[Mapping[str, Any]], config: Any) -> Iterator[str]:
    """Options of a file that are gone because a later file or a flag named another class."""
    for content in files:
        given = section(content)
        for name in ("loss", "reference", "optimizer", "lr_scheduler"):
            part = given.get(name)
            if not isinstance(part, Mapping) or "class_path" not in part:
                continue
            before, options = short(part["class_path"]), part.get("init_args") or {}
            now = config.model.init_args.get(name)
            if now is None:
                yield f"--model {short(config.model.class_path)} runs without the file's {name}: {before}"
                continue
            kept = now.get("init_args") or {}
            after, own = short(now.class_path), own_defaults(now.class_path)
            if before == after:
                continue
            lost = [f"{option}={value}" for option, value in options.items() if option not in kept]
            lost += [
                f"{option}={value} ({after} has {own[option]})"
                for option, value in options.items()
                if option in own and value != kept.get(option) == own[option]
            ]
            if lost:
                yield f"--model.{name} {after} takes the place of {before}; dropped from the file: {', '.join(lost)}"
            stayed = [
                f"{option}={value} ({after} by itself has {own[option]})"
                for option, value in options.items()
                if option in own and kept.get(option) == value != own[option]
            ]
            if stayed:
                yield f"--model.{name} {after} runs with what the file has for {before}: {', '.join(stayed)}"


def own_defaults(class_path: str) -> dict[str, Any]:
    """The values that a class gives its options."""
    module, _, name = class_path.rpartition(".")
    parameters = signature(getattr(import_module(module), name)).parameters.values()
    return {option.name: option.default for option in parameters if option.default is not option.empty}


def short(class_path: str) -> str:
    """The name of a class without its module."""
    return class_path.rpartition(".")[2]
