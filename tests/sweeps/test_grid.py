"""Points of a sweep: their order, names and flags, and what cannot be swept."""

import pytest

from dpo_lightning.errors import UserError
from dpo_lightning.sweeps.grid import make_points, parse_value


def test_the_product_of_keys_and_seeds_with_the_last_varying_fastest():
    points = make_points({"model.loss.beta": ["0.1", "0.5"], "model.learning_rate": ["1e-5"]}, [1, 2])
    assert [point.name for point in points] == [
        "beta-0.1_learning_rate-1e-5_seed-1",
        "beta-0.1_learning_rate-1e-5_seed-2",
        "beta-0.5_learning_rate-1e-5_seed-1",
        "beta-0.5_learning_rate-1e-5_seed-2",
    ]
    assert points[1].overrides == {"model.loss.beta": "0.1", "model.learning_rate": "1e-5", "seed_everything": "2"}
    assert points[1].setting == points[0].setting == {"model.loss.beta": "0.1", "model.learning_rate": "1e-5"}


def test_a_class_is_named_before_its_options():
    (point,) = make_points({"model.loss.init_args.beta": ["2"], "model.loss": ["dpo_lightning.losses.SimPOLoss"]}, [])
    assert point.flags() == ["--model.loss=dpo_lightning.losses.SimPOLoss", "--model.loss.beta=2"]
    assert point.name == "beta-2_loss-SimPOLoss"


def test_classes_of_one_name_are_told_apart_by_their_modules():
    values = ["torch.optim.AdamW", "optimi.AdamW", "bitsandbytes.optim.AdamW", "RMSprop"]
    names = [point.name for point in make_points({"model.optimizer": values}, [])]
    assert names == [f"optimizer-{name}" for name in ("AdamW", *values[1:])]


def test_keys_with_the_same_end_are_told_apart_and_names_are_safe():
    (point,) = make_points({"model.policy.path": ["outputs/a b"], "model.reference.path": ["../c;d"]}, [])
    assert point.name == "policy.path-outputs-a-b_reference.path-..-c-d"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("0.10", 0.1), ("true", True), ("[1, 2]", [1, 2]), ("x", "x")]
)
def test_values_are_numbers_or_yaml(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("over", "seeds", "said"),
    [
        ({"model.loss.beta": ["0.1", "0.10"]}, [], "the value is given twice at --over model.loss.beta"),
        ({"model.loss.beta": ["0.1"]}, [3, 3], "the value is given twice at --seeds"),
        ({"output_dir": ["a", "b"]}, [], "the sweep sets this option itself at --over output_dir"),
        ({"model..beta": ["1"]}, [], "not a key of a config"),
        ({"data.train": ["a/b", "a b"]}, [], "two values have the same name"),
    ],
)
def test_what_cannot_be_swept(over, seeds, said):
    with pytest.raises(UserError) as raised:
        make_points(over, seeds)
    assert raised.value.code == 64
    assert said in str(raised.value)
