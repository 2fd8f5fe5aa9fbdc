"""What `class_path` may import, and how a user opens it for a package of their own."""

import os
import sys

import pytest
from support.command_line import refused

from dpo_lightning.__main__ import main
from dpo_lightning.config.class_paths import ALLOWED, take_allowed
from dpo_lightning.errors import UserError

EVERYWHERE = ("model", "data", "model.loss", "model.optimizer", "model.reference", "data.collator", "trainer.callbacks")


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module whose import leaves a canary, and a function that says whether it did."""
    canary = tmp_path / "canary"
    body = f"open({str(canary)!r}, 'w').close()\nfrom dpo_lightning.losses import DPOLoss\nclass Evil(DPOLoss): pass\n"
    (tmp_path / "evil_module.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield canary.exists
    sys.modules.pop("evil_module", None)


@pytest.mark.parametrize("key", EVERYWHERE)
def test_a_flag_cannot_import_what_it_likes(bench, evil, key):
    refused(bench.fit(f"--{key}", "evil_module.Evil"), 64, f"at {key}\n  | evil_module.Evil", "--allow-class-path")
    assert not evil()


@pytest.mark.parametrize("key", ["model", "data", "model.loss", "model.optimizer"])
def test_a_file_cannot_import_what_it_likes(bench, evil, key):
    value = "{class_path: evil_module.Evil}"
    for name in reversed(key.split(".")):
        value = f"{{{name}: {value}}}" if name == key.split(".")[0] else f"{{init_args: {{{name}: {value}}}}}"
    refused(bench.fit(*bench.overlay(value)), 64, "a config may not import this package", "evil_module.Evil")
    assert not evil()


@pytest.mark.parametrize(
    ("path", "denied"),
    [
        ("os.abort", "os.abort"),
        ("evil_module.Evil", "evil_module.Evil"),
        ("torch.hub.load", "torch.hub.load"),
        ("lightning.pytorch.callbacks.model_checkpoint.os.abort", "abort"),
        ("torch.optim.optimizer.functools.partial", "functools.partial"),
    ],
)
def test_a_callback_cannot_be_handed_a_function(bench, evil, monkeypatch, path, denied):
    """`LambdaCallback` calls what it is given: neither a name nor a way around through an allowed module gets there."""

    def abort(*_):
        pytest.fail("os.abort was called")

    abort.__module__, abort.__qualname__ = os.abort.__module__, os.abort.__qualname__
    monkeypatch.setattr(os, "abort", abort)
    text = "trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks.LambdaCallback\n"
    ran = bench.fit(*bench.overlay(text + f"    init_args: {{on_fit_start: {path}}}\n"))
    refused(ran, 64, "a config may not import this package", denied)
    assert not evil()


def test_a_package_may_be_opened_by_its_user(bench, evil):
    """And only that one."""
    refused(bench.fit("--allow-class-path", "evil", "--model.loss", "evil_module.Evil"), 64, "evil_module.Evil")
    assert not evil()
    ran = bench.fit("--allow-class-path=evil_module", "--model.loss", "evil_module.Evil", "--print_config")
    assert ran.code == 0, ran
    assert evil()
    assert "class_path: evil_module.Evil" in ran.out
    refused(bench.fit("--model.loss", "evil_module.Evil"), 64, "evil_module.Evil")


def test_a_program_opens_packages_for_its_own_commands(bench, evil):
    """`main([...])` called from Python is a command line as well, once and again; the next one is closed anew."""
    for flags, code in ((["--allow-class-path", "evil_module"], 0), ([], 64)) * 2:
        assert main(["fit", *bench.options(), "--model.loss=evil_module.Evil", "--print_config", *flags]) == code


@pytest.mark.parametrize("name", ["PL_FIT__ALLOW_CLASS_PATH", "ALLOW_CLASS_PATH", "PL_ALLOW_CLASS_PATH"])
def test_the_environment_opens_nothing(bench, evil, monkeypatch, name):
    monkeypatch.setenv(name, "evil_module")
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    refused(bench.fit("--model.loss", "evil_module.Evil"), 64, "evil_module.Evil")
    assert not evil()


@pytest.mark.parametrize(
    "text",
    [
        "allow_class_path: [evil_module]\nmodel: {init_args: {loss: evil_module.Evil}}\n",
        "--allow-class-path: evil_module\nmodel: {init_args: {loss: evil_module.Evil}}\n",
        "config: more.yaml\n",
        "model: more.yaml\n",
        "model: {init_args: {loss: more.yaml}}\n",
        "trainer: {callbacks: more.yaml}\n",
        "model: memory://more.yaml\n",
        "model: file://FOLDER/more.yaml\n",
        "model: http://127.0.0.1:9/more.yaml\n",
    ],
)
def test_a_file_opens_nothing_and_hides_nothing(bench, evil, text):
    """No key of it does, nor a further file that it names; configs are read from disk only."""
    (bench.folder / "more.yaml").write_text("class_path: evil_module.Evil\ninit_args: {beta: 0.3}\n")
    refused(bench.fit(*bench.overlay(text.replace("FOLDER", str(bench.folder)))), 64)
    assert not evil()


OWN_LOSS = '''
from dataclasses import dataclass
from dpo_lightning.losses import PreferenceLoss

@dataclass(frozen=True)
class SquaredLoss(PreferenceLoss):
    """Regress the margin to a target."""

    target: float = 1.0

    def __call__(self, logps):
        return self.output((self.beta * logps.margins - self.target).square(), logps)
'''


def test_a_loss_of_the_users_own_trains(bench, monkeypatch):
    """It is named like ours, its options are flags, and the self-check expects its own starting value."""
    (bench.folder / "own_losses").mkdir()
    (bench.folder / "own_losses" / "__init__.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(str(bench.folder))
    allow = ("--allow-class-path", "own_losses", "--model.loss", "own_losses.SquaredLoss")
    try:
        refused(bench.fit(*allow, "--model.loss.targt", "2"), 64, "model.loss.targt")
        refused(bench.fit(*allow, "--model.loss.target", ".nan"), 64, "SquaredLoss target=nan must be a finite number")
        ran = bench.fit(*allow, "--model.loss.target", "2", "--model.loss.beta", "0.3")
    finally:
        sys.modules.pop("own_losses", None)
    assert ran.code == 0, ran
    assert "self-check: passed (starting loss 4.000000, margins 0" in ran.out
    kept = (bench.folder / "run" / "config.yaml").read_text()
    assert "class_path: own_losses.SquaredLoss" in kept
    assert "| loss | SquaredLoss(beta=0.3, target=2.0) |" in (bench.folder / "run/final_model/README.md").read_text()


def test_the_allow_list_is_narrow():
    """Nothing on it that runs what it is told: not all of torch, not builtins, not os."""
    assert {name.partition(".")[0] for name in ALLOWED} == {
        "dpo_lightning",
        "lightning",
        "torch",
        "peft",
        "bitsandbytes",
        "optimi",
        "torchmetrics",
    }
    assert not {"torch", "lightning", "lightning.pytorch", "torch.hub"} & set(ALLOWED)


def test_packages_are_taken_out_of_the_arguments():
    args = ["fit", "--allow-class-path", "a", "--x", "1", "--allow-class-path=b.c"]
    assert take_allowed(args) == (["fit", "--x", "1"], ["a", "b.c"])
    for bad in ("", "a-b", "a.", ".a", "1a", "a b", "*", "os/path", "jsonargparse", "jsonargparse.typing"):
        with pytest.raises(UserError, match="not a package name"):
            take_allowed([f"--allow-class-path={bad}"])


OWN = "from dpo_lightning.losses import DPOLoss\nclass Own(DPOLoss):\n"
OWN += "    def __init__(self):\n        super().__init__()\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("\nimport no_such_package", 2, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("\n\ndef f(:\n", 3, "SyntaxError: invalid syntax"),
        ("x = unknown_name\n", 1, "NameError: name 'unknown_name' is not defined"),
        ("from dpo_lightning.losses import DPOLosss\n", 1, "ImportError: cannot import name 'DPOLosss'"),
        (OWN + "        {}['oops']\n", 5, "KeyError: 'oops'"),
        (OWN + "    def __call__(self, *args):\n        return 1 / 0\n", 6, "ZeroDivisionError: division by zero"),
    ],
    ids=["import", "syntax", "name", "ours", "made", "called"],
)
def test_an_error_in_a_module_of_ones_own_has_its_file_and_line(bench, monkeypatch, text, line, reason):
    name = f"own_{line}_{len(text)}"
    (bench.folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(bench.folder))
    ran = bench.fit(f"--allow-class-path={name}", f"--model.loss={name}.Own")
    refused(ran, 64, reason, f"{bench.folder / name}.py:{line}", "fix: correct this module; the traceback is in ")


def test_other_mistakes_are_none_of_such_a_module(bench, evil):
    allowed = ("--allow-class-path=evil_module", "--model.loss=evil_module")
    refused(bench.fit(*allowed[:1], f"{allowed[1]}.Lost"), 64, "the class does not exist at model.loss")
    refused(bench.fit(*allowed[:1], f"{allowed[1]}.Evil", "--model.loss.beta=-1"), 64, "beta")
