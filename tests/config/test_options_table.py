"""options.json is what the parsers make it, and its keys are those that they take."""

import json

import make_options
import pytest

from dpo_lightning.config.option_table import FILE, read_options
from dpo_lightning.config.parse_errors import UNKNOWN
from dpo_lightning.foreign_names import read_names, read_rows

RECIPE = ("--output_dir=x", "--model=DPOModule", "--model.policy.path=x", "--data=PreferenceDataModule")
CLASSES = {
    "model.loss.gamma": ("--model.loss=SimPOLoss",),
    "model.loss.nll_weight": ("--model.loss=CPOLoss",),
    "model.loss.alpha": ("--model.loss=LDDPOLoss",),
    "model.loss.tau": ("--model.loss=DiscoPOPLoss",),
    "model.loss.divergence.alpha": ("--model.loss.divergence=AlphaDivergence",),
    "model.loss.desirable_weight": ("--model=KTOModule", "--model.loss=KTOLoss"),
    "model.loss.undesirable_weight": ("--model=KTOModule", "--model.loss=KTOLoss"),
    "model.reference.path": ("--model.reference=FrozenCopy",),
    "model.reference.alpha": ("--model.reference=Synced",),
    "model.reference.every": ("--model.reference=Synced",),
    "model.loss.penalty": ("--model.loss=DPOPLoss",),
    "model.lr_scheduler.warmup_ratio": ("--model.lr_scheduler=CosineWithWarmup",),
    "model.lr_scheduler.warmup_steps": ("--model.lr_scheduler=CosineWithWarmup",),
    "data.collator.pad_to_multiple_of": ("--data.collator=Padded",),
}
"""Keys that one class of several has, and the flags that name it."""

ALL = [each for row in read_rows().values() for each in (row, *row.get("cases", {}).values())]
ROWS = [row for row in ALL if not isinstance(row, str)]
KEYS = sorted({row.get("key", "") for row in ROWS} - {"", "config"})


@pytest.fixture(scope="module")
def parser():
    """The real parser of `fit`."""
    return make_options.build_parsers(make_options.PreferenceCLI, "fit")["fit"]


def message(parser, *flags):
    """What the parser says of a command line, or an empty text."""
    try:
        parser.parse_args([*RECIPE, *flags])
    except Exception as error:  # of several libraries
        return str(error)
    return ""


def test_the_file_is_current():
    """After a change of an option or its docstring: python docs/make_options.py."""
    assert FILE.read_text(encoding="utf-8") == make_options.render()


def test_every_option_has_a_line_and_a_default():
    table = read_options()
    options = [option for kinds in table.places.values() for kind in kinds for option in kind.options]
    options += [option for several in table.commands.values() for option in several]
    assert len(options) > 200
    assert [option for option in options if not option.help or "\n" in option.help] == []
    assert {option.default for option in options if option.name in ("beta", "r", "learning_rate")} >= {
        "0.1",
        "16",
        "5e-07",
    }
    assert json.loads(FILE.read_text())["commands"].keys() == {"fit", "validate", "test", "predict", "precompute"}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_a_name_leads_to_exists(parser, key):
    """The real parser takes it, or refuses the value that is given here."""
    said = message(parser, *CLASSES.get(key, ()), f"--{key}=@")
    assert not UNKNOWN.search(said), said
    assert "unrecognized" not in said
    misspelt = message(parser, *CLASSES.get(key, ()), f"--{key}x=@")
    assert UNKNOWN.search(misspelt) or "unrecognized" in misspelt or "is not" in misspelt, misspelt


VALUES = [(key, value) for key, values in read_names()["values"].items() for value in values]
VALUES += sorted(
    {(row["key"], row["value"]) for row in ROWS if "value" in row and "{}" not in row["value"]} - {*VALUES}
)
OWN = {key: {kind.name for kind in kinds} for key, kinds in read_options().places.items()}


def test_a_name_leads_to_classes_of_this_package_that_exist():
    assert [(key, value) for key, value in VALUES if key in OWN and value not in OWN[key]] == []


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value in VALUES if key not in OWN])
def test_every_value_that_a_name_leads_to_is_taken(parser, key, value):
    said = message(parser, f"--{key}={value}")
    assert not said or "are required" in said or "No module named" in said  # options of it, or a further package
