"""docs/losses.md is what the classes say, its picture is of these losses, and its YAML trains."""

import importlib.util
import inspect
import math
import re
import struct
import sys

import pytest
from support import tiny_models
from support.command_line import ROOT, Bench

import dpo_lightning.losses
from dpo_lightning.losses import BCOPairLoss, DPOLoss, SFTLoss, WeightedSum

PAGE, PICTURE = ROOT / "docs" / "losses.md", ROOT / "docs" / "losses.png"


@pytest.fixture(scope="module")
def maker():
    """The script that writes both."""
    spec = importlib.util.spec_from_file_location("make_losses", ROOT / "docs" / "make_losses.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_losses"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_classes_say(maker):
    assert maker.page() == PAGE.read_text(encoding="utf-8"), "run python docs/make_losses.py"


@pytest.fixture(scope="module")
def drawn(maker):
    """What is in the picture."""
    return maker.curves()


def test_the_picture_is_of_these_losses(maker, drawn, tmp_path):
    """Its own text tells what was drawn; and it can be drawn."""
    assert f"Description\0{maker.digest(drawn)}".encode() in PICTURE.read_bytes(), "run python docs/make_losses.py"
    maker.draw({name: drawn[name] for name in ("DPOLoss", "SFTLoss")}, tmp_path / "two.png")
    header = (tmp_path / "two.png").read_bytes()[16:24]
    assert all(side > 100 for side in struct.unpack(">II", header))


def test_a_changed_loss_shows(maker, drawn, monkeypatch):
    """In the page by its words, in the picture by its numbers."""
    page = maker.page()
    monkeypatch.setattr(DPOLoss, "__doc__", DPOLoss.__doc__.replace("the first choice", "the last choice"))
    assert maker.page() != page
    assert maker.digest(drawn | {"DPOLoss": maker.curve(DPOLoss(0.11), maker.MARGINS)}) != maker.digest(drawn)


def test_every_loss_has_its_section(maker):
    """Whatever the package offers and can be made has a paper and says when it is used; bases have none."""
    offered = [getattr(dpo_lightning.losses, name) for name in dpo_lightning.losses.__all__]
    real = [kind for kind in offered if inspect.isclass(kind) and not inspect.isabstract(kind)]
    entries = {each.kind: each for each in maker.public()}
    assert set(entries) == set(real)
    assert len(entries) >= 30
    text = PAGE.read_text(encoding="utf-8")
    for kind, each in entries.items():
        assert {"Paper", "Loss", "TRL", "Use", "Typical"} <= set(each.lines), kind
        assert re.search(r"arXiv:\d{4}\.\d{5}", each.lines["Paper"]), kind
        assert text.count(f"\n### {kind.__name__}\n") == 1
        assert text.count(f"\n| [{kind.__name__}](#{kind.__name__.lower()}) | ") == 1
        assert set(maker.option_texts(kind)) >= {field.name for field in maker.fields(kind) if field.init}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DPOLoss", math.log(2)),
        ("IPOLoss", 25.0),
        ("EXOLoss", -math.log(2) - (math.log(1e-3) + math.log(1 - 1e-3)) / 2),
        ("DiscoPOPLoss", (1 + math.log(2)) / 2),
        ("NCALoss", 2 * math.log(2)),
        ("SPPOLoss", 50.0),
        ("APODownLoss", 1.0),
        ("CalDPOLoss", 50 + math.log(2)),
    ],
)
def test_starting_values_are_computed(maker, name, value):
    assert maker.starting_value(getattr(dpo_lightning.losses, name)).startswith(f"{value:.6f} by default: ")


def test_what_has_no_starting_value_of_its_own_says_so(maker):
    for name in ("SimPOLoss", "SFTLoss", "ORPOLoss"):
        assert maker.starting_value(getattr(dpo_lightning.losses, name)) == "as the model has it"


def test_pipes_do_not_break_tables(maker):
    for row in maker.measures():
        assert len(re.findall(r"(?<!\\)\|", row)) == 5


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with pairs and a tiny model."""
    folder = tmp_path_factory.mktemp("page")
    return Bench(
        folder, tiny_models.save(folder / "model", tiny_models.make_llama(), tiny_models.make_chat_tokenizer())
    )


YAML = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(YAML)))
def test_the_yaml_of_the_page_trains(number, bench, monkeypatch):
    """Laid over the recipe of DPO; the last block names a class of another package."""
    (bench.folder / "your_package.py").write_text(
        "from dataclasses import dataclass\nfrom dpo_lightning.losses import DPOLoss\n"
        "@dataclass(frozen=True)\nclass YourLoss(DPOLoss):\n    '''Mine.'''\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(bench.folder))
    ran = bench.fit(*bench.overlay(YAML[number]), "--allow-class-path", "your_package", out=f"run{number}")
    sys.modules.pop("your_package", None)
    assert ran.code == 0, ran
    assert "self-check: passed" in ran.out


def test_a_divergence_is_named_by_its_flag(bench):
    """As the page has it, with an option of its own."""
    flags = "--model.loss.divergence", "AlphaDivergence", "--model.loss.divergence.alpha", "0.25"
    ran = bench.fit(*flags, "--trainer.max_steps", "1", out="alpha")
    assert ran.code == 0, ran
    assert "AlphaDivergence" in (bench.folder / "alpha" / "config.yaml").read_text(encoding="utf-8")


def test_there_are_three_of_them(maker):
    assert [("BCOPairLoss" in block, "SFTLoss" in block, "your_package" in block) for block in YAML] == [
        (True, True, False),
        (False, True, False),
        (False, False, True),
    ]
    assert maker.mpo() == WeightedSum([DPOLoss(), BCOPairLoss(), SFTLoss()], [0.8, 0.2, 1.0])
