"""The command line's manners: short errors, did-you-mean, and what a config may import."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

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


class Parser(LightningArgumentParser):
    """A parser that raises `UserError` in place of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn a parsing error into a short one."""
        raise parsing_error(message, list(known_keys(self))) from None


def known_keys(parser: Any) -> Iterator[str]:
    """Every key that the parser's own actions and its known classes take."""
    for action in parser._actions:
        if action.dest and action.dest != "help":
            yield action.dest
        choices = getattr(action, "choices", None)
        if isinstance(choices, dict):
            for sub in choices.values():
                yield from known_keys(sub)
    yield from (f"model.{name}" for name in constructor_names("model"))
    yield from (f"data.{name}" for name in constructor_names("data"))


def constructor_names(part: str) -> Iterator[str]:
    """Arguments of the public modules, below `init_args` and without it."""
    import dataclasses
    import inspect

    from dpo_lightning.data.datamodule import TextDataModule
    from dpo_lightning.dpo import DPOModule
    from dpo_lightning.losses import PreferenceLoss
    from dpo_lightning.models import CausalLM, Lora

    owner = DPOModule if part == "model" else TextDataModule
    yield from (name for name in inspect.signature(owner.__init__).parameters if name != "self")
    if part == "model":
        yield from (f"policy.{field.name}" for field in dataclasses.fields(CausalLM))
        yield from (f"policy.lora.{field.name}" for field in dataclasses.fields(Lora))
        for loss in PreferenceLoss.__subclasses__():
            yield from (f"loss.{field.name}" for field in dataclasses.fields(loss))


def parsing_error(message: str, known: list[str]) -> UserError:
    """The short form of a jsonargparse message: the key, what is wrong with it, and a near name or the help."""
    text = re.sub(r"\s+", " ", message).strip()
    where, fix = "", "python -m dpo_lightning fit --help lists the options"
    key = re.search(
        r"(?:Unrecognized arguments: |Option |Key |Parser key |No action for (?:destination )?key |argument )"
        r"[\"'`]?-{0,2}([A-Za-z_][\w.]*)",
        text,
    )
    nested = re.findall(r"(?:Option|Key) '([\w.]+)' is not accepted|(?:Option|Key) '([\w.]+)' is not expected", text)
    if key:
        where = key.group(1).replace("init_args.", "")
    unknown = next((name for pair in nested for name in pair if name), "")
    if unknown and unknown not in where:
        where = f"{where}.{unknown}".replace("init_args.", "")
    if unknown or "Unrecognized" in text:
        near = difflib.get_close_matches(where, sorted(set(known)), n=1, cutoff=0.6) or [
            name
            for last in difflib.get_close_matches(where.rpartition(".")[2], {k.rpartition(".")[2] for k in known}, n=1)
            for name in sorted(set(known))
            if name.rpartition(".")[2] == last
        ][:1]
        what = f"there is no option {where}"
        if near:
            fix = f"did you mean {near[0]}?"
        return UserError(ExitCode.CONFIG, Problem(what), fix=fix)
    if "not allowed" in text or "denylist" in text or "allowlist" in text:
        return UserError(
            ExitCode.CONFIG,
            Problem("this class lies outside what a config may import", where, text),
            fix=f"{ALLOW_FLAG} PACKAGE, if you trust the package",
        )
    return UserError(ExitCode.CONFIG, Problem(shortened(text), where), fix=fix)


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
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_config(path: str) -> dict[str, Any]:
    """A config file as plain data, before any class is known.

    Raises:
        UserError: the file is missing (66) or is no YAML mapping (64, with line and column).
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            content = yaml.load(file, Loader=UniqueKeys)  # noqa: S506 - a subclass of SafeLoader
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
