"""Trials of a model are exact, whatever precision a user has set for products."""

import pytest
import torch
from support.model_families import make

from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.forward_checks import check_model
from dpo_lightning.models.lm_head import find_head


@pytest.fixture
def coarse_products():
    """A user's setting with which float32 products are computed in fewer bits where the hardware can."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_trials_of_a_model_are_exact_whatever_the_precision_of_products(family, coarse_products):
    model = make(family)
    check_model(model)
    assert install(model) == ""
    assert find_head(model) is not None
    assert torch.get_float32_matmul_precision() == "medium"
