"""Configs as plain data, short errors of the parser, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from dpo_lightning.config.class_paths import ALLOW_FLAG
from dpo_lightning.errors import ExitCode, Problem, UserError

HELP = "python -m dpo_lightning fit --help lists the options"


class Known(NamedTuple):
    """What a key or a class name could have been.

    Attributes:
        keys: every key, some of them only for one of the classes that its owner may be.
        classes: the names of the classes that a key takes.
    """

    keys: Sequence[str]
    classes: Mapping[str, Sequence[str]]


class Said(NamedTuple):
    """The part of a parser's message that matters: where it leads, and what it says there."""

    key: str
    reasons: list[str]
    owner: str
    given: str


UNKNOWN = re.compile(r"(?:Group '([\w.]+)' does not accept option|does not accept option|Option) '([^']+)'")
EXPECTED = re.compile(r"Expected an? (?:<class '(.+?)'>|(.+?))(?:\. Got value: (.*))?")
CALLED = re.compile(r"Type .+ expects a function or a callable class: (.*?)\.*(?:\. Got value: .*)?")
OTHER = re.compile(r"Expected '([\w.]+)' to be a (?:subclass of (.+)|class that instantiates into .+|function that .+)")
NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Subclass types",
    "a class path",
    "a dict ",
    "Expected a path but",
)


def parsing_error(message: str, known: Known) -> UserError:
    """The short form of a jsonargparse message: the key, what is wrong with it, and a near name or the help.

    Args:
        message: what the parser said; a chain of `Parser key "..."` lines, deeper and deeper, then the reason.
        known: every key and class name that could have been meant.
    """
    said = walk(message.splitlines())
    reason = said.reasons[-1] if said.reasons else message.strip().partition("\n")[0]
    if unknown := UNKNOWN.search(reason):
        key = ".".join(part for part in (said.key, *unknown.groups()) if part)
        return unknown_option(key, known.keys, said.owner)
    if reason.startswith("unrecognized arguments:"):
        return unknown_option(reason.split()[2].partition("=")[0].lstrip("-"), known.keys)
    if "are required:" in reason:
        return missing_options(said.key, reason)
    if denied := re.search(r"Importing '([^']+)' is not allowed", "\n".join(said.reasons)):
        return UserError(
            ExitCode.CONFIG,
            Problem("this lies outside of what a config may import", said.key, denied.group(1)),
            fix=f"{ALLOW_FLAG} PACKAGE, if you trust the package",
        )
    if name := re.search(r"Expected a dot import path string: (\S+)", reason):
        return unknown_class(said.key, name.group(1), known)
    wanted = [match for match in map(EXPECTED.fullmatch, said.reasons) if match]
    if wanted and EXPECTED.fullmatch(reason):
        types = " or ".join(dict.fromkeys(spoken_type(match.group(1) or match.group(2)) for match in wanted))
        given = wanted[-1].group(3) or said.given
        return UserError(
            ExitCode.CONFIG, Problem(f"expected {types}", said.key, given), fix=f"--{said.key} with such a value"
        )
    if other := OTHER.match(reason):
        names = " or ".join(re.findall(r"(\w+)(?:'>|[,\]]|$)", other.group(2) or "")) or "class that can be named here"
        return UserError(ExitCode.CONFIG, Problem(f"this is no {names}", said.key, other.group(1)), fix=HELP)
    if kind := re.match(r"Not a valid subclass of (\w+)", reason):
        return UserError(ExitCode.CONFIG, Problem(f"this is no {kind.group(1)}", said.key, said.given), fix=HELP)
    return UserError(ExitCode.CONFIG, Problem(shortened(reason), said.key), fix=HELP)


def walk(lines: Sequence[str]) -> Said:
    """Follow a message from the outermost key in, along the first alternative that leads deeper."""
    keys: list[str] = []
    reasons: list[str] = []
    owner, given, branch = "", "", None
    for raw in lines:
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if branch is not None and indent <= branch and line.startswith("- "):
            break  # another alternative, of what is understood already
        if within := re.match(r"(?:- )?Problem with given class_path '(?:[\w.]*\.)?(\w+)'", line):
            owner = within.group(1)
            branch = indent if line.startswith("- ") else branch
            continue
        line = line.removeprefix("- ")
        line = called.group(1) if (called := CALLED.fullmatch(line)) else line
        if keyed := re.match(r'(?:Parser key|argument) "?(?:--)?([\w.]+)"?:', line):
            name = keyed.group(1).replace("init_args.", "")
            keys += [] if keys[-1:] == [name] else [name]
            line = line[keyed.end() :].strip()
        if line.startswith("Given value:"):
            given = line.partition(": ")[2]
            break
        if line and not line.startswith(("Given value type", *NOISE)) and "<class 'NoneType'>" not in line:
            reasons.append(line)
    return Said(".".join(keys), reasons, owner, given)


def spoken_type(name: str) -> str:
    """A type as a person says it: `one of a, b` for a Literal."""
    plain = name.replace("typing.", "")
    if choices := re.fullmatch(r"Literal\[(.*)\]", plain):
        return "one of " + choices.group(1).replace("'", "")
    return plain


def missing_options(key: str, reason: str) -> UserError:
    """The error for required keys that were not given."""
    names = [name.strip() for name in reason.rpartition(":")[2].split(",")]
    names = [f"{key}.{name}" if key else re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names]
    verb = "is" if len(names) == 1 else "are"
    return UserError(
        ExitCode.CONFIG,
        f"{', '.join(names)} {verb} missing",
        fix=f"--config with a whole recipe (configs/dpo.yaml), or --{names[0]}",
    )


def unknown_class(key: str, name: str, known: Known) -> UserError:
    """The error for a class that is not there, with the nearest one or those that the key takes."""
    classes = known.classes.get(key, ())
    if name in classes:
        return UserError(
            ExitCode.CONFIG,
            Problem("this class is for another module", key, name),
            fix="the recipe of its module (configs/dpo.yaml for pairs, configs/kto.yaml for judged answers)",
        )
    if name == "None":
        overlay = "a second --config with `init_args: {policy: {lora: null}}` below `model`"
        return UserError(ExitCode.CONFIG, Problem("a flag cannot take this away", key, "null"), fix=overlay)
    lower = {kind.lower(): kind for kind in classes or chain(*known.classes.values())}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    listed = f"--{key} takes {', '.join(classes)}" if classes else HELP
    fix = f"did you mean {lower[near[0]]}?" if near else listed
    return UserError(ExitCode.CONFIG, Problem("there is no such class", key, name), fix=fix)


def unknown_option(key: str, known: Sequence[str], owner: str = "") -> UserError:
    """The error for a key that does not exist, with the nearest one: beside it, as a whole, or by its last part.

    Args:
        key: what was written.
        known: keys that exist, some of them only for another class.
        owner: the class that does not take the key.
    """
    if key.endswith("optimizer.lr"):
        return UserError(
            ExitCode.CONFIG,
            Problem("the optimizer has no lr of its own", key),
            fix="--model.learning_rate 5e-7",
        )
    if key in known:
        return UserError(ExitCode.CONFIG, Problem(f"{owner} has no option {key}"), fix="leave the option out")
    parent, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    anywhere = {name.rpartition(".")[2]: name for name in known}
    for word, names in ((last, siblings), (key, {name: name for name in known}), (last, anywhere)):
        near = difflib.get_close_matches(word, names, n=1)
        if near:
            return UserError(
                ExitCode.CONFIG, Problem(f"there is no option {key}"), fix=f"did you mean {names[near[0]]}?"
            )
    return UserError(ExitCode.CONFIG, Problem(f"there is no option {key}"), fix=HELP)


def shortened(text: str, limit: int = 300) -> str:
    """The first and the last part of a long message, where parsers put what matters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"
