"""Which names an option takes, asked of the functions themselves; commands are in `test_class_paths_called.py`."""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec
import pytest
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

from dpo_lightning import DPOModule
from dpo_lightning.config import class_paths
from dpo_lightning.config.class_paths import (
    NotTakenError,
    accepted_classes,
    find_misnamed,
    find_option,
    import_object,
    imports_restricted,
    members,
    qualified_name,
    resolve_class,
)
from dpo_lightning.losses import DPOLoss, PreferenceLoss
from dpo_lightning.references import ReferencePolicy

OUTSIDE = "a config may not import this package"
LOSS = "dpo_lightning.losses.DPOLoss"
MAKES = Callable[[PreferenceLoss], Optimizer]
OWN = """
import functools
import os
from dpo_lightning.losses import DPOLoss

def halve(step):
    return 0.5**step

class Own(DPOLoss):
    pass

class Wide:
    def __init__(self, *parts, **options):
        pass
"""


def told(value, hint):
    """Where something is named that the option does not take, and why."""
    return [(problem.where, problem.what) for problem in find_misnamed(value, hint, "key")]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of the user's own that the command opens."""
    (tmp_path / "own_kinds.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with imports_restricted(["own_kinds"]):
        yield
    sys.modules.pop("own_kinds", None)


@pytest.mark.parametrize(
    ("path", "hint", "why"),
    [
        ("os.abort", PreferenceLoss, OUTSIDE),
        ("own_kinds.Own", PreferenceLoss, OUTSIDE),
        ("dpo_lightningx.losses.DPOLoss", PreferenceLoss, OUTSIDE),
        ("dpo_lightning.losses.Nothing", PreferenceLoss, "the class does not exist"),
        ("dpo_lightning.nothing.Nothing", PreferenceLoss, "the class does not exist"),
        ("dpo_lightning", PreferenceLoss, "the class does not exist"),
        ("dpo_lightning.config.class_paths.functools.partial", PreferenceLoss, "not a class"),
        ("dpo_lightning.runs.lineage.folder_digest", PreferenceLoss, "not a class"),
        ("dpo_lightning.losses", PreferenceLoss, "not a class"),
        ("dpo_lightning.config.class_paths.ModuleType", PreferenceLoss, OUTSIDE),
        (LOSS, Optimizer, "not a Optimizer"),
        (LOSS, MAKES, "not a Optimizer"),
        (LOSS, Optimizer | ReferencePolicy, "not a Optimizer or ReferencePolicy"),
        (LOSS, Callable[..., Any], "the option takes no class"),
        (LOSS, dict[str, int], "the option takes no class"),
        (LOSS, None, "the option takes no class"),
    ],
)
def test_what_an_option_does_not_take(path, hint, why):
    for value in ({"class_path": path}, Namespace(class_path=path)):
        assert told(value, hint) == [("key", why)]
        for several in ([value], (value,), [[value]]):
            assert told(several, list[hint] | None) == [("key", why)]
    with pytest.raises(NotTakenError, match=why):
        resolve_class(path, hint)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        (LOSS, PreferenceLoss),
        (LOSS, PreferenceLoss | None),
        (LOSS, list[PreferenceLoss]),
        ("torch.optim.AdamW", MAKES),
        ("lightning.pytorch.callbacks.LambdaCallback", find_option(Trainer, "callbacks").annotation),
    ],
)
def test_what_it_takes(path, hint):
    for value in ({"class_path": path}, Namespace(class_path=path), [Namespace(class_path=path)]):
        assert told(value, hint) == []
    assert told(DPOLoss(), PreferenceLoss) == told(3, PreferenceLoss) == told(None, PreferenceLoss) == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (os.abort, "not a class"),
        (functools.partial(os.abort), "not a class"),
        (LambdaCallback, "not a PreferenceLoss"),
        (type("Called", (), {"__call__": None})(), "not a class"),
    ],
)
def test_an_object_that_was_made_already(value, why):
    """As the parser hands functions over."""
    for several in (value, [value], (value,), {value}):
        assert told(several, PreferenceLoss) == [("key", why)]
    assert told({"part": value}, PreferenceLoss) == [("key.part", why)]


@pytest.mark.parametrize("given", ["init_args", "dict_kwargs"])
def test_what_lies_further_in(given):
    """Whether the class that is named has such an option or not."""
    path = "lightning.pytorch.callbacks.LambdaCallback"
    for name in ("on_fit_start", "nothing"):
        value = {"class_path": path, given: {name: {"class_path": "os.abort"}}}
        assert told(value, Callback) == [(f"key.{name}", OUTSIDE)]
    wrong = {"class_path": path, given: {"on_fit_start": {"class_path": LOSS}}}
    assert told(wrong, Callback) == [("key.on_fit_start", "the option takes no class")]
    wrong = {"class_path": "os.abort", given: {"a": {"class_path": "os.abort"}}}
    assert told(wrong, Callback) == [("key", OUTSIDE)]


def test_the_options_of_a_section():
    """A mapping without a class is of the class of its section."""
    wrong = {"loss": {"class_path": "torch.optim.AdamW"}, "optimizer": {"class_path": LOSS}}
    assert told(wrong, DPOModule) == [
        ("key.loss", "not a PairwiseLoss"),
        ("key.optimizer", "not a Optimizer"),
    ]
    assert told(wrong, DPOModule | None) == told(wrong, DPOModule)
    assert told({"loss": {"class_path": LOSS}, "optimizer": AdamW}, DPOModule) == []
    assert told({"callbacks": [{"class_path": LOSS}]}, Trainer) == [("key.callbacks", "not a Callback")]


def test_the_default_of_an_option_is_taken(monkeypatch):
    """It is no choice of a config."""

    def hooked(hook: Callable[[], None] = os.abort, other: Callable[[], None] = os.getpid):
        pass

    assert told({"class_path": LOSS, "init_args": {"beta": 0.1}}, PreferenceLoss) == []
    monkeypatch.setattr(class_paths, "resolve_class", lambda *_: hooked)
    given = {"class_path": "a.b", "init_args": {"hook": os.abort, "other": os.abort}}
    assert told(given, PreferenceLoss) == [("key.other", "not a class")]


class Narrow(Protocol):
    """What a type checker looks at."""


Narrow.__module__ = "dpo_lightning.test"


def test_the_kinds_that_an_annotation_names():
    assert list(accepted_classes(PreferenceLoss)) == list(accepted_classes(PreferenceLoss | None)) == [PreferenceLoss]
    assert list(accepted_classes(dict[str, list[PreferenceLoss]] | Optimizer)) == [PreferenceLoss, Optimizer]
    assert list(accepted_classes(MAKES)) == [Optimizer]
    assert (
        list(accepted_classes(Callable))
        == list(accepted_classes(Narrow))
        == list(accepted_classes(int))
        == list(accepted_classes("DPOLoss"))
        == []
    )


class Base:
    def __init__(
        self, loss: "PreferenceLoss | Any", *parts: int, number: "int" = 3, odd: "Nothing" = 1, **options: int
    ):
        pass


class Inner(Base):
    def __init__(self, own: "1 + 'a'" = 0, **options):
        super().__init__(**options)


def test_an_option_of_a_class_or_of_one_above():
    assert find_option(Inner, "number").default == 3
    assert find_option(Inner, "number").annotation is int
    assert list(accepted_classes(find_option(Inner, "loss").annotation)) == [PreferenceLoss]
    assert find_option(Inner, "odd").annotation is find_option(Inner, "own").annotation is None
    for owner in (Inner, Base):
        assert find_option(owner, "parts") is find_option(owner, "options") is find_option(owner, "nothing") is None
    assert find_option(len, "obj") is find_option(3, "real") is find_option(None, "x") is None
    assert find_option(test_the_default_of_an_option_is_taken, "x") is None
    assert find_option(told, "hint").name == "hint"


@dataclass(frozen=True)
class Field(DPOLoss):
    """Its `__init__` is made here, of annotations that were written elsewhere."""


def test_an_option_that_is_an_inherited_field():
    assert "Divergence" not in globals()
    assert [kind.__name__ for kind in accepted_classes(find_option(Field, "divergence").annotation)] == ["Divergence"]


def test_an_annotation_whose_module_imports_its_names_for_type_checkers_only():
    assert list(accepted_classes(find_option(ChainedScheduler, "schedulers").annotation)) == [LRScheduler]


def test_where_things_are_defined():
    where = "dpo_lightning.losses.dpo.DPOLoss"
    assert qualified_name(DPOLoss) == qualified_name(DPOLoss()) == qualified_name(functools.partial(DPOLoss)) == where
    assert qualified_name(told) == f"{__name__}.told"


def test_what_a_level_holds():
    assert members(None) == members({}) == {}
    assert members(Namespace(a=1, __path__="file")) == members({"a": 1, "__path__": "file"}) == {"a": 1}


def test_a_package_that_is_open(own):
    import own_kinds

    assert import_object("own_kinds.halve") is own_kinds.halve
    for path in ("own_kinds.halve", "own_kinds.Own", "own_kinds.Wide"):
        assert told({"class_path": path}, Callable[..., Any]) == told({"class_path": path}, PreferenceLoss) == []
    assert told(own_kinds.halve, PreferenceLoss) == told(functools.partial(own_kinds.halve, 1), PreferenceLoss) == []
    assert import_object("own_kinds.os.abort") is os  # a module from elsewhere is not entered
    assert told({"class_path": "own_kinds.functools.partial"}, PreferenceLoss) == [("key", "not a class")]
    assert told({"class_path": "own_kinds.DPOLoss"}, PreferenceLoss) == []
    assert list(accepted_classes(own_kinds.Own)) == [own_kinds.Own]


def test_what_is_open_ends_with_the_command(monkeypatch):
    opened = class_paths.OPENED
    with imports_restricted(["own_kinds"]):
        assert opened == ["own_kinds"]
        with imports_restricted([]):
            assert opened == []
        assert opened == ["own_kinds"]
    assert opened == []
    with pytest.raises(KeyError), imports_restricted(["own_kinds"]):
        raise KeyError
    assert opened == []


def test_what_the_parser_reads_and_makes():
    """Also where another program in this process has set it otherwise."""
    spec = {"class_path": LOSS}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--more", action="config")
    parser.add_argument("--anything", type=Any)
    with fsspec.open("memory://more.yaml", "w") as file:
        file.write("anything: 1\n")
    set_parsing_settings(config_read_mode_fsspec_enabled=True, instantiate_subclass_spec_in_any=True)
    with imports_restricted([]):
        made = parser.instantiate_classes(parser.parse_object({"anything": spec}))
        assert not isinstance(made.anything, DPOLoss)
        with pytest.raises(ArgumentError):
            parser.parse_args(["--more", "memory://more.yaml"])
