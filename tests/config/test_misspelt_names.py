"""Options whose names are misspelt, and those that are like nothing."""

from fnmatch import fnmatch

import pytest

from dpo_lightning.config.option_table import read_options
from dpo_lightning.config.unknown_options import NONE_SUCH, UnknownOption, suggest
from dpo_lightning.foreign_names import option_names, read_rows

KNOWN = read_options().list_keys("fit")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learnign_rate", "model.learning_rate"),
        ("num_epoch", "trainer.max_epochs"),
        ("gradient_acumulation_steps", "trainer.accumulate_grad_batches"),
        ("data.trian", "data.train"),
        ("model.loss.beat", "model.loss.beta"),
        ("trainer.max_epocs", "trainer.max_epochs"),
        ("gradient_clip_vals", "trainer.gradient_clip_val"),
        ("ignore_colums", "data.ignore_columns"),
        ("outputdir", "output_dir"),
        ("trainer.presicion", "trainer.precision"),
    ],
)
def test_a_misspelt_name_leads_to_the_key_of_the_right_one(key, near):
    assert suggest(UnknownOption(key), KNOWN) == f"did you mean {near}?"


@pytest.mark.parametrize("key", KNOWN)
def test_a_letter_too_few_or_twice_leads_to_the_key(key):
    """No pattern of the table takes it, and no other name is nearer."""
    last = key.rpartition(".")[2]
    for i in range(1, len(last)) if len(last) > 6 else ():
        for end in (last[:i] + last[i + 1 :], last[:i] + last[i] + last[i:]):
            typo = key.removesuffix(last) + end
            said = suggest(UnknownOption(typo), KNOWN)
            assert typo in KNOWN or end in option_names() or said == f"did you mean {key}?", typo


@pytest.mark.parametrize(
    "key", ["frobnicate", "zzzz.path", "a", "path_of_x", "model.policy.weird", "generator_config", "skipped_tokens"]
)
def test_nothing_is_suggested_for_what_is_like_nothing(key):
    """A key that is accepted and does something else is worse than none."""
    assert suggest(UnknownOption(key), KNOWN) == NONE_SUCH


def test_a_pattern_of_names_is_no_name_of_a_key():
    patterns = [name for name in read_rows() if "*" in name]
    ends = {".".join(key.split(".")[start:]) for key in KNOWN for start in range(key.count(".") + 1)}
    assert len(patterns) > 50
    assert [(end, name) for end in ends for name in patterns if fnmatch(end, name)] == []
