"""`fit --help` and its sections: every option with its default and a line, at a width of 80 columns."""

import re

import pytest
from support.command_line import refused, run

from dpo_lightning.config.option_help import (
    DATA,
    LOOP,
    MACHINE,
    MODEL,
    RUN,
    SECTIONS,
    TRAINING,
    find_topic,
    format_help,
)
from dpo_lightning.config.option_table import read_options

TABLE = read_options()
CLASSES = [kind for kinds in TABLE.places.values() for kind in kinds]
COMMANDS = ("fit", "validate", "test", "predict", "precompute")


def said(*args):
    ran = run(*args)
    assert (ran.code, ran.err) == (0, "")
    return ran.out


def rows(page):
    """Name -> default of each option of a page."""
    return dict(re.findall(r"^ +([\w.]+)(?:=(\S+))?(?: {2,}|$)", page, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("topic", ["", *SECTIONS, "all", "SimPOLoss"])
def test_every_page_fits_a_terminal(command, topic):
    lines = format_help(command, topic).splitlines()
    assert lines
    assert [line for line in lines if len(line) > 79 and len(line.split()) > 1] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_page_is_two_screens_at_most(command):
    """The usage, the options that most runs set with their defaults, and how to get the rest."""
    page = said(command, "--help")
    assert page.startswith(f"usage: python -m dpo_lightning {command} ")
    assert len(page.splitlines()) <= 60
    assert f"{command} --help SECTION" in page
    assert {"model", "lora", "loss", "data", "trainer"} <= set(re.findall(r"^  (\w+)", page, re.MULTILINE))
    assert ("--model.loss.beta=0.1" in page) == (command in ("fit", "precompute"))
    for shown in ("--model.policy.path", "--model.policy.lora.r ", "--data.batch_size=4", "--output_dir", "--config"):
        assert shown in page


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.place}-{kind.name}")
def test_the_page_of_a_class_has_every_option_with_its_default(kind):
    page = format_help("fit", kind.name)
    found = rows(page)
    flat = " ".join(page.split())
    for option in kind.options:
        assert option.name in found
        assert found[option.name] == ("" if option.default == "required" else option.default)
        assert " ".join(option.help.split()) in flat
    assert f"--{kind.place}.OPTION" in page


@pytest.mark.parametrize(("topic", "places"), [(name, places) for name, (places, _) in SECTIONS.items()])
def test_a_section_has_every_option_of_its_classes(topic, places):
    flat = " ".join(said("fit", "--help", topic).split())
    for kind in (kind for place in places for kind in TABLE.places[place]):
        for option in kind.options:
            shown = option.name if option.default == "required" else f"{option.name}={option.default}"
            assert shown in flat, (kind.name, option.name)
            assert option.help in flat
        if len(TABLE.places[kind.place]) > 1:
            assert kind.name in flat


def test_all_sections_together_have_every_class():
    shown = {place for places, _ in SECTIONS.values() for place in places}
    assert shown == set(TABLE.places)
    page = said("fit", "--help", "all")
    assert [kind.name for kind in CLASSES if kind.name not in page] == []


@pytest.mark.parametrize(
    ("args", "topic"),
    [
        (["fit", "--help"], ""),
        (["fit", "-h"], ""),
        (["fit", "--help", "model"], "model"),
        (["fit", "--help=DPOLoss"], "DPOLoss"),
        (["fit", "--config", "x", "--help", "--fresh"], ""),
        (["fit", "--model.help", "DPOModule"], "DPOModule"),
        (["fit", "--model.loss.help=dpo_lightning.losses.IPOLoss"], "IPOLoss"),
        (["fit", "--model.policy.lora.help"], "Lora"),
        (["fit", "--model.optimizer.help", "torch.optim.AdamW"], None),
        (["fit", "--model.loss.help", "mine.Loss"], None),
        (["fit", "--data.train", "x"], None),
    ],
)
def test_what_is_to_be_explained(args, topic):
    assert find_topic(args) == topic


@pytest.mark.parametrize(
    ("topic", "same"),
    [
        ("losses", "loss"),
        ("LOSS", "loss"),
        ("callback", "callbacks"),
        ("collators", "collator"),
        ("dpoloss", "DPOLoss"),
    ],
)
def test_a_section_may_be_named_loosely(topic, same):
    assert format_help("fit", topic) == format_help("fit", same)


def test_a_key_is_a_section():
    assert format_help("fit", "model.policy.lora") == format_help("fit", "Lora")
    assert format_help("fit", "--data.collator") == format_help("fit", "collator")


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("lr_scheduler", "--model.lr_scheduler, of DPOModule"),
        ("logger", "--trainer.logger\n"),
        ("trainer.max_steps", "--trainer.max_steps\n  max_steps=-1"),
        ("final", "--final\n"),
        ("gamma", "--model.loss.gamma, of"),
        ("lora_r", "--model.policy.lora.r\n"),
        ("num_train_epochs", "--trainer.max_epochs\n"),
    ],
)
def test_an_option_is_explained_by_its_key_its_end_or_its_name_elsewhere(topic, shown):
    page = said("fit", "--help", topic)
    assert page.startswith(shown)
    assert [line for line in page.splitlines() if len(line) > 79] == []


def test_no_far_name_is_proposed_for_an_unknown_section():
    refused(run("fit", "--help", "learning_rat"), 64, "did you mean learning_rate?")
    refused(run("fit", "--help", "loader"), 64, "--help lists the sections")


def test_a_foreign_name_without_a_page_is_answered():
    refused(run("fit", "--help", "use_ray"), 64, "fix: leave it out: training is Lightning's")
    refused(run("fit", "--help", "warmup_ratio"), 64, "fix: --model.lr_scheduler.warmup_ratio (with --model.lr_sch")


def test_an_unknown_section_is_an_error():
    refused(run("fit", "--help", "DPOLos"), 64, "--help has no section 'DPOLos'", "did you mean DPOLoss?")
    refused(run("fit", "--help", "zzzz"), 64, "--help lists the sections")


def test_the_help_of_other_classes_is_the_parsers(bench):
    """Below a model that is named; without one the error says so."""
    ran = bench.fit("--model.optimizer.help", "torch.optim.AdamW")
    assert (ran.code, ran.err) == (0, "")
    assert "--optimizer.weight_decay" in ran.out
    refused(run("fit", "--model.loss.help", "IPOLos"), 64, "depends on the class", "--model DPOModule")


def test_the_first_page_shows_what_exists():
    known = TABLE.list_keys("fit") + [option.name for option in TABLE.commands["precompute"]]
    assert [key for part in (RUN, MODEL, TRAINING, DATA, LOOP, MACHINE) for key in part if key not in known] == []
