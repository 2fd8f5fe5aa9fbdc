"""The logger `dpo_lightning`: silent or redirected as its user wants, and from the first process only."""

import logging
import subprocess
import sys

import pytest

from dpo_lightning.log import TerminalHandler, is_first_process, log_to_terminal, logger


def test_a_record_is_one_line_and_a_warning_says_so(capsys):
    logger.info("a\x1b[31m\nb")
    logger.warning("steep")
    assert capsys.readouterr().out == "a\\x1b[31m\\nb\nwarning: steep\n"


def test_a_second_call_adds_no_handler():
    log_to_terminal()
    assert sum(isinstance(handler, TerminalHandler) for handler in logger.handlers) == 1


def test_a_program_can_redirect_it(capsys):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    logger.info("kept")
    logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["kept"]


RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "1"},
        {"LOCAL_RANK": "1"},
        {"LOCAL_RANK": "0", "NODE_RANK": "1"},
        {"LOCAL_RANK": "0", "GROUP_RANK": "1"},
    ],
    ids=str,
)
def test_other_processes_are_silent(monkeypatch, capsys, variables):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    logger.warning("from rank 1")
    assert capsys.readouterr().out == ""


def test_nothing_is_printed_by_the_classes_themselves():
    """A notebook that has not set up logging sees warnings alone, as with any library."""
    code = (
        "from dpo_lightning.log import logger\n"
        "logger.info('reference: FrozenCopy')\n"
        "import dpo_lightning.models, logging\n"
        "logging.getLogger('dpo_lightning').setLevel(logging.ERROR)\n"
        "from dpo_lightning import SFTModule\n"
        "SFTModule(dpo_lightning.models.CausalLM('nowhere'), learning_rate=0.5)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
