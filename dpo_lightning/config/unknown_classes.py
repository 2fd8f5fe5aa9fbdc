"""Errors for classes that do not exist, or that an option does not take, each with the class that was meant."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Sequence

from dpo_lightning.config.class_paths import import_object
from dpo_lightning.config.option_table import read_options
from dpo_lightning.config.unknown_options import ALIKE, HELP
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.foreign_names import explain_unsupported, translate_value, value_names

PACKAGE = "dpo_lightning"

TRAINED = ("model", "model.loss")
"""Keys that say how a model is trained."""

RECIPES = {
    "DPOModule": "configs/dpo.yaml",
    "KTOModule": "configs/kto.yaml",
    "ListwiseDPOModule": "configs/dpo-listwise.yaml",
    "SFTModule": "configs/sft.yaml",
}


def unknown_class_error(key: str, name: str, classes: Sequence[str]) -> UserError:
    """Make the error for an unknown class, with the most similar one or those that the key takes.

    Args:
        key: the option that names the class.
        name: of the class, with or without its module.
        classes: of this package that the option takes, for one module of several.
    """
    module, _, plain = name.rpartition(".")
    if plain in classes and module.partition(".")[0] in ("", PACKAGE):
        owners = [f"--model {owner} ({RECIPES[owner]})" for owner in find_owners(key, plain) if owner in RECIPES]
        recipes = "use the recipe of its module (configs/dpo.yaml for pairs, configs/kto.yaml for unpaired rows)"
        fix = f"it belongs to {' or '.join(owners)}, with rows of that kind" if owners else recipes
        return UserError(ExitCode.CONFIG, Problem("this class belongs to another module", key, name), fix)
    if name == "None":
        overlay = "use a second --config with `init_args: {policy: {lora: null}}` below `model`"
        return UserError(ExitCode.CONFIG, Problem("a flag cannot set this to null", key), fix=overlay)
    fix = suggest_class(key, name, classes)
    return UserError(ExitCode.CONFIG, Problem("the class does not exist", key, name), fix)


def find_owners(key: str, name: str) -> list[str]:
    """Return the modules whose loss may be a class; empty for options that are not the loss."""
    if key != "model.loss":
        return []
    bases = {base.__name__ for base in inspect.getmro(import_object(f"{PACKAGE}.losses.{name}"))}
    modules = read_options().places["model"]
    return [each.name for each in modules for option in each.options if option.name == "loss" and option.type in bases]


def suggest_class(key: str, name: str, classes: Sequence[str]) -> str:
    """Return a fix that names the class which an unknown one may have meant, or those that the key takes."""
    module, _, plain = name.rpartition(".")
    others = value_names(key)
    listed = classes or list(dict.fromkeys(others.values()))
    lower = {kind.rpartition(".")[2].lower(): kind for kind in listed}
    beside = vars(sys.modules[module]) if module in sys.modules else {}
    if ours := translate_value(key, name):
        return f"--{key} {ours}"
    if key in TRAINED and (reason := explain_unsupported(plain)):
        return f"--{key} takes {', '.join(listed)}: {reason}"
    if near := difflib.get_close_matches(plain.lower(), lower, n=1, cutoff=ALIKE if beside else 0.5):
        return f"did you mean {lower[near[0]]}?"
    if near := difflib.get_close_matches(plain, [each for each in beside if isinstance(beside[each], type)], n=1):
        return f"did you mean {module}.{near[0]}?"
    if near := difflib.get_close_matches(name.lower(), others, n=1, cutoff=ALIKE):
        return f"did you mean {others[near[0]]}?"
    return f"--{key} takes {', '.join(listed)}" if listed else HELP
