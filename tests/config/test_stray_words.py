"""Words that are no options: what begins with one dash, what lacks dashes, and files without their flag."""

import pytest
from support.command_line import refused, run

from dpo_lightning.config.key_check import check_keys
from dpo_lightning.config.stray_words import find_stray_words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["configs/dpo.yaml"], ("the option configs/dpo.yaml does not exist", "write --config configs/dpo.yaml")),
        (["trainer.max_epochs=3"], ("the option trainer.max_epochs=3", "write --trainer.max_epochs 3")),
        (["model_name_or_path=x", "lr=1"], ("model_name_or_path=x", "--model.policy.path", "--model.learning_rate")),
        (["-lr", "1e-5"], ("the option lr does not exist", "write --model.learning_rate\n")),
        (["-model.learning_rate=1"], ("the option model.learning_rate=1 does not", "write --model.learning_rate 1")),
        (["-c", "x.yaml", "y.yaml"], ("the option y.yaml does not exist", "write --config y.yaml")),
        (["y.yaml", "--config=x.yaml"], ("the option y.yaml does not exist", "write --config y.yaml")),
        (["--data.train", "a.yaml", "b.yaml"], ("the option b.yaml", "write --data.train '[a.yaml,b.yaml]'")),
        (["--data.eval=a", "b", "c"], ("the option b does not exist", "write --data.eval '[a,b,c]'")),
        (["--data.train", *"abcdefg"], ("the option b does not exist", "--data.train '[a,b,c,d,e,...]'")),
        (["--fresh", "lr=1"], ("the option lr=1 does not exist", "write --model.learning_rate")),
    ],
)
def test_options_without_dashes_are_led_on(words, said, monkeypatch):
    monkeypatch.setattr("dpo_lightning.commands.fit.read_command_line", lambda _: [])
    refused(run("fit", *words), 64, *said)


def test_a_value_in_the_form_of_an_option_is_none():
    check_keys(["fit", "--data.train", "a=b", "--output_dir", "x.yaml", "-c", "y.yaml"], [])


@pytest.mark.parametrize(
    "args",
    [
        ["-c", "x.yaml", "-h"],
        ["-cx.yaml", "-c=x.yaml"],
        ["--model.learning_rate", "-1e-5", "--data.first_wins", "-1", "--trainer.max_steps", "-1"],
        ["--data.chat_template", "-", "--data.columns.prompt", "- a b"],
        ["--data.columns.prompt=-x y", "--print_config"],
    ],
)
def test_what_is_an_option_or_a_value(args):
    assert not list(find_stray_words(args))
