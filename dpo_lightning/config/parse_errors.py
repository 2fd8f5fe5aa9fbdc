"""Messages of jsonargparse as short errors: the key, what is wrong, and a suggestion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from dpo_lightning.config.class_paths import ALLOW_FLAG
from dpo_lightning.config.key_check import missing_keys_error
from dpo_lightning.config.option_table import read_options
from dpo_lightning.config.stray_words import SWITCHES
from dpo_lightning.config.unknown_classes import unknown_class_error
from dpo_lightning.config.unknown_options import HELP, UnknownOption, unknown_options_error
from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt
from dpo_lightning.foreign_names import translate_value, value_names


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
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
ABSENT = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
OF_ANOTHER = re.compile(r"Import path (dpo_lightning\.[\w.]+) does not correspond to a subclass")
EXPECTED = re.compile(r"Expected an? (?:<class '(.+?)'>|(.+?))(?:\. Got value:(?: (.*))?)?")
CALLED = re.compile(r"Type .+ expects a function or a callable class: (.*?)\.*(?:\. Got value: .*)?")
OTHER = re.compile(r"Expected '([\w.]+)' to be a (?:subclass of (.+)|class that instantiates into .+|function that .+)")
NOT_INSTALLED = re.compile(r"No module named '([\w.]+)'|import of ([\w.]+) halted")
EXTRAS = {"optimi": "dpo-lightning[kahan]"}
"""Packages that a config may name and that are no dependencies: the extra that has each."""
NESTED = re.compile(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)")
"""jsonargparse's form of a flag for an option below another one."""

NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Subclass types",
    "a class path",
    "a dict ",
    "Expected a path but",
)


def parser_error(message: str, known: Known, args: Sequence[str] = ()) -> UserError:
    """Shorten a message of jsonargparse to the key, the reason, and a similar name or the help.

    Args:
        message: lines of `Parser key "..."`, deeper and deeper, then the reason.
        known: every key and class name that may have been meant.
        args: the command line, where a message does not say which of its flags is meant.
    """
    parsed = parse_message(message.splitlines())
    reason = parsed.reasons[-1] if parsed.reasons else message.strip().partition("\n")[0]
    classes = known.classes.get(parsed.key, ())
    if unknown := UNKNOWN.search(reason):
        return refused_option_error(unknown, parsed, message, known)
    if reason.startswith("unrecognized arguments:"):
        return stray_word_error(reason.split()[2], known)
    if reason.endswith("expected one argument") and (flag := find_valueless(args)):
        return UserError(ExitCode.CONFIG, Problem("a value is missing", flag), fix=f"--{flag} VALUE")
    if "are required:" in reason:
        return missing_options_error(parsed.key, reason)
    failed = import_error(reason, parsed, message) or class_error(reason, parsed, classes)
    if failed is not None:
        return failed
    if EXPECTED.fullmatch(reason):
        return unexpected_value_error(parsed, known)
    return UserError(ExitCode.CONFIG, Problem(shorten(reason), parsed.key), fix=HELP)


def class_error(reason: str, parsed: ParsedMessage, classes: Sequence[str]) -> UserError | None:
    """Make the error for a class that does not exist, or that the option does not take; None for other messages."""
    if path := UNKNOWN_CLASS.search(reason):
        nested = NESTED.fullmatch(parsed.given)  # `path` is the default then
        return missing_class_error(parsed) if nested else unknown_class_error(parsed.key, path.group(1), classes)
    if name := find_unknown_class(parsed, classes):
        return unknown_class_error(parsed.key, name, classes)
    if several := re.match(r"Multiple subclasses with name (\w+)\. .*: (.+)\.", reason):
        fix = f"--{parsed.key} " + several.group(2).replace(", ", " or ")
        return UserError(ExitCode.CONFIG, Problem("several classes have this name", parsed.key, several.group(1)), fix)
    if other := OTHER.match(reason):
        names = " or ".join(re.findall(r"(\w+)(?:'>|[,\]]|$)", other.group(2) or "")) or "class that the option takes"
        return UserError(ExitCode.CONFIG, Problem(f"not a {names}", parsed.key, other.group(1)), fix=HELP)
    if kind := re.match(r"Not a valid subclass of (\w+)", reason):
        return UserError(ExitCode.CONFIG, Problem(f"not a {kind.group(1)}", parsed.key, parsed.given), fix=HELP)
    return None


def find_unknown_class(parsed: ParsedMessage, classes: Sequence[str]) -> str:
    """Return the path of a class that does not exist, or that belongs to another option; empty for other messages."""
    text = "\n".join(parsed.reasons)
    if absent := ABSENT.search(text):
        return f"{absent[1]}.{absent[2]}"
    if (other := OF_ANOTHER.search(text)) and other[1].rpartition(".")[2] in classes:
        return other[1]
    path = UNKNOWN_CLASS.search(text)
    return path[1] if path and f"'class_path': '{path[1]}'" in parsed.given else ""


def import_error(reason: str, parsed: ParsedMessage, message: str) -> UserError | None:
    """Make the error for a class whose package may not be imported, or is not installed; None for other messages."""
    if denied := re.search(r"Importing '([^']+)' is not allowed", "\n".join(parsed.reasons)):
        return denied_import_error(denied.group(1), parsed, message)
    if missing := NOT_INSTALLED.search(reason):
        package = next(filter(None, missing.groups())).partition(".")[0]
        fix = f"pip install '{EXTRAS[package]}'" if package in EXTRAS else "install it, or correct the class path"
        return UserError(ExitCode.CONFIG, Problem(f"the package {package} is not installed", parsed.key), fix)
    return None


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


def refused_option_error(unknown: re.Match[str], parsed: ParsedMessage, message: str, known: Known) -> UserError:
    """Make the error for an option that its class does not take."""
    key = ".".join(part for part in (parsed.key, *unknown.groups()) if part)
    called = re.search(r"is not accepted\.+ Got value: Namespace\(class_path='(?:[\w.]*\.)?(\w+)'", message)
    owner = called.group(1) if called else parsed.owner
    ours = any(owner in names for names in known.classes.values())
    if owner and not ours and not key.endswith("optimizer.lr"):  # similar options of other classes mean something else
        fix = f"python -m dpo_lightning fit --{parsed.key}.help {owner} lists its options"
        return UserError(ExitCode.CONFIG, f"{owner} has no option {key}", fix=fix)
    return unknown_option_error(key, known.keys, owner)


def find_valueless(args: Sequence[str]) -> str:
    """Return the first flag of a command line that lacks its value, without dashes; empty if there is none."""
    flags = (flag[2:] for flag, following in pairwise([*args, "--"]) if flag[:2] == "--" == following[:2])
    return next((flag for flag in flags if "=" not in flag and flag not in SWITCHES), "")


def stray_word_error(word: str, known: Known) -> UserError:
    """Make the error for a word of a command line that is no option, or none that exists."""
    if word.startswith("-") or "=" in word or word.endswith((".yaml", ".yml")):
        return unknown_option_error(word.partition("=")[0].lstrip("-"), known.keys)
    fix = "options begin with --; --fresh and --print_config take no value"
    return UserError(ExitCode.CONFIG, f"the option {excerpt(word)} does not exist", fix=fix)


def denied_import_error(name: str, parsed: ParsedMessage, message: str) -> UserError:
    """Make the error for a class that may not be imported, or for the type of an option, tried in place of a class."""
    values = " ".join(re.findall(r"Given value: (.*)", message))
    if values and not re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", values):
        return missing_class_error(parsed)
    return UserError(
        ExitCode.CONFIG,
        Problem("a config may not import this package", parsed.key, name),
        fix=f"if you trust it: {ALLOW_FLAG} PACKAGE",
    )


def unexpected_value_error(parsed: ParsedMessage, known: Known) -> UserError:
    """Make the error for a value of another type."""
    wanted = [match for match in map(EXPECTED.fullmatch, parsed.reasons) if match]
    types = " or ".join(dict.fromkeys(format_type(match.group(1) or match.group(2)) for match in wanted))
    # Of several nested values, the innermost is the offending one.
    given = (wanted[-1].group(3) or parsed.given).partition(". Got value: ")[0]
    if "instantiatable class" in types and (parsed.given.startswith("{") or NESTED.fullmatch(given)):
        return missing_class_error(parsed)
    if nested := NESTED.fullmatch(given):
        return unknown_option_error(f"{parsed.key}.{nested.group(1)}", known.keys)
    ours = translate_value(parsed.key, given)
    fix = f"--{parsed.key} {ours}" if ours else f"change the value of --{parsed.key}"
    if given == "None" and parsed.key.startswith("model.policy."):  # what jsonargparse makes of null there
        fix = "leave it out, or write null in a config file: a flag cannot set it"
    return UserError(ExitCode.CONFIG, Problem(f"expected {types}", parsed.key, given), fix)


def missing_class_error(parsed: ParsedMessage) -> UserError:
    """Make the error for options of a class that is not named, or that stand beside `class_path`."""
    nested = NESTED.fullmatch(parsed.given)
    if nested is None:
        fix = "`class_path: NAME`, and the options of that class below `init_args:` beside it"
        return UserError(ExitCode.CONFIG, Problem("not a class with its options", parsed.key, parsed.given), fix=fix)
    option = f"{parsed.key}.{nested.group(1).removeprefix(f'{parsed.key}.')}"
    names = list_owners(option)
    listed = names or list(dict.fromkeys(value_names(parsed.key).values()))
    fix = f"name the class before it: --{parsed.key} {names[0] if len(names) == 1 else 'CLASS'}"
    fix += f", one of {', '.join(listed)}" if len(listed) > 1 else ""
    return UserError(ExitCode.CONFIG, Problem("an option of a class that is not named", option), fix=fix)


def list_owners(option: str) -> list[str]:
    """List the classes of this package that have an option, by its dotted key."""
    place, _, name = option.rpartition(".")
    kinds = read_options().places.get(place, ())
    return [kind.name for kind in kinds if any(name == each.name for each in kind.options)]


def missing_options_error(key: str, reason: str) -> UserError:
    """Make the error for required keys that are not set."""
    names = [name.strip() for name in reason.rpartition(":")[2].split(",")]
    names = [f"{key}.{name}" if key else re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names]
    return missing_keys_error(names)


def unknown_option_error(key: str, known: Sequence[str], owner: str = "") -> UserError:
    """Make the error for a key that does not exist, or not for the class at hand, with the one that was meant.

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
    if key.endswith(".help"):
        fix = "python -m dpo_lightning fit --help SECTION, or name the class of the model before it: --model DPOModule"
        return UserError(ExitCode.CONFIG, Problem("the help of this option depends on the class", key), fix=fix)
    if key in known:
        what = f"{owner} has no option {key}" if owner else f"{key} is given on the command line only, as a flag"
        owners = list_owners(key) if owner else []
        fix = "leave the option out" + (f", or name a class that has it: {', '.join(owners)}" if owners else "")
        return UserError(ExitCode.CONFIG, Problem(what), fix=fix)
    return unknown_options_error([UnknownOption(key)], known)


def shorten(text: str, limit: int = 300) -> str:
    """Return the first and last part of a long message, where the relevant parts are."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"
