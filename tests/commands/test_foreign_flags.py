"""Flags of other programs, given to commands that take options of their own."""

import pytest
from support.command_line import refused, run

from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.foreign_names import read_names, translate_flag

FLAGS = {
    "infer": {
        "model_path": "--model",
        "prompt": "--instruction",
        "max_tokens": "--max_new_tokens",
        "temp": "--temperature",
    },
    "evaluate": {"model_name_or_path": "--model", "eval_dataset": "--data", "output_dir": "--output"},
    "export": {"adapter_name_or_path": "--model", "export_dir": "--out"},
    "convert": {"output_file": "--output", "dataset": "--input"},
    "compare": {"max_samples": "--limit_rows", "eval_batch_size": "--batch_size"},
}


@pytest.mark.parametrize("command", FLAGS)
def test_a_foreign_flag_leads_to_that_of_the_command(command):
    """All of them in one error, in place of what is missing."""
    given = [word for name in FLAGS[command] for word in (f"--{name}", "x")]
    said = [f"the option --{name} does not exist\nfix: write {ours}" for name, ours in FLAGS[command].items()]
    refused(run(command, *given), 64, *said)


def test_a_typo_leads_to_the_near_flag():
    refused(run("infer", "--modle", "x", "--instruction=hi"), 64, "--modle does not exist\nfix: did you mean --model?")


def test_flags_without_a_counterpart_say_why():
    refused(run("infer", "--model=x", "--instruction=x", "--load_in_4bit"), 64, "fix: leave it out: models are loaded")


def test_what_is_like_nothing_is_left_to_argparse():
    refused(run("infer", "--model=x", "--instruction=x", "--zzz"), 64, "unrecognized arguments: --zzz", "--help lists")
    refused(run("infer", "--model=x"), 64, "arguments are required: --instruction", "--help lists")


def test_one_that_is_like_nothing_stands_beside_others():
    ran = run("infer", "--model_path", "x", "--zzz")
    refused(ran, 64, "--model_path does not exist\nfix: write --model", "--zzz does not exist", "infer --help lists")


def test_an_abbreviation_and_further_options_are_no_foreign_flags():
    parser = RaisingArgumentParser("prog")
    parser.add_argument("--number", required=True)
    assert parser.parse_args(["--num=3"]).number == "3"
    known, rest = parser.parse_known_args(["--number=3", "--model_path", "x"])
    assert (known.number, rest) == ("3", ["--model_path", "x"])


def test_every_flag_of_the_table_exists_in_some_command():
    shown = " ".join(run(command, "--help").out for command in (*FLAGS, "check-data"))
    keys = {key for row in read_names()["flags"] for key in row["keys"].split()}
    assert [key for key in keys if key not in shown.split() and f"{key}," not in shown] == []


def test_a_flag_that_the_command_lacks_leads_nowhere():
    assert translate_flag("prompt", ["--model"]) is None
    assert translate_flag("trust_remote_code", ["--model"]).note
