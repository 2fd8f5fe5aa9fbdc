"""Win rates against SciPy's sign test and simulated comparisons, and what has to hold."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from dpo_lightning.comparison.win_rates import compare_outcomes, count_needed, find_power
from dpo_lightning.intervals import score_interval

counts = st.tuples(*[st.integers(0, 30)] * 3).filter(sum)


def outcomes(wins, ties, losses):
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


@settings(max_examples=40)
@given(counts)
def test_counts_rate_and_sign_test(count):
    wins, _, losses = count
    result = compare_outcomes(outcomes(*count))
    assert (result.wins, result.ties, result.losses) == count
    assert result.rate == score_interval(outcomes(*count))
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1
    assert result.p_value == pytest.approx(expected, abs=1e-12)


def test_a_sign_test_by_hand():
    """9 of 10 decided prompts: 2 (1 + 10) / 2^10, whatever the number of ties."""
    assert compare_outcomes(outcomes(9, 25, 1)).p_value == pytest.approx(22 / 1024)


@settings(max_examples=40)
@given(counts)
def test_swapping_the_models_mirrors_every_figure(count):
    result, swapped = (dataclasses.asdict(compare_outcomes(outcomes(*c))) for c in (count, count[::-1]))
    estimate, low, high = swapped.pop("rate")
    assert (1 - estimate, 1 - high, 1 - low) == pytest.approx(result.pop("rate"), abs=1e-12)
    assert result.pop("p_value") == pytest.approx(swapped.pop("p_value"), abs=1e-12)
    swapped["wins"], swapped["losses"] = swapped["losses"], swapped["wins"]
    assert result == swapped


def test_a_model_against_itself():
    result = compare_outcomes([0.5] * 72)
    assert (result.wins, result.losses, result.rate.estimate, result.p_value, result.needed) == (0, 0, 0.5, 1, None)
    assert 0.4 < result.rate.low < 0.49
    assert 0.51 < result.rate.high < 0.6


@pytest.mark.parametrize(("decided", "share"), [(5, 0.9), (6, 0.9), (20, 0.7), (57, 0.31)])
def test_the_power_is_the_chance_of_a_small_p_value(decided, share):
    rejected = np.array([binomtest(k, decided).pvalue <= 0.05 for k in range(decided + 1)])
    chances = [binomtest(k, decided, share, alternative="less").pvalue for k in range(decided + 1)]
    assert find_power(decided, share) == pytest.approx(np.diff(chances, prepend=0) @ rejected, abs=1e-9)


@pytest.mark.parametrize("count", [(7, 0, 3), (6, 3, 4), (12, 40, 3), (20, 10, 30)])
def test_so_many_prompts_find_the_difference_in_four_of_five_comparisons(count):
    """Simulated with the shares seen; half as many do not suffice. One more loss can change the power by 5 %."""
    rng = np.random.default_rng(0)
    needed = count_needed(*count)

    def found(prompts):
        drawn = rng.multinomial(prompts, np.array(count) / sum(count), 4000)
        tables, repeats = np.unique(drawn[:, [0, 2]], axis=0, return_counts=True)
        small = [wins + losses > 0 and binomtest(wins, wins + losses).pvalue <= 0.05 for wins, losses in tables]
        return repeats @ small / 4000

    assert 0.78 < found(needed) < 0.86
    assert found(needed // 2) < 0.65


@pytest.mark.parametrize(("count", "needed"), [((9, 0, 0), 6), ((0, 0, 1), 6), ((5, 8, 5), None), ((0, 4, 0), None)])
def test_prompts_needed_by_hand(count, needed):
    """Six wins in six are the fewest with p <= 0.05: 2 / 2^6."""
    assert count_needed(*count) == needed


def test_a_small_difference_needs_many_prompts():
    """As the normal approximation has it: ((1.96 + 0.84) / 2 / (share - 0.5))^2."""
    assert count_needed(501, 0, 499) == pytest.approx((2.8016 / 2 / 0.001) ** 2, rel=0.01)


@pytest.mark.parametrize("values", [[], [0.25], [True, "1"]])
def test_other_outcomes_are_refused(values):
    with pytest.raises(ValueError, match="outcome"):
        compare_outcomes(values)
