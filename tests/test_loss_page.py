"""docs/losses.md follows from the classes, its picture shows these losses, and its YAML and its example train."""

import importlib
import inspect
import math
import re
import struct
import sys
from pathlib import Path

import make_losses
import plot_losses
import pytest
from check_rows import make_check_rows
from support import tiny_models
from support.command_line import ROOT, Bench
from support.loss_cases import KINDS

import dpo_lightning.losses
from dpo_lightning.losses import BCOPairLoss, DPOLoss, SFTLoss, WeightedSum

PAGE, PICTURE = ROOT / "docs" / "losses.md", ROOT / "docs" / "losses.png"
TEXT = PAGE.read_text(encoding="utf-8")
YAML = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_page_follows_from_the_classes():
    assert make_losses.render_page() == TEXT, "run python docs/make_losses.py"


@pytest.fixture(scope="module")
def curves():
    """What is in the picture."""
    return make_losses.compute_all_curves()


def test_the_picture_is_of_these_losses(curves, tmp_path):
    """A hash in it names what was drawn; and it can be drawn."""
    description = f"Description\0{plot_losses.compute_digest(curves)}".encode()
    assert description in PICTURE.read_bytes(), "run python docs/make_losses.py"
    plot_losses.draw({name: curves[name] for name in ("DPOLoss", "SFTLoss")}, tmp_path / "two.png")
    header = (tmp_path / "two.png").read_bytes()[16:24]
    assert all(side > 100 for side in struct.unpack(">II", header))


def test_a_changed_loss_shows(curves, monkeypatch):
    """In the page by its words, in the picture by its numbers."""
    page = make_losses.render_page()
    monkeypatch.setattr(DPOLoss, "__doc__", DPOLoss.__doc__.replace("the default choice", "the last choice"))
    assert make_losses.render_page() != page
    other = plot_losses.compute_curve(DPOLoss(0.11), plot_losses.MARGINS)
    assert plot_losses.compute_digest(curves | {"DPOLoss": other}) != plot_losses.compute_digest(curves)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_loss_has_its_section(kind):
    """Whatever the package exports and can be made has a paper (or `none`), says when it is used, and check numbers."""
    entry = make_losses.parse_entry(kind)
    assert {"Paper", "Loss", "TRL", "Use", "Typical", "Check"} <= set(entry.lines)
    assert re.search(r"arXiv:\d{4}\.\d{5}|^none", entry.lines["Paper"])
    assert len(entry.check_numbers) >= 3
    assert TEXT.count(f"\n### {kind.__name__}\n") == 1
    assert TEXT.count(f"\n| [{kind.__name__}](#{kind.__name__.lower()}) | ") == 1
    assert set(make_losses.find_option_texts(kind)) >= {field.name for field in make_losses.fields(kind) if field.init}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_loss_is_in_a_file_of_its_name(kind):
    """So that `ls dpo_lightning/losses` finds it; and the package exports whatever its files define."""
    file = Path(inspect.getfile(kind)).stem
    assert kind.__name__.lower().startswith(file.replace("_", ""))


def test_every_loss_is_exported():
    files = (ROOT / "dpo_lightning" / "losses").glob("[a-z]*.py")
    modules = [importlib.import_module(f"dpo_lightning.losses.{file.stem}") for file in files]
    defined = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and name != "RunningMean"
    }
    assert defined == set(dpo_lightning.losses.__all__)
    assert len(KINDS) >= 34


def test_the_example_becomes_a_loss_of_the_package(tmp_path, monkeypatch):
    """Exported, it is on the page and in the picture; its check numbers hold. With its export it has 30 lines."""
    (tmp_path / "your_loss.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("your_loss").YourLoss
    monkeypatch.setattr(dpo_lightning.losses, "YourLoss", kind, raising=False)
    monkeypatch.setattr(dpo_lightning.losses, "__all__", [*dpo_lightning.losses.__all__, "YourLoss"])
    page = make_losses.render_page()
    assert "### YourLoss\n\nRegress the reward margin to a target.\n\n- **Paper**: Author" in page
    assert "- **At the start**: 1.000000 by default: target^2 where policy and reference agree" in page
    assert "  - `target = 1.0`: Reward margin at which the loss is 0." in page
    assert "YourLoss" in make_losses.compute_all_curves()
    losses = kind()(make_check_rows(kind)).losses
    assert losses.tolist() == pytest.approx(make_losses.parse_entry(kind).check_numbers)
    assert len(EXAMPLE.splitlines()) + len(["import", "name in __all__"]) <= 30
    sys.modules.pop("your_loss")


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
def test_starting_values_are_computed(name, value):
    assert make_losses.describe_start(getattr(dpo_lightning.losses, name)).startswith(f"{value:.6f} by default: ")


def test_a_loss_without_a_starting_value_depends_on_the_model():
    for name in ("SimPOLoss", "SFTLoss", "ORPOLoss"):
        assert make_losses.describe_start(getattr(dpo_lightning.losses, name)) == "depends on the model"


def test_pipes_do_not_break_tables():
    rows = list(make_losses.render_divergences())
    assert len(rows) == 4
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with pairs and a tiny model."""
    folder = tmp_path_factory.mktemp("page")
    return Bench(
        folder, tiny_models.save(folder / "model", tiny_models.make_llama(), tiny_models.make_chat_tokenizer())
    )


@pytest.mark.parametrize("number", range(len(YAML)))
def test_the_yaml_of_the_page_trains(number, bench, monkeypatch):
    """Laid over the recipe of DPO; the first block names the class of the example, in another package."""
    (bench.folder / "your_package.py").write_text(EXAMPLE, encoding="utf-8")
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


def test_there_are_three_of_them():
    assert [("BCOPairLoss" in block, "SFTLoss" in block, "your_package" in block) for block in YAML] == [
        (False, False, True),
        (True, True, False),
        (False, True, False),
    ]
    assert make_losses.make_mpo() == WeightedSum([DPOLoss(), BCOPairLoss(), SFTLoss()], [0.8, 0.2, 1.0])
