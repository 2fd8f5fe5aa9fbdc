"""Words that are no options: what begins with one dash, what lacks dashes, and files without their flag."""

import pytest
from support.command_line import refused, run

from dpo_lightning.config.files import config_paths
from dpo_lightning.config.key_check import check_keys
from dpo_lightning.config.stray_words import find_stray_words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["configs/dpo.yaml"],
            ("dpo.yaml is neither an option nor the value of one", "write --config configs/dpo.yaml"),
        ),
        (["trainer.max_epochs=3"], ("trainer.max_epochs=3 is neither an option", "write --trainer.max_epochs 3")),
        (["model_name_or_path=x", "lr=1"], ("model_name_or_path=x", "--model.policy.path", "--model.learning_rate")),
        (["-lr", "1e-5"], ("the option -lr does not exist", "write --model.learning_rate\n")),
        (["-model.learning_rate=1"], ("the option -model.learning_rate=1 does not", "write --model.learning_rate 1")),
        (["-c", "x.yaml", "y.yaml"], ("y.yaml is neither an option", "write --config y.yaml")),
        (["y.yaml", "--config=x.yaml"], ("y.yaml is neither an option", "write --config y.yaml")),
        (["--data.train", "a.yaml", "b.yaml"], ("b.yaml is neither an option", "write --data.train '[a.yaml,b.yaml]'")),
        (["--data.train", "a", "b", "b"], ("b is neither an option", "write --data.train '[a,b,b]'")),
        (["-config", "x.yaml"], ("the option -config does not exist", "write --config x.yaml")),
        (["-ckpt_path=x.ckpt"], ("the option -ckpt_path=x.ckpt does not exist", "write --ckpt_path x.ckpt")),
        (["--data.eval=a", "b", "c"], ("b is neither an option", "write --data.eval '[a,b,c]'")),
        (["--data.train", *"abcdefg"], ("b is neither an option", "--data.train '[a,b,c,d,e,...]'")),
        (["--fresh", "lr=1"], ("lr=1 is neither an option", "write --model.learning_rate")),
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


def test_only_the_short_flag_has_its_file_attached():
    """`-config` is `--config` with one dash, and no file `onfig`."""
    args = ["-cx.yaml", "-config", "a", "-c=y.yaml", "-config=b", "-ckpt_path", "c", "-config.yaml", "-c", "z"]
    assert config_paths(args) == ["x.yaml", "y.yaml", "onfig.yaml", "z"]
