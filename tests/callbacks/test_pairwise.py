"""Measures of pairs in a run that has none."""

import pytest

from dpo_lightning.callbacks import PreferenceAccuracy, RewardMargins
from dpo_lightning.errors import ExitCode, UserError


@pytest.mark.parametrize("measure", [PreferenceAccuracy, RewardMargins])
def test_a_step_without_pairs_is_refused_in_words(measure):
    with pytest.raises(UserError, match="this run has other rows") as told:
        measure().values({"logps": None}, None)
    assert told.value.code == ExitCode.CONFIG
