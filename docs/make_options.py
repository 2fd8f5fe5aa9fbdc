"""Writes config/options.json, every option of `fit` and its relatives: `python docs/make_options.py`.

The program reads that file in place of the classes: for `--help` and for wrong keys, neither of which waits for torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import docstring_parser
import lightning
from lightning.pytorch import Trainer

from dpo_lightning import callbacks, losses
from dpo_lightning.cli import MODULES, PreferenceCLI
from dpo_lightning.commands.precompute import PrecomputeCLI
from dpo_lightning.config.class_paths import find_option
from dpo_lightning.config.option_table import FILE
from dpo_lightning.data import collate
from dpo_lightning.data.text_datamodule import TextDataModule
from dpo_lightning.losses import Divergence, PolicyLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization
from dpo_lightning.references import ReferencePolicy

LONGEST_TEXT = 170

DEFAULTS = re.compile(r"Defaults?( to)?:? *(``?[^`]*``?|[\d.]+)\.?|Disabled by default \([^)]*\)\.?")
"""Lightning's own defaults in its docstrings, some of which this package changes."""

RUN_TEXTS = {
    "config": "A config; may be repeated, later ones win.",
    "print_config": "Print the whole config that the command line makes, and exit.",
    "seed_everything": "Seed of the order of rows and of every random number.",
    "ckpt_path": "A checkpoint to go on from or to measure; `fit` continues the run in output_dir by itself.",
    "weights_only": "Load nothing but tensors and plain values from a checkpoint.",
    "verbose": "Print the measures.",
    "return_predictions": "Keep the predictions in memory as well.",
}
"""Options of the run whose description by Lightning is about Python, or long."""

TRAINER_TEXTS = {
    "strategy": "How several devices work together: `ddp` (a model on each), `fsdp2` (one model over all), or a class.",
    "devices": "How many devices, a list of their indices, or `auto`.",
    "num_nodes": "Machines; `torchrun`, `srun` or `submit` starts a process on each.",
    "precision": "`bf16-mixed`, `16-mixed`, `32-true`, `bf16-true` and others; left out, the hardware decides.",
    "logger": "A logger or a list of them; left out, TensorBoard in the run's folder; `false` for none.",
    "callbacks": "Callbacks beside those that every run has; `callbacks+` adds to those of an earlier config.",
    "max_epochs": "Passes over the training rows.",
    "max_steps": "A cap on the optimizer steps; -1 is none.",
    "max_time": "Stop after this time (00:12:00:00 is 12 h), saved; the same command goes on.",
    "limit_train_batches": "Batches of an epoch, as a number or as a share.",
    "limit_val_batches": "Batches of an evaluation, as a number or as a share; 0 switches it off.",
    "val_check_interval": "Evaluate after this share of an epoch, or number of batches; left out, after each epoch.",
    "log_every_n_steps": "Optimizer steps between two rows of the log; left out, 50.",
    "enable_checkpointing": "`false` saves no checkpoints, from which a stopped run continues.",
    "enable_progress_bar": "Show the bar on a terminal.",
    "gradient_clip_val": "Largest norm of the gradient; left out, it is not clipped.",
    "gradient_clip_algorithm": "`norm` or `value`.",
    "barebones": "Not supported: it switches off measures, checks and checkpoints.",
    "default_root_dir": "Not supported: the run's folder is output_dir.",
}
"""Options of the trainer that differ here, or whose description by Lightning takes several sentences."""


class BuiltParsers(Exception):  # noqa: N818 - nothing has failed
    """Raised once the parsers of all subcommands are there."""


def list_losses(base: type) -> list[type]:
    """The concrete classes of a kind in the package of the losses."""
    found = (getattr(losses, name) for name in losses.__all__)
    return [kind for kind in found if issubclass(kind, base) and not inspect.isabstract(kind)]


def sort_own(kinds: list[type], first: str = "") -> list[type]:
    """This package's classes by their names, one of them first: subclasses are listed in the order of their imports."""
    own = [kind for kind in kinds if kind.__module__.startswith("dpo_lightning.")]
    return sorted(own, key=lambda kind: (kind.__name__ != first, kind.__name__))


def list_places() -> dict[str, list[type]]:
    """Every key that takes options of a class, and the classes that it may have, those of the first recipe first."""
    kinds = list_losses(PolicyLoss)
    return {
        "model": list(MODULES),
        "model.policy": [CausalLM],
        "model.policy.lora": [Lora],
        "model.policy.quantization": [Quantization],
        "model.loss": sorted(kinds, key=lambda kind: kind.__name__ != "DPOLoss"),
        "model.loss.divergence": list_losses(Divergence),
        "model.reference": sort_own(ReferencePolicy.kinds()),
        "data": sort_own(TextDataModule.__subclasses__(), "PreferenceDataModule"),
        "data.collator": [collate.Padded, collate.Packed, collate.SharedPrefix, collate.PackedSharedPrefix],
        "trainer": [Trainer],
        "trainer.callbacks": [getattr(callbacks, name) for name in callbacks.__all__],
    }


def build_parsers(kind: type[PreferenceCLI], command: str) -> dict[str, Any]:
    """The parsers of a CLI's subcommands, which parse nothing."""

    class Interrupted(kind):  # type: ignore[misc, valid-type]
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise BuiltParsers

    made = Interrupted.__new__(Interrupted)
    try:
        made.__init__([command])
    except BuiltParsers:
        return dict(made._subcommand_parsers)
    raise AssertionError


def describe_run(parser: Any) -> list[dict[str, Any]]:
    """The options of a subcommand that belong to no class."""
    sections = ("model", "data", "trainer", "help")
    actions = [action for action in parser._actions if action.dest.partition(".")[0] not in sections]
    return [
        {
            "name": action.dest,
            "type": format_type(getattr(action, "_typehint", None) or action.type or bool),
            "default": describe_default(action),
            "help": RUN_TEXTS.get(action.dest) or shorten(action.help),
        }
        for action in actions
    ]


def describe_default(action: Any) -> str:
    """The default of an option of the run; switches, and files to read, have none."""
    if action.dest in ("config", "print_config"):
        return ""
    return "required" if action.required else format_value(action.default)


def describe_class(place: str, kind: type, parser: Any) -> dict[str, Any]:
    """A class with its options, for one place."""
    texts = read_documentation(kind) | (TRAINER_TEXTS if kind is Trainer else {})
    options = []
    for name, parameter in inspect.signature(kind).parameters.items():
        found = find_option(kind, name)
        default = parser.get_default(f"trainer.{name}") if kind is Trainer else parameter.default
        options.append(
            {
                "name": name,
                "type": format_type(found.annotation if found else None),
                "default": format_value(default),
                "help": shorten(texts.get(name, "")),
            }
        )
    return {"place": place, "name": kind.__name__, "summary": shorten(kind.__doc__ or ""), "options": options}


def read_documentation(kind: type) -> dict[str, str]:
    """What a class and its bases say of each option: an entry of `Args`, or the docstring of a field."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        own = vars(base).get("__init__")
        parsed = [docstring_parser.parse_from_object(base)] if dataclasses.is_dataclass(base) else []
        if inspect.isfunction(own) and own.__doc__ and not dataclasses.is_dataclass(base):
            parsed.append(docstring_parser.parse(own.__doc__))
        elif not dataclasses.is_dataclass(base):
            parsed.append(docstring_parser.parse(base.__doc__ or ""))
        texts |= {each.arg_name: each.description for found in parsed for each in found.params if each.description}
    return texts


def shorten(text: str) -> str:
    """The first sentence of a text, on one line and without marks of reStructuredText; a further one if it is short."""
    text = DEFAULTS.sub("", text.partition("\n\n")[0])
    plain = re.sub(r":\w+:`~?([^`]*)`|``([^`]*)``", lambda found: f"`{found[1] or found[2]}`", " ".join(text.split()))
    plain = plain.rstrip(": ")
    sentences = re.split(r"(?<=[.!])\s+(?=[A-Z`])", plain)
    line = sentences[0]
    for sentence in sentences[1:]:
        if len(f"{line} {sentence}") > LONGEST_TEXT:
            break
        line = f"{line} {sentence}"
    return line[:1].upper() + line[1:] + ("" if line.endswith((".", "!")) or not line else ".")


def format_type(hint: Any) -> str:
    """A type as a reader of YAML says it: `float or null`, `error, drop or truncate`."""
    return " or ".join(dict.fromkeys(list_types(hint))) or "any"


def list_types(hint: Any) -> Iterator[str]:
    """The alternatives of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for part in sorted(arguments, key=lambda part: part is types.NoneType):
            yield from list_types(part)
    elif origin is typing.Literal:
        yield "|".join(format_value(value) for value in arguments)
    elif hint is types.NoneType:
        yield "null"
    elif origin is not None and "Callable" in str(origin):
        yield from list_types(arguments[-1])
    elif arguments:
        inner = " or ".join(dict.fromkeys(name for part in arguments for name in list_types(part)))
        yield f"{'mapping' if origin is dict else 'list'} of {inner}"
    elif hint not in (None, Any):
        yield getattr(hint, "__name__", str(hint))


def format_value(value: Any) -> str:
    """A default as YAML has it, or the name of its class."""
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, type):
        package = value.__module__.rpartition(".")[0]
        return f"{package}.{value.__name__}" if package.startswith("torch") else value.__name__
    return str(value) if isinstance(value, int | float | str) else type(value).__name__


def render() -> str:
    """The file: commands with the options of the run, then classes with theirs, an option on each line."""
    parsers = build_parsers(PreferenceCLI, "fit") | build_parsers(PrecomputeCLI, "precompute")
    commands = {name: describe_run(parser) for name, parser in parsers.items()}
    kinds = [(place, kind) for place, several in list_places().items() for kind in several]
    runs = [f'"{name}": {render_options(options)}' for name, options in commands.items()]
    entries = [render_class(describe_class(place, kind, parsers["fit"])) for place, kind in kinds]
    lines = [
        "{",
        f'"lightning": "{lightning.__version__}",',
        '"commands": {',
        ",\n".join(runs),
        "},",
        '"classes": [',
        ",\n".join(entries),
        "]",
        "}",
    ]
    return "\n".join(lines) + "\n"


def render_class(entry: dict[str, Any]) -> str:
    """A class as JSON: itself on one line, then its options."""
    head = json.dumps({name: value for name, value in entry.items() if name != "options"}, ensure_ascii=False)
    return f'{head[:-1]}, "options": {render_options(entry["options"])}}}'


def render_options(options: list[dict[str, Any]]) -> str:
    """A list of options as JSON, one on each line."""
    inner = ",\n".join(f"  {json.dumps(option, ensure_ascii=False)}" for option in options)
    return f"[\n{inner}\n]" if options else "[]"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
