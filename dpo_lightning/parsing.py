"""The command line's manners: short errors, did-you-mean, and what a config may import."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import set_parsing_settings

from dpo_lightning.errors import ExitCode, Problem, UserError

ALLOWED = (
    "dpo_lightning",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "torch.optim",
    "peft",
    "bitsandbytes",
    "torchmetrics",
)
"""What `class_path` may name. A config may come from someone else, and to name a class is to import its module."""

ALLOW_FLAG = "--allow-class-path"
HELP = "python -m dpo_lightning fit --help lists the options"


def take_allowed(args: list[str]) -> tuple[list[str], list[str]]:
    """Split the packages of `--allow-class-path PACKAGE` off the arguments: they must be known before parsing."""
    kept: list[str] = []
    packages: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == ALLOW_FLAG:
            packages.append(next(rest, ""))
        elif arg.startswith(ALLOW_FLAG + "="):
            packages.append(arg.partition("=")[2])
        else:
            kept.append(arg)
    for package in packages:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
            raise UserError(
                ExitCode.CONFIG,
                Problem("this is no package name", ALLOW_FLAG, package),
                fix=f"{ALLOW_FLAG} your_package",
            )
    return kept, packages


def restrict_imports(packages: list[str]) -> None:
    """Let `class_path` reach the list above and `packages`, nothing else."""
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED, *packages])


def parsing_error(message: str, known: Sequence[str]) -> UserError:
    """The short form of a jsonargparse message: the key, what is wrong with it, and a near name or the help.

    Args:
        message: what the parser said; a chain of `Parser key "..."` lines, deeper and deeper, then the reason.
        known: every key and class name that could have been meant.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    keys, reasons = walk(lines)
    key = ".".join(keys)
    reason = reasons[-1] if reasons else lines[0]
    unknown = re.search(r"Option '([^']+)' is not accepted", reason)
    if unknown:
        owners = re.findall(r"Problem with given class_path '(?:[\w.]*\.)?(\w+)'", message)
        return unknown_option(f"{key}.{unknown.group(1)}", known, owners[-1] if owners else "")
    if reason.startswith("unrecognized arguments:"):
        return unknown_option(reason.split()[2].partition("=")[0].lstrip("-"), known)
    if "is not allowed" in message:
        name = re.search(r"Importing '([^']+)'", message)
        return UserError(
            ExitCode.CONFIG,
            Problem("this lies outside of what a config may import", key, name.group(1) if name else ""),
            fix=f"{ALLOW_FLAG} PACKAGE, if you trust the package",
        )
    name = re.search(r"Expected a dot import path string: (\S+)", message)
    if name:
        near = difflib.get_close_matches(name.group(1), known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else "--model.loss takes DPOLoss, IPOLoss, HingeLoss or RobustLoss"
        return UserError(ExitCode.CONFIG, Problem("there is no such class", key, name.group(1)), fix=fix)
    got = re.fullmatch(r"Expected an? (?:<class '(.+?)'>|(.+?))\. Got value: (.*)", reason)
    if got:
        wanted = (got.group(1) or got.group(2)).replace("typing.", "")
        return UserError(
            ExitCode.CONFIG,
            Problem(f"expected {wanted}", key, got.group(3)),
            fix=f"--{key} with such a value",
        )
    return UserError(ExitCode.CONFIG, Problem(shortened(reason), key), fix=HELP)


def walk(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Keys from the outermost in, and the reasons of the branch that matters: None is never what was meant."""
    keys: list[str] = []
    reasons: list[str] = []
    for line in lines:
        found = re.match(r'-? ?(?:Parser key|argument) "?([\w.]+)"?:', line)
        if found:
            keys.append(found.group(1).replace("init_args.", ""))
        elif line.startswith(("- Expected a <class 'NoneType'>", "Given value")):
            break
        elif not line.startswith(("Does not validate", "Subtypes:", "Errors:", "- Problem with", "Problem with")):
            reasons.append(line.removeprefix("- "))
    return keys, reasons


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


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the parser would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a repeated key."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_config(path: str) -> dict[str, Any]:
    """A config file as plain data, before any class is known.

    Raises:
        UserError: the file is missing (66) or is no YAML mapping (64, with line and column).
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            content = yaml.load(file, Loader=UniqueKeys)
    except OSError as error:
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem(f"the config cannot be read: {error.strerror}", "--config", path),
            fix="give one of configs/*.yaml",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(ExitCode.CONFIG, Problem(f"this is no YAML: {reason}", where), fix="mend the line") from None
    if not isinstance(content, dict):
        raise UserError(ExitCode.CONFIG, Problem("a config is a mapping of keys", path), fix="see configs/dpo.yaml")
    return content
