"""Bounds that may be looked at whenever one likes, against exact recomputation and against their promise."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.evaluation.sequential import Population, lower_bound, upper_bound

LOOKS = (6, 12, 24, 48, 90)


def _population(total: int, predictor: list[int] | None = None) -> Population:
    known = (np.array(predictor, dtype=float),) if predictor else ()
    return Population(np.ones(total), known)


@pytest.mark.parametrize(("right", "agreement"), [(0.95, 0.97), (0.5, 0.8), (0.1, 0.95)])
def test_the_bound_is_rarely_ever_wrong_however_often_one_looks(right: float, agreement: float) -> None:
    draw = np.random.default_rng(1)
    total, error, misses, studies = 100, 0.1, 0, 200
    rival = (draw.random(total) < right).astype(int)
    model = np.where(draw.random(total) < agreement, rival, 1 - rival)
    for _ in range(studies):
        order = draw.permutation(total)
        population = _population(total, [int(rival[item]) for item in order])
        scores = [float(model[item]) for item in order]
        misses += any(upper_bound(population, scores[:n], error) < model.mean() - 1e-9 for n in LOOKS)
    # 200 studies at a true rate of 0.1 exceed 0.165 once in a thousand times
    assert misses / studies < 0.165


def test_pairing_tightens_the_bound_when_models_answer_alike() -> None:
    draw = np.random.default_rng(0)
    rival = (draw.random(600) < 0.6).astype(int)
    model = np.where(draw.random(600) < 0.98, rival, 1 - rival).astype(float)
    alone = upper_bound(_population(600), list(model[:120]), 0.05)
    paired = upper_bound(_population(600, list(rival)), list(model[:120]), 0.05)
    assert paired - model.mean() < 0.85 * (alone - model.mean())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=60), st.data())
def test_bounds_enclose_what_is_possible_and_end_at_the_accuracy(scores: list[float], data: st.DataObject) -> None:
    total = len(scores)
    weights = np.array(data.draw(st.lists(st.sampled_from([1.0, 3.0]), min_size=total, max_size=total)))
    population = Population(weights / weights.mean())
    n = data.draw(st.integers(0, total))
    low, high = lower_bound(population, scores[:n], 0.05), upper_bound(population, scores[:n], 0.05)
    gained = float(population.weights[:n] @ np.array(scores[:n])) / total
    most = gained + float(population.weights[n:].sum()) / total
    assert gained - 1e-9 <= high <= most + 1e-9
    assert gained - 1e-9 <= low <= high + 1e-3
    exact = float(population.weights @ np.array(scores)) / total
    assert upper_bound(population, scores, 0.05) == pytest.approx(exact)
    assert lower_bound(population, scores, 0.05) == pytest.approx(exact)


def test_the_capital_is_the_formula_of_the_paper() -> None:
    """One fraction at a time, in plain loops: the smallest refuted accuracy must lie at the bound."""
    scores = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    total, error = 40, 0.05
    bound = upper_bound(_population(total), scores, error)

    def best_capital(mean: float) -> float:
        best, seen = 0.0, 0.0
        capitals = [1.0] * 12
        for index, score in enumerate(scores):
            rest = (total * mean - seen) / (total - index)
            capitals = [
                capital * (1 + 0.98 * 0.62**step * (rest - score) / (1 - rest)) for step, capital in enumerate(capitals)
            ]
            best = max(best, math.fsum(capitals) / 12)
            seen += score
        return best

    assert best_capital(bound + 0.002) >= 1 / error > best_capital(bound - 0.002)


def test_many_items_need_little_memory() -> None:
    """All capitals at once would be 12 fractions x 3 kinds of bets x 33 accuracies x 18,000 items, 170 MB."""
    draw = np.random.default_rng(0)
    rivals = tuple((draw.random(20_000) < 0.6).astype(float) for _ in range(2))
    population = Population(np.ones(20_000), rivals)
    tracemalloc.start()
    try:
        upper_bound(population, (draw.random(18_000) < 0.6).astype(float).tolist(), 0.05)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.booleans())
def test_the_capital_is_the_mean_over_fractions_and_predictors(seed: int, total: int, perfect: bool) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.choice([1.0, 3.0], total)
    weights /= weights.mean()
    predictor = draw.random(total)
    scores = [1.0] * total if perfect else draw.choice([0.0, 0.5, 1.0], total).tolist()
    asked = int(draw.integers(1, total))
    bound = upper_bound(Population(weights, (predictor,)), scores[:asked], 0.1)

    def largest_capital(mean: float) -> float:
        streams = [
            (weights / weights.max() * scores, mean / weights.max()),
            (
                weights * (scores - predictor) / (2 * weights.max()) + 0.5,
                (mean - (weights * predictor).mean()) / (2 * weights.max()) + 0.5,
            ),
        ]
        capitals, largest = np.ones(24), 1.0
        for index in range(asked):
            for number, (seen, supposed) in enumerate(streams):
                rest = (total * supposed - seen[:index].sum()) / (total - index)
                if rest >= 1 - 1e-9 and seen[index] < rest - 1e-9:
                    return math.inf
                for step in range(12):
                    if rest < 1 - 1e-9:
                        place = 12 * number + step
                        capitals[place] *= 1 + 0.98 * 0.62**step * (rest - seen[index]) / (1 - rest)
            largest = max(largest, float(capitals.mean()))
        return largest

    width = 0.003
    possible = float(weights[:asked] @ np.array(scores[:asked]) + weights[asked:].sum()) / total
    if bound + width < possible:
        assert largest_capital(bound + width) >= 10
    if bound - width > float(weights[:asked] @ np.array(scores[:asked])) / total:
        assert largest_capital(bound - width) < 10


def test_nothing_asked_excludes_nothing() -> None:
    assert upper_bound(_population(10), [], 0.05) == 1.0
    assert lower_bound(_population(10), [], 0.05) == 0.0
