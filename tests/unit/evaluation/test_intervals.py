from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest, t

from agentic_compression.evaluation.intervals import (
    _T,
    bootstrap_median,
    bootstrap_ratio,
    mean_estimate,
    percentile,
    proportion,
    resamples,
    shares_of,
    weighted_mean,
    wilson,
)
from agentic_compression.records import Estimate


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 40), (301, 600), (599, 600)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(successes, n)


def test_wilson_covers_the_truth_in_about_95_of_100_samples() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.3, size=2000)
    covered = [low <= 0.3 <= high for low, high in (wilson(int(draw), 200) for draw in draws)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_proportion_keeps_the_value_inside_its_interval_at_the_edges() -> None:
    for outcomes in ((1, 1, 1), (0, 0, 0), (1, 0, 1)):
        estimate = proportion(outcomes)
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.n == 3


def test_t_quantiles_equal_scipy() -> None:
    assert pytest.approx([t.ppf(0.975, degrees) for degrees in range(1, 31)], abs=6e-4) == list(_T)


def test_mean_estimate_is_students_interval() -> None:
    values = [3.0, 5.0, 4.0]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    estimate = mean_estimate(values)
    assert (estimate.low, estimate.high) == pytest.approx((4 - half, 4 + half), rel=1e-3)
    assert mean_estimate([2.0]) == Estimate(value=2.0, low=2.0, high=2.0, n=1, spread=0.0)


def test_bootstrap_median_is_deterministic_and_depends_on_the_seed() -> None:
    values = list(np.random.default_rng(1).normal(10, 2, size=40))
    assert bootstrap_median(values, 5) == bootstrap_median(values, 5)
    assert bootstrap_median(values, 5) != bootstrap_median(values, 6)
    assert bootstrap_median(values, 5).value == pytest.approx(float(np.median(values)))


def test_bootstrap_median_covers_the_truth_most_of_the_time() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(150):
        estimate = bootstrap_median(list(generator.exponential(1.0, size=30)), trial)
        hits += estimate.low <= math.log(2) <= estimate.high
    assert 0.88 <= hits / 150 <= 1.0


def test_bootstrap_ratio_weighs_by_the_denominator() -> None:
    estimate = bootstrap_ratio([1.0, 8.0], [1.0, 4.0], seed=0)
    assert estimate.value == pytest.approx(9 / 5)
    assert estimate.low == pytest.approx(1.0)
    assert estimate.high == pytest.approx(2.0)
    assert bootstrap_ratio([2.0, 2.0], [1.0, 1.0], 0, np.exp).value == pytest.approx(math.exp(2))


def test_weighted_mean_keeps_a_single_interval_and_narrows_over_several() -> None:
    one = Estimate(value=0.5, low=0.4, high=0.7, n=10)
    assert weighted_mean([one], [3.0]).low == pytest.approx(0.4)
    assert weighted_mean([one], [3.0]).high == pytest.approx(0.7)
    both = weighted_mean([one, one], [1.0, 1.0])
    assert both.value == pytest.approx(0.5)
    assert both.low == pytest.approx(0.5 - 0.1 / math.sqrt(2))
    assert weighted_mean([one, Estimate(value=1, low=1, high=1, n=1)], [1, 3]).value == pytest.approx(0.875)


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [math.nan], [1.0, math.inf]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        shares_of(weights)
    with pytest.raises(ValueError, match="positive and finite"):
        weighted_mean([Estimate(value=0.5, low=0.4, high=0.7, n=10)] * len(weights), weights)


@pytest.mark.parametrize(("n", "times"), [(1, 7), (999, 5_001), (4_001, 2_000), (5_000_001, 3)])
def test_blocks_hold_the_places_of_one_large_draw(n: int, times: int) -> None:
    blocks = list(resamples(n, times, np.random.default_rng(4)))
    whole = np.random.default_rng(4).integers(0, n, size=(times, n))
    assert (np.concatenate(blocks) == whole).all()
    assert all(block.size <= max(4_000_000, n) for block in blocks)


def test_a_ratio_over_many_items_needs_little_memory() -> None:
    """2,000 resamples of 20,000 items at once would be 320 MB an array."""
    values = np.random.default_rng(0).random(20_000).tolist()
    tracemalloc.start()
    try:
        bootstrap_ratio(values, [1.0] * len(values), 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160e6


def test_percentile_interpolates() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 95) == pytest.approx(3.85)
