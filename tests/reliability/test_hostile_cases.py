"""Files of strangers: nothing in them is run, fetched or waited for, and nothing is written beside the output."""

import hostile_adapters
import hostile_configs
import hostile_models
import hostile_templates
import pytest

CASES = [
    *hostile_configs.CASES,
    *hostile_models.CASES,
    *hostile_templates.CASES,
    *hostile_adapters.CASES,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_strangers_files(stand, case):
    assert stand.run(case) == []


def test_there_are_enough():
    refused = [case for case in CASES if case.code]
    assert len(refused) >= 45
    assert len({case.name for case in CASES}) == len(CASES)
