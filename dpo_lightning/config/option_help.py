"""`fit --help` and its sections, for a terminal of 80 columns, out of the table of options."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dpo_lightning.config.columns import WIDTH, format_row
from dpo_lightning.config.option_table import Option, OptionClass, read_options
from dpo_lightning.config.unknown_options import ALIKE, UnknownOption, format_translation
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.foreign_names import translate_option

PROGRAM = "python -m dpo_lightning"
START, FIRST_START, SECTION_START = 28, 39, 18
"""Where the second column of a section begins, of the first page, and of its list of sections."""

SUMMARIES = {
    "fit": "Train by SFT, DPO, KTO or on ranked lists, as the config names.",
    "validate": "Measure a model on the rows of data.eval.",
    "test": "Measure a model on the rows of data.eval; the measures are named test/...",
    "predict": "Write rewards and log-probabilities of the rows of data.eval to predictions.jsonl.",
    "precompute": "Compute the reference's log-probabilities of every row once, into a file that runs share.",
}
"""What each command does."""

RUN = {
    "config": "a config; repeat it, and later ones win",
    "output_dir": "the run's folder (required)",
    "out": "the file of log-probabilities",
    "shard": "I/N: the rows of part I of N",
    "fresh": "move a run that is already there aside",
    "final": "weights of final_model: last or best",
    "ckpt_path": "a checkpoint to resume or to measure",
    "seed_everything": "of row order and every random number",
    "print_config": "print the whole config, and exit",
}
MODEL = {
    "model.policy.path": "model folder, adapter folder or hub id",
    "model.policy.gradient_checkpointing": "slower, with far less memory",
    "model.policy.lora.r": "rank of an adapter; left out, none",
    "model.policy.quantization.bits": "4 or 8 below an adapter; left out, none",
}
TRAINING = {
    "model.loss": "one of many (--help loss)",
    "model.loss.beta": "larger: nearer to the reference",
    "model.reference": "left out, it follows from the policy",
    "model.learning_rate": "5e-7 is usual from 7B on",
    "model.optimizer": "a class of torch.optim or bitsandbytes",
}
DATA = {
    "data.train": "files, folders or hf://org/name",
    "data.eval": "held-out rows",
    "data.batch_size": "rows per device and micro-batch",
    "data.max_length": "tokens of prompt and longer answer",
    "data.limit_rows": "a part of the rows, for trials",
}
LOOP = {
    "trainer.max_epochs": "passes over the rows",
    "trainer.max_steps": "a cap on optimizer steps; -1 is none",
    "trainer.accumulate_grad_batches": "micro-batches of one optimizer step",
    "trainer.val_check_interval": "share of an epoch between evaluations",
    "trainer.log_every_n_steps": "steps between two rows of a log",
}
MACHINE = {
    "trainer.precision": "bf16-mixed, 32-true; by the hardware",
    "trainer.accelerator": "cpu, cuda or auto",
    "trainer.devices": "how many, or which",
}
"""Keys on the first page, with what fits beside them there."""

SECTIONS = {
    "model": (("model", "model.policy", "model.policy.lora", "model.policy.quantization"), "what is trained, and how"),
    "policy": (("model.policy",), "the model: folder, precision, attention"),
    "lora": (("model.policy.lora",), "a low-rank adapter in place of all weights"),
    "quantization": (("model.policy.quantization",), "a base in 4 or 8 bits below an adapter"),
    "loss": (("model.loss", "model.loss.divergence"), "the losses, each with its options"),
    "reference": (("model.reference",), "what the policy is compared with"),
    "data": (("data", "data.collator"), "rows, batches, lengths, templates, cache"),
    "collator": (("data.collator",), "layouts of a batch"),
    "trainer": (("trainer",), "epochs, devices, precision, logging"),
    "callbacks": (("trainer.callbacks",), "measures, samples, checkpoints"),
}
"""Sections that can be named: the keys whose classes they show, and a line for the first page."""

MANY = 10
"""Classes of one key from which a section lists their options with defaults only."""


def find_topic(args: Sequence[str]) -> str | None:
    """Return what a command line wants to have explained.

    Returns:
        The section or class after `--help`, empty if there is none, or the class of `--KEY.help CLASS` if it is one of
        this package; None otherwise.
    """
    places = read_options().places
    for word, following in pairwise([*args, ""]):
        flag, equals, value = word.partition("=")
        value = value if equals else "" if following.startswith("-") else following
        if flag in ("-h", "--help"):
            return value
        place = flag.removeprefix("--").removesuffix(".help")
        if flag.endswith(".help") and place in places:
            kinds = [kind.name for kind in places[place] if kind.name == value.rpartition(".")[2] or not value]
            if len(kinds) == 1:
                return kinds[0]
    return None


def format_help(command: str, topic: str = "") -> str:
    """Format the help of a command.

    Args:
        command: `fit` or one that has its options.
        topic: a section, a class, a key or its end, also one of another trainer, `all`, or empty for the first page.

    Raises:
        UserError: 64, there is no such section or class.
    """
    table = read_options()
    sections = {place: (place,) for place in table.places} | {name: places for name, (places, _) in SECTIONS.items()}
    plain = topic.lower().lstrip("-")
    forms = (plain, f"{plain}s", plain.removesuffix("s"), plain.removesuffix("es"))
    named = next((form for form in forms if form in sections), None)
    if not topic:
        lines = list(format_first_page(command))
    elif plain == "all":
        lines = [*format_run(command), *format_classes(list(table.places), in_full=True)]
    elif named is not None:
        lines = list(format_classes(sections[named], in_full=False))
    elif (kind := table.find_class(topic.rpartition(".")[2])) is not None:
        lines = list(format_class(kind))
    elif not (lines := list(format_keys(command, plain))):
        raise unknown_topic_error(command, topic)
    return "\n".join(lines).strip("\n")


def format_keys(command: str, name: str) -> Iterator[str]:
    """Iterate over the lines of the options that a dotted key, its end, or another trainer's name of it means."""
    table = read_options()
    found: dict[tuple[str, Option], list[str]] = {("", option): [] for option in table.commands[command]}
    for place, kinds in table.places.items():
        for kind in kinds:
            for option in kind.options:
                found.setdefault((place, option), []).extend([kind.name] if len(kinds) > 1 else [])
    keys = {(place, option): f"{place}.{option.name}".lstrip(".") for place, option in found}
    if not any(f".{key}".endswith(f".{name}") for key in keys.values()):
        foreign = translate_option(name)
        name = foreign.key if foreign is not None and foreign.key else name
    for entry, key in keys.items():
        if f".{key}".endswith(f".{name}"):
            yield from textwrap.wrap(f"--{key}" + (f", of {', '.join(found[entry])}" if found[entry] else ""), WIDTH)
            yield from format_option(entry[1])
            yield ""


def unknown_topic_error(command: str, topic: str) -> UserError:
    """Make the error for a section that does not exist."""
    table = read_options()
    names = [*SECTIONS, "all", *(kind.name for kinds in table.places.values() for kind in kinds)]
    names += [key.rpartition(".")[2] for key in table.list_keys(command)]
    near = difflib.get_close_matches(topic, names, n=1, cutoff=ALIKE)
    fix = f"did you mean {near[0]}?" if near else f"{PROGRAM} {command} --help lists the sections"
    if (foreign := translate_option(topic)) is not None:
        fix = format_translation(UnknownOption(topic), foreign)
    return UserError(ExitCode.CONFIG, f"--help has no section {topic!r}", fix=fix)


def format_first_page(command: str) -> Iterator[str]:
    """Iterate over the lines of the first page: the options that most runs set, and the sections with all of them."""
    yield f"usage: {PROGRAM} {command} --config FILE [--KEY VALUE ...]"
    yield ""
    yield from textwrap.wrap(SUMMARIES[command], WIDTH)
    text = "A config is a YAML file: configs/*.yaml are whole recipes. Every key of it is a flag as well, which wins."
    yield from textwrap.wrap(f"{text} The options that most runs set, with their defaults:", WIDTH)
    yield ""
    for option in read_options().commands[command]:
        if option.name in RUN:
            yield from format_row(f"  {format_name(option, option.name)}", RUN[option.name], FIRST_START)
    yield from format_row("  --allow-class-path PACKAGE", "let a config name your own classes", FIRST_START)
    trains = command in ("fit", "precompute")
    for part in (MODEL, TRAINING, DATA, LOOP, MACHINE) if trains else (MODEL, DATA, MACHINE):
        yield ""
        for key, text in part.items():
            parent = key.rpartition(".")[0]
            absent = "." in parent and find_option(parent).default == "null"  # unless an option of it is given
            name = f"--{key}" if absent else format_name(find_option(key), key)
            yield from format_row(f"  {name}", text, FIRST_START)
    yield ""
    yield f"All options, by section: {PROGRAM} {command} --help SECTION"
    for name, (_, line) in SECTIONS.items():
        yield from format_row(f"  {name}", line, SECTION_START)
    yield from format_row("  CLASS", "one class, such as DPOModule, DPOLoss or Samples", SECTION_START)
    yield from format_row("  KEY", "one option, such as lr_scheduler", SECTION_START)
    yield from format_row("  all", "everything", SECTION_START)


def format_name(option: Option, key: str) -> str:
    """Format an option as a flag with its default."""
    switch = option.default in ("", "required", "null") or (option.default == "false" and "." not in key)
    return f"--{key}" if switch else f"--{key}={option.default}"


def format_run(command: str) -> Iterator[str]:
    """Iterate over the lines of the options that belong to no class."""
    for option in read_options().commands[command]:
        yield from format_option(option)
    yield ""


def find_option(key: str) -> Option:
    """Return the option of a dotted key, of the first class that has it."""
    place, _, name = key.rpartition(".")
    kinds = read_options().places[place]
    return next(option for kind in kinds for option in kind.options if option.name == name)


def format_classes(places: Sequence[str], in_full: bool) -> Iterator[str]:
    """Iterate over the lines of all classes that keys take.

    Args:
        places: the keys.
        in_full: describe each option of each class; otherwise those of many classes are listed with their defaults.
    """
    for place in places:
        kinds = read_options().places[place]
        if len(kinds) == 1:
            yield from format_class(kinds[0])
            continue
        shared = [option for option in kinds[0].options if all(option in kind.options for kind in kinds)]
        yield f"--{place} NAME, one of {len(kinds)} classes" + (f"; --{place}.OPTION VALUE" if shared else "")
        for option in shared:
            yield from format_option(option)
        for kind in kinds:
            own = [option for option in kind.options if option not in shared]
            yield from format_row(f"  {kind.name}", kind.summary, START)
            if in_full or len(kinds) < MANY:
                for option in own:
                    yield from format_option(option, indent=4)
            elif own:
                listed = ", ".join(f"{option.name}={option.default}" for option in own)
                yield from format_row("", f"[{listed}]", START)
        if not in_full and len(kinds) >= MANY:
            yield from format_meanings(kinds)
        yield ""


def format_meanings(kinds: Sequence[OptionClass]) -> Iterator[str]:
    """Iterate over the lines of the options that classes have, each with its meaning, once."""
    owners: dict[tuple[str, str], list[str]] = {}
    for kind in kinds:
        for option in kind.options:
            owners.setdefault((option.name, option.help), []).append(kind.name)
    yield ""
    yield f"Their options, --{kinds[0].place}.OPTION VALUE"
    for (name, text), names in sorted(owners.items(), key=lambda row: row[0][0]):
        several = sum(name == other for other, _ in owners) > 1
        owner = "most classes" if len(names) > 3 else ", ".join(names)
        yield from format_row(f"  {name}", f"{owner}: {text}" if several else text, START)


def format_class(kind: OptionClass) -> Iterator[str]:
    """Iterate over the lines of one class with its options."""
    yield f"{kind.name}: --{kind.place}.OPTION VALUE"
    yield from textwrap.wrap(kind.summary, WIDTH)
    for option in kind.options:
        yield from format_option(option)
    if not kind.options:
        yield "  (no options)"
    yield ""


def format_option(option: Option, indent: int = 2) -> Iterator[str]:
    """Iterate over the lines of an option: its name and default, its choices, and what it does."""
    required = option.default == "required"
    named = re.fullmatch(r"[\w.-]+(\|[\w.-]+)+", option.type)
    choices = f" {option.type}." if named and any(word not in option.help for word in option.type.split("|")) else ""
    text = f"{'Required. ' if required else ''}{option.help}{choices}"
    name = option.name if required or not option.default else f"{option.name}={option.default}"
    yield from format_row(" " * indent + name, text.strip(), START)
