"""Every loss against its formula written a second time, at random log-probabilities, lengths and options."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loss_formulas import FORMULAS
from support.loss_pairs import pairs

from dpo_lightning.losses import WeightedSum

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("kind", FORMULAS, ids=lambda kind: kind.__name__)
def test_a_formula_written_a_second_time(kind):
    """Sixty batches of up to four pairs each."""
    formula, options = FORMULAS[kind]

    @settings(max_examples=60)
    @given(pairs(), st.fixed_dictionaries(options))
    def check(p, chosen):
        losses = kind(**chosen)(p.tensors()).losses.numpy()
        counts = p.weights > 0  # what only fills up may be anything
        np.testing.assert_allclose(losses[counts], formula(p, **chosen)[counts], **EXACT)

    check()


@settings(max_examples=100)
@given(
    pairs(),
    st.lists(st.sampled_from(list(FORMULAS)), min_size=1, max_size=4),
    st.data(),
)
def test_a_mixture_is_the_sum_of_its_parts(p, kinds, data):
    """Each part with options of its own; rewards are those of the first part that compares, as they are."""
    options = [data.draw(st.fixed_dictionaries(FORMULAS[kind][1])) for kind in kinds]
    weights = data.draw(st.lists(st.floats(0.01, 3), min_size=len(kinds), max_size=len(kinds)))
    parts = [kind(**chosen) for kind, chosen in zip(kinds, options, strict=True)]
    expected = sum(w * FORMULAS[kind][0](p, **o) for w, kind, o in zip(weights, kinds, options, strict=True))
    logps = p.tensors()
    output = WeightedSum(parts, weights)(logps)
    counts = p.weights > 0
    np.testing.assert_allclose(output.losses.numpy()[counts], expected[counts], **EXACT)
    first = next((part for part in parts if type(part).__name__ != "SFTLoss"), parts[0])
    for mine, own in zip(output[1:], first(logps)[1:], strict=True):
        assert mine.equal(own)
