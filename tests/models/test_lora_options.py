"""The options of a new adapter: their defaults, where their ranges end, and what its beginning asks of the base."""

import math
from dataclasses import asdict

import pytest

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM, Lora


def test_an_adapter_of_which_nothing_is_said():
    """The update is scaled by 2; peft's own defaults are a rank of 8, scaled by 1, on some layers alone."""
    assert asdict(Lora()) == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"r": 1},
        {"lora_alpha": 1},
        {"lora_dropout": 0.0},
        {"lora_dropout": 0.999},
        {"r": 2, "init_lora_weights": "orthogonal"},
        {"r": 3, "init_lora_weights": "gaussian"},
        {"use_dora": True, "init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
    ],
)
def test_what_lies_inside_of_the_ranges(options):
    assert options.items() <= asdict(Lora(**options)).items()


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"r": 0}, "r", "must be at least 1"),
        ({"r": -4}, "r", "must be at least 1"),
        ({"r": 3, "init_lora_weights": "orthogonal"}, "r", "must be even for orthogonal"),
        ({"lora_alpha": 0}, "lora_alpha", "must be greater than 0"),
        ({"lora_alpha": -1}, "lora_alpha", "must be greater than 0"),
        ({"lora_dropout": 1.0}, "lora_dropout", r"must be in \[0, 1\)"),
        ({"lora_dropout": -0.01}, "lora_dropout", r"must be in \[0, 1\)"),
        ({"lora_dropout": math.nan}, "lora_dropout", r"must be in \[0, 1\)"),
        ({"use_dora": True, "init_lora_weights": "mica"}, "use_dora", "cannot be combined with mica"),
        ({"init_lora_weights": False}, "init_lora_weights", "adds random noise"),
        ({"init_lora_weights": "pissa_niter_0"}, "init_lora_weights", "is unknown"),
        ({"init_lora_weights": "pissa_niter_"}, "init_lora_weights", "is unknown"),
        ({"init_lora_weights": "gaussians"}, "init_lora_weights", "is unknown"),
        ({"init_lora_weights": "eva"}, "init_lora_weights", "needs the rows"),
        ({"init_lora_weights": "corda"}, "init_lora_weights", "needs the rows"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights", "needs gradients"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights", "needs a quantization of its own"),
    ],
)
def test_what_lies_outside_of_them(options, name, reason):
    with pytest.raises(UserError, match=rf"{name}=.* {reason}") as told:
        Lora(**options)
    assert told.value.code == ExitCode.CONFIG
    assert f"--model.policy.lora.{name} " in told.value.fix


@pytest.mark.parametrize(
    ("start", "from_base", "takes_out", "needs_whole"),
    [
        (True, False, False, False),
        ("gaussian", False, False, False),
        ("orthogonal", False, False, True),  # peft draws it in the number type of the base
        ("mica", True, False, True),
        ("olora", True, True, True),
        ("pissa", True, True, True),
        ("pissa_niter_4", True, True, True),
    ],
)
def test_what_a_beginning_asks_of_the_base(start, from_base, takes_out, needs_whole):
    lora = Lora(init_lora_weights=start)
    assert (lora.from_base, lora.changes_base, lora.needs_full_weights) == (from_base, takes_out, needs_whole)


@pytest.mark.parametrize("text", ["q_proj", "q_proj,v_proj", "q_proj, v_proj", "q_proj|v_proj"])
def test_names_in_one_text_are_led_to_a_list(tiny_llama, text):
    """peft takes a text as a regular expression of a module's whole name."""
    listed = "q_proj,v_proj" if "v_proj" in text else "q_proj"
    with pytest.raises(UserError, match="is a regular expression") as told:
        CausalLM(str(tiny_llama), lora=Lora(target_modules=text)).build()
    assert told.value.fix == f"--model.policy.lora.target_modules '[{listed}]'"


def test_other_texts_are_told_the_layers(tiny_llama):
    with pytest.raises(UserError, match=r"the model's linear layers are down_proj, .*, v_proj"):
        CausalLM(str(tiny_llama), lora=Lora(target_modules="query_proj,q_proj")).build()
    CausalLM(str(tiny_llama), lora=Lora(target_modules=r".*\.(q_proj|v_proj)")).build()
