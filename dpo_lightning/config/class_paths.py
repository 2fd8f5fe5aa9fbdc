"""What `class_path` may name: classes of the kind that an option takes, out of a few packages, and no function."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from dpo_lightning.errors import ExitCode, Problem, UserError

ALLOWED = (
    "dpo_lightning",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.fabric.plugins",
    "torch.optim",
    "peft",
    "bitsandbytes",
    "torchmetrics",
)
"""Where these classes are defined. A config may come from someone else, and to name a class is to import its module."""

ALLOW_FLAG = "--allow-class-path"

OPENED: list[str] = []
"""The packages that the running command has opened besides. Of these, functions may be named as well."""

RUNNING: list[Sequence[str]] = []
"""What the commands that run in this process have opened, the outermost first."""


class NotTakenError(Exception):
    """An option does not take what is named."""


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
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package) or within(package, ("jsonargparse",)):
            raise UserError(
                ExitCode.CONFIG,
                Problem("this is no package name", ALLOW_FLAG, package),
                fix=f"{ALLOW_FLAG} your_package",
            )
    return kept, packages


@contextmanager
def imports_restricted(packages: Sequence[str]) -> Iterator[None]:
    """While a command runs, let `class_path` reach the list above and `packages`, and nothing else.

    Raises:
        UserError: the command runs within another one: only the outermost command line is the user's own.
    """
    if packages and RUNNING:
        raise UserError(
            ExitCode.CONFIG,
            Problem("a command that runs within another one opens no package", ALLOW_FLAG, packages[0]),
            fix=f"{ALLOW_FLAG} on the command line of the process",
        )
    RUNNING.append(packages)
    try:
        restrict(packages)
        yield
    finally:
        RUNNING.pop()
        restrict(RUNNING[-1] if RUNNING else ())


def restrict(packages: Sequence[str]) -> None:
    """Set what the parser imports. It also reads configs from disk only, and makes no object where any value may be."""
    closed = {*OPENED} - {*ALLOWED, *packages}  # the parser's own list only grows
    set_parsing_settings(
        import_path_denylist=["*", *closed],
        import_path_allowlist=[*ALLOWED, *packages],
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    OPENED[:] = packages


def check_names(config: Mapping[str, Any] | Namespace, hints: Mapping[str, Any]) -> None:
    """Refuse whatever a parsed config names that its option does not take.

    The parser also takes a function for a class, or where the type is any callable, and calls it when the run's objects
    are made.

    Args:
        config: what was parsed; nothing of it is made yet.
        hints: the type of each section that holds classes.

    Raises:
        UserError: 64, with every such key.
    """
    problems = [problem for key, hint in hints.items() for problem in misnamed(config.get(key), hint, key)]
    if problems:
        raise UserError(
            ExitCode.CONFIG,
            problems,
            fix=f"a class of the kind that the option takes, or {ALLOW_FLAG} PACKAGE for a package of your own",
        )


def misnamed(value: Any, hint: Any, key: str) -> Iterator[Problem]:
    """What a value names, itself or further in, that an option of this type does not take."""
    if isinstance(value, (Mapping, Namespace)):
        content = members(value)
        owners = (hint,) if isinstance(hint, type) else tuple(kinds(hint))
        if isinstance(path := content.get("class_path"), str):
            try:
                owners = (named(path, hint),)
            except NotTakenError as error:
                yield Problem(str(error), key, path)
                return
            content = members(content.get("init_args")) | members(content.get("dict_kwargs"))
        for name, inner in content.items():
            taken = next((found for owner in owners if (found := option(owner, name))), None)
            if taken is None or inner is not taken.default:
                yield from misnamed(inner, taken.annotation if taken else hint, f"{key}.{name}")
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from misnamed(inner, hint, key)
    elif callable(value) and not isinstance(value, tuple(kinds(hint))):
        try:
            check_kind(value, hint)
        except NotTakenError as error:
            yield Problem(str(error), key, defined(value))


def members(value: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """The next level of a parsed value, without the file that it comes from."""
    content = vars(value) if isinstance(value, Namespace) else value or {}
    return {name: inner for name, inner in content.items() if name != "__path__"}


def named(path: str, hint: Any) -> Any:
    """The class that a `class_path` names, or the function of an opened package.

    Raises:
        NotTakenError: why not. No module was imported then but one of the packages above.
    """
    if not within(path, OPENED):
        if not within(path, ALLOWED):
            raise NotTakenError("this lies outside of what a config may import")
        if not any(kinds(hint)):
            raise NotTakenError("no class can be named here")
    try:
        found = find(path)
    except (ImportError, AttributeError):
        raise NotTakenError("there is no such class") from None
    check_kind(found, hint)
    return found


def check_kind(found: Any, hint: Any) -> None:
    """Refuse what an opened package does not define, unless it is a class of the kind that an annotation takes.

    Raises:
        NotTakenError: why not.
    """
    path, wanted = defined(found), tuple(kinds(hint))
    if within(path, OPENED):
        return
    if not isinstance(found, type):
        raise NotTakenError("this is no class")
    if not within(path, ALLOWED):
        raise NotTakenError("this lies outside of what a config may import")
    if not issubclass(found, wanted):
        raise NotTakenError(f"this is no {' or '.join(kind.__name__ for kind in wanted)}")


def kinds(hint: Any) -> Iterator[type]:
    """The classes of the packages whose subclasses an annotation takes: in a union, in a list, made by a callable."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Callable:
        inner = inner[1:]  # what it is called with is none of the config's
    elif isinstance(hint, type) and origin is None and within(defined(hint), [*ALLOWED, *OPENED]):
        yield from () if getattr(hint, "_is_protocol", False) else (hint,)
    for part in inner:
        yield from kinds(part)


def option(owner: Any, name: str) -> inspect.Parameter | None:
    """An option of a class, or of one above it that takes the rest; its annotation is None where it says nothing."""
    bases = owner.__mro__ if isinstance(owner, type) else ()
    for maker in [vars(base).get("__init__") for base in bases] or [owner]:
        found = inspect.signature(maker).parameters.get(name) if inspect.isfunction(maker) else None
        if found is not None and found.kind not in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
            places = [sys.modules[place.__module__] for place in (maker, *bases)]
            return found.replace(annotation=evaluated(found.annotation, places))
    return None


def evaluated(annotation: Any, places: Sequence[ModuleType]) -> Any:
    """The type that an annotation names; names are looked up in these modules, as dataclasses inherit fields."""
    names, holder = ChainMap(*map(vars, [*places, typing])), SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, {}, names)["it"]
    except (NameError, TypeError):
        return None


def find(path: str) -> Any:
    """The object at a dotted path; modules that a package has imported from elsewhere are not entered."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if inspect.ismodule(found) and not within(found.__name__, [*ALLOWED, *OPENED]):
                break
            found = getattr(found, name)
        return found
    raise ImportError(path)


def defined(value: Any) -> str:
    """Where a class or a function is defined; of another object, what it calls or what it is of."""
    if isinstance(value, functools.partial):
        return defined(value.func)
    if not (isinstance(value, type) or inspect.isroutine(value)):
        value = type(value)
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"


def within(path: str, packages: Sequence[str]) -> bool:
    """Whether a dotted path is one of the packages or lies below it."""
    return any(f"{path}.".startswith(f"{package}.") for package in packages)
