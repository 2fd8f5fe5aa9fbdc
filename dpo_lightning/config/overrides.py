"""Which options of a file apply when a later file or a flag replaces a class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any

from dpo_lightning import losses

OPTION = re.compile(r"--model\.(?:init_args\.)?loss\.(?:init_args\.)?(\w+)")
"""A flag that sets an option of the loss."""


def loss_defaults(files: Sequence[Mapping[str, Any]], flags: Sequence[str]) -> list[str]:
    """Return flags that reset options which belong to another loss in the file.

    jsonargparse carries over every option that both classes have: SimPO with the beta of DPO would hardly train.
    Options that are set together with the class, in its file or as a flag, stay.
    """
    given = [part for content in files if isinstance(part := model_options(content).get("loss"), Mapping)]
    names = [class_name(str(part["class_path"])) for part in given if part.get("class_path")]
    following = zip(flags, [*flags[1:], ""], strict=True)
    named = [value for flag, value in following if flag == "--model.loss"]
    named += [flag.partition("=")[2] for flag in flags if flag.startswith("--model.loss=")]
    last = class_name((named or names or [""])[-1])
    if last not in losses.__all__:  # a user's own loss is not imported here
        return []
    # Options set together with the last class stay; jsonargparse carries over those of earlier ones.
    beside, carried = set(), {}
    for part in given:
        own = class_name(str(part.get("class_path") or last)) == last
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


def model_options(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a file's model."""
    model = content.get("model")
    return (model.get("init_args") or model) if isinstance(model, Mapping) else {}


ADDED = (
    "FinalModel", "MonitorCheck", "NonFinite", "OptimizerLog", "PreferenceAccuracy", "ProgressLog", "RankedRewards",
    "RewardMargins", "RouterBalance", "RunCheckpoints", "SelfCheck", "StepBar", "TokenLoss", "UnpairedRewards",
)  # fmt: skip
"""Callbacks that a run adds by itself where its config names none, with their defaults."""


def find_dropped_callbacks(files: Sequence[Mapping[str, Any]], config: Any) -> Iterator[str]:
    """Iterate over a message about callbacks of a file that a later list of callbacks has replaced."""
    kept = {class_name(str(each["class_path"])) for each in listed(config.trainer.get("callbacks"))}
    dropped: dict[str, str] = {}
    for content in files:
        trainer = content.get("trainer")
        for key in ("callbacks", "callbacks+"):
            for each in listed(trainer.get(key) if isinstance(trainer, Mapping) else None):
                known = isinstance(each, Mapping)
                name = class_name(str(each.get("class_path") if known else each))
                options = bool(each.get("init_args")) if known else False
                if name not in kept and (name not in ADDED or options):
                    dropped[name] = f"{name} (its options)" if name in ADDED else name
    if dropped:
        yield (
            f"a later trainer.callbacks replaces the file's list; dropped: {', '.join(dropped.values())} "
            "(callbacks+ in place of callbacks adds to the list)"
        )


def listed(value: Any) -> list[Any]:
    """Return several values, one or none as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def find_dropped_options(files: Sequence[Mapping[str, Any]], config: Any) -> Iterator[str]:
    """Iterate over messages about options of a file that do not apply, because another class was named later."""
    yield from find_dropped_callbacks(files, config)
    for content in files:
        given = model_options(content)
        for name in ("loss", "reference", "optimizer", "lr_scheduler"):
            part = given.get(name)
            if not isinstance(part, Mapping) or "class_path" not in part:
                continue
            before, options = class_name(part["class_path"]), part.get("init_args") or {}
            now = config.model.init_args.get(name)
            if now is None:
                yield f"--model {class_name(config.model.class_path)} does not use the file's {name}: {before}"
                continue
            kept = now.get("init_args") or {}
            after, own = class_name(now.class_path), own_defaults(now.class_path)
            if before == after:
                continue
            lost = [f"{option}={value}" for option, value in options.items() if option not in kept]
            # Options that the new class has as well, but which were reset to its own default.
            lost += [
                f"{option}={value} ({after} uses {own[option]})"
                for option, value in options.items()
                if option in own and value != kept.get(option) == own[option]
            ]
            if lost:
                yield f"--model.{name} {after} replaces {before}; dropped options of the file: {', '.join(lost)}"
            # Options that were carried over although the new class has another default.
            stayed = [
                f"{option}={value} (default of {after}: {own[option]})"
                for option, value in options.items()
                if option in own and kept.get(option) == value != own[option]
            ]
            if stayed:
                yield f"--model.{name} {after} keeps the file's options for {before}: {', '.join(stayed)}"


def own_defaults(class_path: str) -> dict[str, Any]:
    """Return the defaults of a class's options, by name."""
    module, _, name = class_path.rpartition(".")
    parameters = signature(getattr(import_module(module), name)).parameters.values()
    return {option.name: option.default for option in parameters if option.default is not option.empty}


def class_name(class_path: str) -> str:
    """Return the name of a class path without its module."""
    return class_path.rpartition(".")[2]
