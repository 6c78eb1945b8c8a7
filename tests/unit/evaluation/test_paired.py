"""Paired statistics against brute force, scipy and simulation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.evaluation.paired import (
    PairedUnits,
    mcnemar,
    null_variance,
    paired_difference,
    sign_flip_test,
    verdict_of,
)
from agentic_compression.evaluation.paired_planning import detectable_drop, items_for, items_needed, step_of
from agentic_compression.records import Estimate
from benchmarks.noise_models import NOISE_MODELS, flipped


def items(lost: int, gained: int, n: int) -> PairedUnits:
    differences = np.zeros(n)
    differences[:lost], differences[lost : lost + gained] = -1, 1
    return PairedUnits(differences=differences, sizes=np.ones(n))


@cache
def judged(lost: int, gained: int, n: int) -> tuple[str, Estimate]:
    units = [items(lost, gained, n)]
    difference = paired_difference(units, [1.0], 0)
    return verdict_of(difference, sign_flip_test(units, [1.0], 0)), difference


@given(st.integers(0, 14), st.integers(0, 14))
def test_mcnemar_counts_all_sequences_of_fair_tosses(lost: int, gained: int) -> None:
    flips = lost + gained
    ways = sum(math.comb(flips, k) for k in range(flips + 1) if abs(2 * k - flips) >= abs(lost - gained))
    assert mcnemar(lost, gained) == pytest.approx(ways / 2**flips, rel=1e-12)


@given(st.integers(0, 3000), st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_mcnemar_equals_scipys_binomial_test(lost: int, gained: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    if lost + gained:
        expected = stats.binomtest(lost, lost + gained).pvalue
        assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_sign_flips_equal_all_sign_patterns() -> None:
    first = PairedUnits(differences=np.asarray([-1.0, -1, -1, 1, 0, 0]), sizes=np.ones(6))
    second = PairedUnits(differences=np.asarray([-7.0, -2, 3, -5, 0]), sizes=np.asarray([20.0, 10, 30, 15, 8]))
    weights = [1.0, 2.0]
    parts = np.concatenate([first.differences / 6 / 3, second.differences / 83 * 2 / 3])
    parts = parts[parts != 0]
    sums = [abs(float(np.dot(signs, parts))) for signs in itertools.product((-1, 1), repeat=len(parts))]
    exact = np.mean([value >= abs(parts.sum()) - 1e-12 for value in sums])
    assert sign_flip_test([first, second], weights, 0) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert sign_flip_test([items(2, 9, 50)], [1.0], 0) == mcnemar(2, 9)
    assert sign_flip_test([items(0, 0, 50)], [1.0], 0) == 1.0


def test_interval_is_bonetts_and_prices_with_many_items() -> None:
    lost, gained, n = 90, 60, 1500
    first, second = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = 1.959964 * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    found = paired_difference([items(lost, gained, n)], [1.0], 3)
    assert found.value == pytest.approx((gained - lost) / n)
    assert (found.low, found.high) == pytest.approx((first - second - half, first - second + half), abs=0.0007)
    assert found == paired_difference([items(lost, gained, n)], [1.0], 3)


def test_interval_without_a_flip_has_a_width() -> None:
    verdict, found = judged(0, 0, 600)
    assert verdict == "indistinguishable"
    assert found.value == 0
    assert 0.003 < found.high < 0.006  # 3 of 600: the rule of three
    assert found.high == pytest.approx(-found.low, abs=0.002)


def test_documents_are_resampled_not_tokens() -> None:
    """Every document gains or loses a fifth of its tokens as a whole: as tokens this would look certain."""
    sizes = np.full(30, 100.0)
    differences = np.where(np.arange(30) < 18, -20.0, 20.0)
    units = [PairedUnits(differences=differences, sizes=sizes)]
    found = paired_difference(units, [1.0], 0)
    assert found.n == 30
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.2 / math.sqrt(30), rel=0.15)
    assert verdict_of(found, sign_flip_test(units, [1.0], 0)) == "indistinguishable"


def test_weights_are_those_of_the_tasks() -> None:
    found = paired_difference([items(10, 0, 100), items(0, 40, 200)], [3.0, 1.0], 0)
    assert found.value == pytest.approx(0.75 * -0.1 + 0.25 * 0.2)
    with pytest.raises(ValueError, match="positive"):
        paired_difference([items(1, 0, 10)], [0.0], 0)
    with pytest.raises(ValueError, match="unit"):
        PairedUnits(differences=np.zeros(2), sizes=np.asarray([1.0, 0.0]))


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"), [(5, 0, "indistinguishable"), (6, 0, "worse"), (0, 6, "better")]
)
def test_verdict_needs_six_flips_one_way(lost: int, gained: int, verdict: str) -> None:
    assert judged(lost, gained, 600)[0] == verdict


def test_interval_holds_the_truth_with_few_flips() -> None:
    """Where the plain percentile bootstrap covers 26 to 78 % (no flip, no width)."""
    generator = np.random.default_rng(5)
    for n, discordance, drop in ((200, 0.002, 0.001), (200, 0.01, 0.005), (600, 0.01, 0.005), (600, 0.03, 0.03)):
        chances = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
        counts = Counter(map(tuple, generator.multinomial(n, chances, size=1500).tolist()))
        held = sum(
            times
            for (lost, gained, _), times in counts.items()
            if (interval := judged(lost, gained, n)[1]).low <= -drop <= interval.high
        )
        assert held / 1500 >= 0.92


@pytest.mark.parametrize(
    "name",
    [name for name in NOISE_MODELS if "answers change" in name or name in {"itself", "two tasks, weights 1 and 3"}],
)
def test_equally_good_models_are_seldom_called_worse(name: str) -> None:
    generator, draws = np.random.default_rng(11), 400
    found: Counter[str] = Counter()
    for _ in range(draws):
        tasks, weights = NOISE_MODELS[name](generator)
        if len(tasks) == 1:
            changes = tasks[0].differences
            found[judged(int((changes < 0).sum()), int((changes > 0).sum()), len(changes))[0]] += 1
        else:
            difference = paired_difference(tasks, weights, 0)
            found[verdict_of(difference, sign_flip_test(tasks, weights, 0))] += 1
    assert found["worse"] / draws <= 0.05
    assert found["better"] / draws <= 0.05


def test_a_planted_point_is_found_at_the_planned_number() -> None:
    generator, n, draws = np.random.default_rng(2), items_for(0.01, 0.05), 1000
    found: Counter[str] = Counter()
    for _ in range(draws):
        ((task,), _) = flipped(generator, n, 0.05, 0.01)
        found[judged(int((task.differences < 0).sum()), int((task.differences > 0).sum()), n)[0]] += 1
    assert found["worse"] / draws >= 0.8 - 2 * math.sqrt(0.16 / draws)
    assert found["better"] == 0


@pytest.mark.parametrize("drop", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("times", [1.0, 1.2, 2.0, 5.0, 20.0])
def test_planned_items_have_the_power_of_the_exact_test(drop: float, times: float) -> None:
    binom = pytest.importorskip("scipy.stats").binom
    discordance = drop * times
    n = items_for(drop, discordance)
    spread = 8 * math.sqrt(n * discordance) + 8
    flips = np.arange(max(0, int(n * discordance - spread)), min(n, int(n * discordance + spread)) + 1)
    critical = binom.ppf(0.025, flips, 0.5)
    critical = np.where(binom.cdf(critical, flips, 0.5) <= 0.025, critical, critical - 1)
    gained = np.where(critical >= 0, binom.cdf(critical, flips, (1 - drop / discordance) / 2), 0.0)
    power = float((binom.pmf(flips, n, discordance) * gained).sum())
    assert 0.795 <= power <= 0.96
    assert detectable_drop(n, discordance) == pytest.approx(drop, rel=0.02)


def test_planning_says_what_it_cannot_plan() -> None:
    with pytest.raises(ValueError, match="discordance"):
        items_for(0.1, 0.05)
    assert items_needed([items(4, 4, 100)], [1.0]) is None
    assert detectable_drop(2, 0.1) is None
    needed = items_needed([items(9, 6, 600)], [1.0])
    assert needed == items_for(0.005, 0.025)


def read_documents(generator: np.random.Generator, count: int, drop: float) -> PairedUnits:
    """Documents of 100 tokens that gain or lose 3 tokens, give or take."""
    return PairedUnits(differences=generator.normal(-100 * drop, 3.0, count), sizes=np.full(count, 100.0))


def test_documents_show_the_drop_that_is_said_to_show() -> None:
    """A document's tokens change a little at a time: what the steps of single items cost does not apply to them."""
    generator, draws = np.random.default_rng(8), 40
    drop = detectable_drop_of(read_documents(generator, 60, 0.0))
    assert 0.009 < drop < 0.015  # (1.96 + 0.84) x 0.03 / sqrt(60) = 0.0108
    found: Counter[str] = Counter()
    for _ in range(draws):
        units = [read_documents(generator, 60, drop)]
        found[verdict_of(paired_difference(units, [1.0], 0), sign_flip_test(units, [1.0], 0))] += 1
    assert 0.62 <= found["worse"] / draws <= 0.97


def detectable_drop_of(units: PairedUnits) -> float:
    one = [units], [1.0]
    drop = detectable_drop(len(units.sizes), null_variance(*one), step=step_of(*one))
    assert drop is not None
    return drop


def test_documents_needed_are_those_of_the_formula() -> None:
    units = read_documents(np.random.default_rng(3), 40, 0.004)
    needed = items_needed([units], [1.0])
    shares = units.differences / 100
    plain = (2.8016 * math.sqrt((shares**2).mean()) / shares.mean()) ** 2
    assert needed is not None
    assert plain <= needed <= 1.25 * plain + 20


def test_a_step_is_one_for_items_and_small_for_documents() -> None:
    assert step_of([items(3, 2, 80)], [2.0]) == pytest.approx(1)
    assert step_of([items(0, 0, 80)], [2.0]) == pytest.approx(1)
    assert step_of([PairedUnits(np.asarray([-5.0, 5, 0]), np.full(3, 50.0))], [1.0]) == pytest.approx(0.1)
    assert step_of([items(0, 0, 10), items(0, 0, 30)], [1.0, 1.0]) == pytest.approx(2)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 200)), min_size=1, max_size=30),
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=30),
    st.floats(0.1, 9),
)
@settings(max_examples=60, deadline=None)
def test_an_open_verdict_never_needs_fewer_units_than_it_had(
    documents: list[tuple[float, int]], changes: list[float], weight: float
) -> None:
    sizes = np.asarray([size for _, size in documents], dtype=float)
    read = PairedUnits(differences=np.round(sizes * [share for share, _ in documents]), sizes=sizes)
    asked = PairedUnits(differences=np.asarray(changes), sizes=np.ones(len(changes)))
    tasks, weights = [read, asked], [1.0, weight]
    difference = paired_difference(tasks, weights, 0)
    if verdict_of(difference, sign_flip_test(tasks, weights, 0)) == "indistinguishable":
        needed = items_needed(tasks, weights)
        assert needed is None or needed > difference.n


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_gives_no_verdict(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        PairedUnits(differences=np.asarray([0.0, bad]), sizes=np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        PairedUnits(differences=np.zeros(2), sizes=np.asarray([1.0, bad]))
    with pytest.raises(ValueError, match="positive"):
        paired_difference([items(1, 0, 10), items(1, 0, 10)], [1.0, bad], 0)
