"""Every name that a `class_path` can reach, put to every option that takes a class or a function; run as a program.

What is tried happens under an audit hook, which a process cannot take away again. The program prints one JSON object.
"""

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import sys
import typing
import warnings
from pathlib import Path

SEEN = []
"""Events of the interpreter that are none of a config's, since the walk began."""

RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "os.kill")
SENDS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
HOME = Path.cwd()
"""The only folder that may be written in."""


def watch(event, args):
    """Note what runs, sends, removes, or writes elsewhere than in the folder of the run."""
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in RUNS + SENDS:
        SEEN.append(f"{event} {args}")
    elif event in CHANGES or writes or event == "shutil.rmtree":
        path = Path(os.fsdecode(args[0])) if isinstance(args[0], (str, bytes, os.PathLike)) else HOME
        if event in ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree") or HOME not in (
            path.absolute(),
            *path.absolute().parents,
        ):
            SEEN.append(f"{event} {args}")


def modules(packages):
    """Every module of the packages, imported; some need a package or a device that is not here."""
    for package in packages:
        found = importlib.import_module(package)
        yield found
        for info in pkgutil.walk_packages(found.__path__, f"{package}."):
            with contextlib.suppress(Exception):
                yield importlib.import_module(info.name)


def paths(places):
    """Dotted paths to all that the modules hold, and through the modules and classes among it one further."""
    entered = set()
    for place in places:
        for name, value in list(vars(place).items()):
            yield f"{place.__name__}.{name}"
            if (inspect.ismodule(value) or inspect.isclass(value)) and id(value) not in entered:
                entered.add(id(value))
                yield from (f"{place.__name__}.{name}.{inner}" for inner in list(vars(value)))


def options(roots, classes, product):
    """The annotations of all options that a config can give, and the classes that it can name: those of the first
    classes, those of what these options take, and so on."""
    hints, reached, more = {}, set(), set(roots)
    while more:
        reached |= more
        for owner in more:
            for name in {name for base in owner.__mro__ for name in parameters(vars(base).get("__init__"))}:
                if found := product.find_option(owner, name):
                    hints[str(found.annotation)] = found.annotation
        wanted = tuple({kind for hint in hints.values() for kind in product.accepted_classes(hint)})
        more = {kind for kind in classes if issubclass(kind, wanted)} - reached
    return list(hints.values()), reached


def parameters(maker):
    """The names of a function's parameters, where it tells them."""
    with contextlib.suppress(TypeError, ValueError):
        return list(inspect.signature(maker).parameters)
    return []


GUESSES = {int: 1, float: 0.1, bool: True, str: "name", list: [], dict: {}, Path: Path("name")}


def walk():
    """Put every name to every option that takes a class or something to call, and make what can be made."""
    from lightning.pytorch import Trainer

    from dpo_lightning.cli import MODULES
    from dpo_lightning.config import class_paths as product

    sys.addaudithook(watch)
    places = list(modules(product.ALLOWED))
    classes = {v for place in places for v in vars(place).values() if inspect.isclass(v)}
    ours = {v for v in classes if product.is_within(product.qualified_name(v), product.ALLOWED)}
    hints, reached = options([Trainer, *(part for kind in MODULES for part in (kind, kind.data_module))], ours, product)
    called = [hint for hint in hints if "Callable" in str(hint) and not any(product.accepted_classes(hint))]
    wanted = {frozenset(product.accepted_classes(hint)): hint for hint in hints}
    del wanted[frozenset()]
    anything = typing.Union[tuple(set().union(*wanted))]  # noqa: UP007

    objects, names, wrong, taken = {}, 0, [], set()
    for path in paths(places):
        with contextlib.suppress(Exception):
            value = product.import_object(path)
            names += 1
            objects[id(value)] = (path, value)
    for path, value in objects.values():
        if not list(product.find_misnamed({"class_path": path}, called[0], "key")):
            wrong.append(f"{path} as something to call")
        if list(product.find_misnamed({"class_path": path}, anything, "key")):
            continue
        taken.add(value)
        for kinds, hint in wanted.items():
            if not list(product.find_misnamed({"class_path": path}, hint, "key")) and not kinds & set(value.__mro__):
                wrong.append(f"{path} as {hint}")
    wrong += [product.qualified_name(kind) for kind in taken if kind not in reached]
    made = [product.qualified_name(kind) for kind in taken if make(kind, product)]
    counts = {"names": names, "objects": len(objects), "options": len(wanted), "called": len(called), "made": len(made)}
    return {"counts": counts, "taken": sorted(map(product.qualified_name, taken)), "wrong": wrong, "seen": SEEN}


def make(kind, product):
    """Make an object of a class, with a guess for each option that it needs; a wrong guess is no matter."""
    values = {}
    for needed in inspect.signature(kind).parameters.values():
        if needed.default is needed.empty and needed.kind in (needed.POSITIONAL_OR_KEYWORD, needed.KEYWORD_ONLY):
            hint = product.find_option(kind, needed.name).annotation
            known = [hint, *typing.get_args(hint)]
            values[needed.name] = next((guess for of, guess in GUESSES.items() if of in known), None)
    with contextlib.suppress(Exception):
        return kind(**values) is not None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(walk()))
