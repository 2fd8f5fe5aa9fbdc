"""Mistakes of a user: the exit code, a few lines with the remedy, nothing loaded before it is due, nothing written."""

import bad_files_cases
import bad_options_cases
import bad_rows_cases
import pytest

CASES = [*bad_rows_cases.CASES, *bad_files_cases.CASES, *bad_options_cases.CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake(stand, case):
    assert stand.run(case) == []


def test_names_are_unique():
    assert len({case.name for case in bad_options_cases.ALL}) == len(bad_options_cases.ALL)
