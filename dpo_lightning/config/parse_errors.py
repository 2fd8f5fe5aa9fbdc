"""Messages of jsonargparse as short errors: the key, what is wrong, and a suggestion."""

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
    """Keys and class names that a misspelt one may have meant.

    Attributes:
        keys: every key, some of them for one class of several only.
        classes: the names of the classes that a key takes.
    """

    keys: Sequence[str]
    classes: Mapping[str, Sequence[str]]


class ParsedMessage(NamedTuple):
    """The relevant parts of jsonargparse's message.

    Attributes:
        key: dotted key of the option.
        reasons: the reasons, from the outermost to the innermost.
        owner: the class whose option it is, or empty.
        given: the value, or empty.
    """

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


def parser_error(message: str, known: Known) -> UserError:
    """Shorten a message of jsonargparse to the key, the reason, and a similar name or the help.

    Args:
        message: lines of `Parser key "..."`, deeper and deeper, then the reason.
        known: every key and class name that may have been meant.
    """
    parsed = parse_message(message.splitlines())
    reason = parsed.reasons[-1] if parsed.reasons else message.strip().partition("\n")[0]
    if unknown := UNKNOWN.search(reason):
        key = ".".join(part for part in (parsed.key, *unknown.groups()) if part)
        return unknown_option_error(key, known.keys, parsed.owner)
    if reason.startswith("unrecognized arguments:"):
        return unknown_option_error(reason.split()[2].partition("=")[0].lstrip("-"), known.keys)
    if "are required:" in reason:
        return missing_options_error(parsed.key, reason)
    if denied := re.search(r"Importing '([^']+)' is not allowed", "\n".join(parsed.reasons)):
        return UserError(
            ExitCode.CONFIG,
            Problem("a config may not import this package", parsed.key, denied.group(1)),
            fix=f"if you trust it: {ALLOW_FLAG} PACKAGE",
        )
    if name := re.search(r"Expected a dot import path string: (\S+)", reason):
        return unknown_class_error(parsed.key, name.group(1), known)
    wanted = [match for match in map(EXPECTED.fullmatch, parsed.reasons) if match]
    if wanted and EXPECTED.fullmatch(reason):
        types = " or ".join(dict.fromkeys(format_type(match.group(1) or match.group(2)) for match in wanted))
        given = wanted[-1].group(3) or parsed.given
        return UserError(
            ExitCode.CONFIG, Problem(f"expected {types}", parsed.key, given), fix=f"change the value of --{parsed.key}"
        )
    if other := OTHER.match(reason):
        names = " or ".join(re.findall(r"(\w+)(?:'>|[,\]]|$)", other.group(2) or "")) or "class that the option takes"
        return UserError(ExitCode.CONFIG, Problem(f"not a {names}", parsed.key, other.group(1)), fix=HELP)
    if kind := re.match(r"Not a valid subclass of (\w+)", reason):
        return UserError(ExitCode.CONFIG, Problem(f"not a {kind.group(1)}", parsed.key, parsed.given), fix=HELP)
    return UserError(ExitCode.CONFIG, Problem(shorten(reason), parsed.key), fix=HELP)


def parse_message(lines: Sequence[str]) -> ParsedMessage:
    """Follow a message from the outermost key inwards, along the first alternative that leads deeper."""
    keys: list[str] = []
    reasons: list[str] = []
    # `branch` is the indentation of the first of several alternatives of a type.
    owner, given, branch = "", "", None
    for raw in lines:
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if branch is not None and indent <= branch and line.startswith("- "):
            break  # a second alternative; the first one was parsed
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
    return ParsedMessage(".".join(keys), reasons, owner, given)


def format_type(name: str) -> str:
    """Format a type for a message: `one of a, b` for a Literal."""
    plain = name.replace("typing.", "")
    if choices := re.fullmatch(r"Literal\[(.*)\]", plain):
        return "one of " + choices.group(1).replace("'", "")
    return plain


def missing_options_error(key: str, reason: str) -> UserError:
    """Make the error for required keys that are not set."""
    names = [name.strip() for name in reason.rpartition(":")[2].split(",")]
    names = [f"{key}.{name}" if key else re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names]
    verb = "is" if len(names) == 1 else "are"
    return UserError(
        ExitCode.CONFIG,
        f"{', '.join(names)} {verb} missing",
        fix=f"--config with a whole recipe (configs/dpo.yaml), or --{names[0]}",
    )


def unknown_class_error(key: str, name: str, known: Known) -> UserError:
    """Make the error for an unknown class, with the most similar one or those that the key takes."""
    classes = known.classes.get(key, ())
    if name in classes:
        return UserError(
            ExitCode.CONFIG,
            Problem("this class belongs to another module", key, name),
            fix="use the recipe of its module (configs/dpo.yaml for pairs, configs/kto.yaml for unpaired rows)",
        )
    if name == "None":
        overlay = "use a second --config with `init_args: {policy: {lora: null}}` below `model`"
        return UserError(ExitCode.CONFIG, Problem("a flag cannot set this to null", key), fix=overlay)
    lower = {kind.lower(): kind for kind in classes or chain(*known.classes.values())}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    listed = f"--{key} takes {', '.join(classes)}" if classes else HELP
    fix = f"did you mean {lower[near[0]]}?" if near else listed
    return UserError(ExitCode.CONFIG, Problem("the class does not exist", key, name), fix=fix)


def unknown_option_error(key: str, known: Sequence[str], owner: str = "") -> UserError:
    """Make the error for an unknown key, with the most similar one: a sibling, a whole key, or a last part.

    Args:
        key: as it was written.
        known: existing keys, some of them for other classes only.
        owner: the class that does not take the key.
    """
    if key.endswith("optimizer.lr"):
        return UserError(
            ExitCode.CONFIG,
            Problem("the optimizer's learning rate is set by model.learning_rate", key),
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
                ExitCode.CONFIG, Problem(f"the option {key} does not exist"), fix=f"did you mean {names[near[0]]}?"
            )
    return UserError(ExitCode.CONFIG, Problem(f"the option {key} does not exist"), fix=HELP)


def shorten(text: str, limit: int = 300) -> str:
    """Return the first and last part of a long message, where the relevant parts are."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"
