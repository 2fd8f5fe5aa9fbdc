"""What `class_path` may name: classes of the type that an option takes, from a list of packages, and no functions."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
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
    "optimi",
    "torchmetrics",
)
"""Where these classes are defined. Configs may come from others, and naming a class imports its module."""

ALLOW_FLAG = "--allow-class-path"

OPENED: list[str] = []
"""Packages that the running command allowed with `--allow-class-path`. Functions of these may be named as well."""

RUNNING: list[Sequence[str]] = []
"""The allowed packages of each command that runs in this process, the outermost first."""


class NotTakenError(Exception):
    """An option does not accept the class or function that is named."""


def take_allowed(args: list[str]) -> tuple[list[str], list[str]]:
    """Split `--allow-class-path PACKAGE` off the arguments, which has to be known before they are parsed.

    Raises:
        UserError: it is no name of a package.
    """
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
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package) or is_within(package, ("jsonargparse",)):
            raise UserError(
                ExitCode.CONFIG,
                Problem("not a package name", ALLOW_FLAG, package),
                fix=f"{ALLOW_FLAG} your_package",
            )
    return kept, packages


@contextmanager
def imports_restricted(packages: Sequence[str]) -> Iterator[None]:
    """Restrict imports by `class_path` to the list above and `packages` within the block.

    Raises:
        UserError: a nested command names packages; only the command line of the process may.
    """
    if packages and RUNNING:
        raise UserError(
            ExitCode.CONFIG,
            Problem("a nested command cannot allow packages", ALLOW_FLAG, packages[0]),
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
    """Configure jsonargparse: allowed imports, configs from disk only, and no objects where any value is accepted."""
    closed = {*OPENED} - {*ALLOWED, *packages}  # jsonargparse adds to its allow list, and removes nothing
    set_parsing_settings(
        import_path_denylist=["*", *closed],
        import_path_allowlist=[*ALLOWED, *packages],
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    OPENED[:] = packages


def check_names(config: Mapping[str, Any] | Namespace, hints: Mapping[str, Any]) -> None:
    """Refuse classes and functions in a parsed config that their options do not take.

    jsonargparse also accepts functions in place of classes and for callables, and would call them when the objects of
    the run are created.

    Args:
        config: the parsed config; its objects are not created yet.
        hints: the type of each section that holds classes.

    Raises:
        UserError: 64, with every such key.
    """
    problems = [problem for key, hint in hints.items() for problem in find_misnamed(config.get(key), hint, key)]
    if problems:
        raise UserError(
            ExitCode.CONFIG,
            problems,
            fix=f"name a class that the option takes, or allow a package of your own: {ALLOW_FLAG} PACKAGE",
        )


def find_misnamed(value: Any, hint: Any, key: str) -> Iterator[Problem]:
    """Iterate over what a value names, at any depth, that an option of this type does not take, as problems."""
    if isinstance(value, (Mapping, Namespace)):
        content = members(value)
        # The classes that the entries may be options of.
        owners = (hint,) if isinstance(hint, type) else tuple(accepted_classes(hint))
        if isinstance(path := content.get("class_path"), str):
            try:
                owners = (resolve_class(path, hint),)
            except NotTakenError as error:
                yield Problem(str(error), key, path)
                return
            content = members(content.get("init_args")) | members(content.get("dict_kwargs"))
        for name, inner in content.items():
            taken = next((found for owner in owners if (found := find_option(owner, name))), None)
            # Defaults come from the code and need no check.
            if taken is None or inner is not taken.default:
                yield from find_misnamed(inner, taken.annotation if taken else hint, f"{key}.{name}")
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from find_misnamed(inner, hint, key)
    # jsonargparse resolves the dotted path of a function or class by itself.
    elif callable(value) and not isinstance(value, tuple(accepted_classes(hint))):
        try:
            check_kind(value, hint)
        except NotTakenError as error:
            yield Problem(str(error), key, qualified_name(value))


def members(value: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Return the entries of a parsed value, without the path of the file that it comes from."""
    content = vars(value) if isinstance(value, Namespace) else value or {}
    return {name: inner for name, inner in content.items() if name != "__path__"}


def iterate_texts(value: Any) -> Iterator[str]:
    """Iterate over all strings in a parsed value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, Namespace)):
        yield from iterate_texts(list(members(value).values()))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from iterate_texts(inner)


def resolve_class(path: str, hint: Any) -> Any:
    """Import the class that a `class_path` names, or a function of an allowed package.

    Raises:
        NotTakenError: the reason. No module outside of the allowed packages was imported.
    """
    if not is_within(path, OPENED):
        if not is_within(path, ALLOWED):
            raise NotTakenError("a config may not import this package")
        if not any(accepted_classes(hint)):
            raise NotTakenError("the option takes no class")
    try:
        found = import_object(path)
    except (ImportError, AttributeError):
        raise NotTakenError("the class does not exist") from None
    check_kind(found, hint)
    return found


def check_kind(found: Any, hint: Any) -> None:
    """Check that an object is a class that an annotation takes; what an allowed package defines passes.

    Raises:
        NotTakenError: the reason.
    """
    path, wanted = qualified_name(found), tuple(accepted_classes(hint))
    if is_within(path, OPENED):
        return
    if not isinstance(found, type):
        raise NotTakenError("not a class")
    if not is_within(path, ALLOWED):
        raise NotTakenError("a config may not import this package")
    if not issubclass(found, wanted):
        raise NotTakenError(f"not a {' or '.join(dict.fromkeys(kind.__name__ for kind in wanted))}")


def accepted_classes(hint: Any) -> Iterator[type]:
    """Iterate over the classes whose subclasses an annotation takes, within unions, lists and callables."""
    if isinstance(hint, type) and is_within(qualified_name(hint), [*ALLOWED, *OPENED]):
        yield from () if getattr(hint, "_is_protocol", False) else (hint,)
    for part in typing.get_args(hint):  # the arguments of a callable are a list, which has no classes
        yield from accepted_classes(part)


def find_option(owner: Any, name: str) -> inspect.Parameter | None:
    """Return an option of a class, or of the base class that defines it; the annotation is None if unknown."""
    bases = owner.__mro__ if isinstance(owner, type) else ()
    # The nearest `__init__` that lists the parameter, as others may pass it on in `**kwargs`.
    for maker in [vars(base).get("__init__") for base in bases] or [owner]:
        found = inspect.signature(maker).parameters.get(name) if inspect.isfunction(maker) else None
        if found is not None and found.kind not in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
            places = [sys.modules[place.__module__] for place in (maker, *bases)]
            return found.replace(annotation=evaluate_annotation(found.annotation, places))
    return None


def evaluate_annotation(annotation: Any, places: Sequence[ModuleType]) -> Any:
    """Return the type that an annotation names; names are looked up in these modules, None if unknown."""
    # `get_type_hints` takes an object with annotations.
    names, holder = ChainMap(*map(vars, [*places, typing])), SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, {}, names)["it"]
    except (NameError, TypeError):
        return None


def import_object(path: str) -> Any:
    """Import the object at a dotted path; modules that a package imported from elsewhere are not entered.

    Raises:
        ImportError, AttributeError: there is no such object.
    """
    parts = path.split(".")
    # The longest importable prefix is the module, the rest are attributes.
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if inspect.ismodule(found) and not is_within(found.__name__, [*ALLOWED, *OPENED]):
                break
            found = getattr(found, name)
        return found
    raise ImportError(path)


def qualified_name(value: Any) -> str:
    """Return the dotted path at which a class or function is defined; of another object, that of its class."""
    if isinstance(value, functools.partial):
        return qualified_name(value.func)
    if not (isinstance(value, type) or inspect.isroutine(value)):
        value = type(value)
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"


def is_within(path: str, packages: Sequence[str]) -> bool:
    """Whether a dotted path is one of the packages or inside one."""
    return any(f"{path}.".startswith(f"{package}.") for package in packages)
