"""The default search: its volumes against sampling, its beliefs against planted truths, its picks on real results."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.methods import search_space
from agentic_compression.planning import load_planner
from agentic_compression.planning.greybox import GreyboxPlanner
from agentic_compression.planning.greybox.costs import CostModel, Shares, shares_of, size_ratio
from agentic_compression.planning.greybox.damage import AccuracyCurve, Beliefs, DamageModel, _forward
from agentic_compression.planning.greybox.features import Columns, Design
from agentic_compression.planning.greybox.gain import added_volumes, expected_gain
from agentic_compression.planning.greybox.pool import Encoder, coarse, neighbours
from agentic_compression.planning.greybox.posterior import Posterior, encoder_of
from agentic_compression.planning.greybox.priors import damage_beliefs
from agentic_compression.planning.grid import StrategyGrid, canonical, tried_keys
from agentic_compression.records import (
    BASELINE,
    Constraint,
    EpisodeRecord,
    Objectives,
    RungReading,
    SearchSpace,
    Situation,
    Strategy,
)
from benchmarks.planners.replay import Replay, play
from benchmarks.planners.spaces import replay_space
from benchmarks.planners.table import DATA, Table

SPACE = replay_space()
SHARES = Shares(mlp=0.55, attention=0.25, stored_bits=16.0)


@cache
def demo_table() -> Table:
    return Table.read(DATA / "demo.json")


def record(
    label: str, episode: int, accuracy: float, cost: float, kl: float | None = None, status: str = "succeeded"
) -> EpisodeRecord:
    strategy = canonical(SPACE, Strategy.parse(label))
    if status != "succeeded":
        return EpisodeRecord.model_validate(
            {"study": "s", "episode": episode, "strategy": strategy, "status": status, "error": "no"}
        )
    readings: tuple[RungReading, ...] = ()
    if kl is not None:
        readings = (RungReading(rung=1, quantity="kl", value=kl, low=kl, high=kl, n=9, passed=True),)
    objectives = Objectives(accuracy=accuracy, latency_ms=cost, memory_gb=cost, model_size_gb=cost, co2_grams=cost)
    return EpisodeRecord(
        study="s", episode=episode, strategy=strategy, status="succeeded", objectives=objectives, screening=readings
    )


# ---------------------------------------------------------------------------------------------------------------- gain


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_the_expected_gain_is_the_mean_of_sampled_gains(seed: int, count: int) -> None:
    """Against the definition: draw losses, add the point, take the difference of two hypervolumes."""
    draw = np.random.default_rng(seed)
    members, costs = draw.random((count, 5)), draw.random((2, 4))
    quantiles = np.sort(draw.random((2, 9)), axis=1) * 0.8
    found = expected_gain(members, costs, quantiles, scatter=0.02)
    reference = np.ones(5)
    before = float(moocore.hypervolume(members, ref=reference)) if count else 0.0
    for row in range(2):
        sampled = []
        for _ in range(400):
            loss = max(0.0, draw.choice(quantiles[row]) + 0.02 * draw.standard_normal())
            points = np.vstack([members, [[loss, *costs[row]]]])
            sampled.append(float(moocore.hypervolume(points[(points < 1).all(axis=1)], ref=reference)) - before)
        error = float(np.std(sampled)) / math.sqrt(len(sampled))
        assert found[row] == pytest.approx(float(np.mean(sampled)), abs=4.5 * error + 2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_bounding_changes_none_of_the_best(seed: int, best: int) -> None:
    draw = np.random.default_rng(seed)
    members, costs = draw.random((9, 5)), draw.random((30, 4))
    quantiles, weight = np.sort(draw.random((30, 9)), axis=1), draw.random(30)
    every = expected_gain(members, costs, quantiles, 0.03, weight)
    some = expected_gain(members, costs, quantiles, 0.03, weight, best=best)
    largest = np.sort(every)[::-1][:best]
    assert np.sort(some)[::-1][:best] == pytest.approx(largest)
    assert (some <= every + 1e-12).all()


def test_what_costs_more_than_the_reference_adds_nothing() -> None:
    quantiles = np.zeros((2, 9))
    found = expected_gain(np.zeros((0, 5)), np.array([[0.5, 0.5, 0.5, 1.2], [0.5] * 4]), quantiles, 1e-6)
    assert found[0] == 0.0
    assert found[1] == pytest.approx(0.5**4, rel=1e-3)


def test_volumes_fall_with_every_further_member() -> None:
    draw = np.random.default_rng(3)
    members = draw.random((8, 5))
    members = members[np.argsort(members[:, 0])]
    volumes = added_volumes(members, draw.random((20, 4)))
    assert (np.diff(volumes, axis=1) <= 1e-12).all()


# -------------------------------------------------------------------------------------------------------------- damage


def _design(labels: list[str]) -> Design:
    return Encoder(SPACE, SHARES).design([canonical(SPACE, Strategy.parse(label)) for label in labels])


def test_stages_add_their_divergences_and_the_derivative_is_right() -> None:
    design = _design(["rtn:bits=4", "drop_channels:share=0.2", "drop_channels:share=0.2 | rtn:bits=4"])
    beliefs = damage_beliefs(Columns(SPACE))
    value, slope = _forward(beliefs.mean, design)
    parts = np.exp(value)
    assert parts[2] == pytest.approx(parts[0] + parts[1], rel=2e-3)
    step = 1e-5
    for column in np.flatnonzero(np.abs(slope).sum(axis=0))[:6]:
        moved = beliefs.mean.copy()
        moved[column] += step
        numeric = (_forward(moved, design)[0] - value) / step
        assert slope[:, column] == pytest.approx(numeric, abs=1e-3)


def test_planted_damage_is_learned_and_uncertainty_shrinks() -> None:
    columns = Columns(SPACE)
    beliefs = damage_beliefs(columns)
    draw = np.random.default_rng(1)
    truth = beliefs.mean + beliefs.deviation * draw.standard_normal(len(beliefs.mean))
    strategies = list(StrategyGrid(SPACE))
    order = draw.permutation(len(strategies))
    encoder = Encoder(SPACE, SHARES)
    seen, unseen = (encoder.design([strategies[n] for n in places]) for places in (order[:60], order[60:]))
    log_kl = _forward(truth, seen)[0]
    known = DamageModel(beliefs, seen, log_kl, np.full(60, 0.05))
    blind = DamageModel(beliefs, seen.take([]), np.zeros(0), np.zeros(0))
    target = _forward(truth, unseen)[0]
    errors = [np.abs(model.predict(unseen)[0] - target) for model in (known, blind)]
    assert np.median(errors[0]) < 0.2 * np.median(errors[1])
    assert known.predict(unseen)[1].mean() < 0.6 * blind.predict(unseen)[1].mean()


def test_fewer_bits_and_more_sparsity_are_believed_to_hurt_before_anything_was_measured() -> None:
    beliefs = damage_beliefs(Columns(SPACE))
    nothing = _design(["rtn:bits=4"]).take([])
    model = DamageModel(beliefs, nothing, np.zeros(0), np.zeros(0))
    mean, _ = model.predict(
        _design(["rtn:bits=8", "rtn:bits=4", "rtn:bits=3", "wanda:sparsity=0.3", "wanda:sparsity=0.5"])
    )
    assert mean[0] < mean[1] < mean[2]
    assert mean[3] < mean[4]


def test_the_curve_is_fitted_and_falls() -> None:
    log_kl = np.log(np.array([1e-4, 1e-3, 1e-2, 0.1, 0.5, 2.0]))
    truth = 0.1 + 0.8 / (1 + (np.exp(log_kl) / 0.3) ** 1.1)
    curve = AccuracyCurve(0.9, log_kl, truth, np.full(6, 0.005))
    assert curve(log_kl) == pytest.approx(truth, abs=0.02)
    assert (np.diff(curve(np.array(np.linspace(-12, 3, 50), dtype=np.float64))) <= 1e-12).all()
    at_chance = AccuracyCurve(0.25, log_kl, np.full(6, 0.25), np.full(6, 0.005))
    assert at_chance(log_kl) == pytest.approx(np.full(6, 0.25), abs=0.03)


def test_the_divergences_of_the_recorded_table_are_predicted() -> None:
    """Half of the real results tell of the other half: the typical error is below a factor of two."""
    rows = [row for row in demo_table().rows if row.kl is not None and row.strategy != "baseline"]
    strategies = [canonical(SPACE, Strategy.parse(row.strategy)) for row in rows]
    design = Encoder(SPACE, shares_of(demo_table().header.spec)).design(strategies)
    log_kl = np.log([max(1e-6, row.kl.value) for row in rows if row.kl])
    places = np.random.default_rng(0).permutation(len(rows)).tolist()
    seen, unseen = places[: len(rows) // 2], places[len(rows) // 2 :]
    model = DamageModel(damage_beliefs(Columns(SPACE)), design.take(seen), log_kl[seen], np.full(len(seen), 0.25))
    mean, deviation = model.predict(design.take(unseen))
    error = log_kl[unseen] - mean
    assert np.median(np.abs(error)) < math.log(2)
    assert np.mean(np.abs(error) < 2.5 * deviation) > 0.85


# --------------------------------------------------------------------------------------------------------------- costs


def test_arithmetic_tells_the_recorded_sizes() -> None:
    shares = shares_of(demo_table().header.spec)
    whole = demo_table().baseline.objectives.model_size_gb
    errors = []
    for row in demo_table().rows[1:]:
        strategy = canonical(SPACE, Strategy.parse(row.strategy))
        errors.append(math.log(size_ratio(strategy, shares) / (row.objectives.model_size_gb / whole)))
    assert np.median(np.abs(errors)) < 0.06
    assert np.quantile(np.abs(errors), 0.9) < 0.25


def test_a_few_measurements_mend_what_arithmetic_gets_wrong() -> None:
    shares = shares_of(demo_table().header.spec)
    encoder = Encoder(SPACE, shares)
    rows = [row for row in demo_table().rows if row.strategy != "baseline"]
    design = encoder.design([canonical(SPACE, Strategy.parse(row.strategy)) for row in rows])
    base = demo_table().baseline.objectives
    for name, limit in (("model_size_gb", 0.03), ("memory_gb", 0.10)):
        ratios = np.array([getattr(row.objectives, name) / getattr(base, name) for row in rows])
        model = CostModel(name, encoder.columns)
        picked = list(range(0, len(rows), 6))
        model.fit(design.take(picked), ratios[picked])
        mean, deviation = model.predict(design)
        error = np.abs(mean - np.log(ratios))
        assert np.median(error) < limit, name
        assert np.mean(error < 3 * deviation) > 0.85, name


@pytest.mark.parametrize("label", ["rtn:bits=4,group_size=-1", "gptq:bits=4,group_size=-1"])
def test_a_group_that_is_a_row_costs_next_to_nothing(label: str) -> None:
    wide = search_space(1)
    strategy = canonical(wide, Strategy.parse(label))
    assert size_ratio(strategy, SHARES) == pytest.approx(0.8 * 4 / 16 + 0.2)


# ------------------------------------------------------------------------------------------------------------- planner


def test_nothing_tried_is_proposed_again_and_the_search_ends() -> None:
    tiny = SearchSpace(methods=tuple(m for m in SPACE.methods if m.name in {"rtn", "drop_channels"}), max_stages=1)
    history = [record("baseline", 0, 0.9, 1.0)]
    seen = set()
    while (proposal := GreyboxPlanner().propose(tiny, history, 0)).strategy is not None:
        assert proposal.strategy.key not in tried_keys(tiny, history)
        assert tiny.problem_with(proposal.strategy) is None
        assert set(proposal.expected) == {"accuracy", "latency_ms", "memory_gb", "model_size_gb", "co2_grams"}
        seen.add(proposal.strategy.key)
        history.append(record(proposal.strategy.label, len(history), 0.8, 0.5, kl=0.01))
    assert len(seen) == StrategyGrid(tiny).count
    assert proposal.end == "search_space_exhausted"


def test_the_same_arguments_give_the_same_proposal() -> None:
    history = [record("baseline", 0, 0.9, 1.0), record("rtn:bits=4", 1, 0.85, 0.4, kl=0.02)]
    first, second = (GreyboxPlanner().propose(SPACE, history, 3) for _ in range(2))
    assert first == second
    backwards = GreyboxPlanner().propose(SPACE, history[::-1], 3)
    assert backwards.strategy == first.strategy


def test_methods_that_fail_are_left_alone() -> None:
    history = [record("baseline", 0, 0.9, 1.0)]
    for number, kind in enumerate(("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"), start=1):
        history.append(record(f"gguf:type={kind}", number, 0, 0, status="failed"))
    proposals = GreyboxPlanner().candidates(SPACE, history, 0, limit=5)
    assert all("gguf" not in candidate.strategy.label for candidate in proposals)


def test_constraints_steer() -> None:
    history = [record("baseline", 0, 0.9, 1.0), record("rtn:bits=4", 1, 0.88, 0.4, kl=0.01)]
    free = GreyboxPlanner().candidates(SPACE, history, 0, limit=4)
    strict = Situation(constraints=(Constraint.parse("accuracy_drop<=0.005"),))
    careful = GreyboxPlanner().candidates(SPACE, history, 0, strict, limit=4)
    mean = [sum(c.expected["accuracy"][0] for c in group) / 4 for group in (free, careful)]
    assert mean[1] > mean[0]
    small = Situation(constraints=(Constraint.parse("size_ratio<=0.25"),))
    found = GreyboxPlanner().candidates(SPACE, history, 0, small, limit=4)
    assert all(candidate.expected["model_size_gb"][0] < 0.3 for candidate in found)


def test_time_that_is_short_makes_training_dear() -> None:
    wide = search_space(2)
    history = [record("baseline", 0, 0.9, 1.0)]
    hurried = GreyboxPlanner().candidates(wide, history, 0, Situation(seconds_left=60.0), limit=8)
    trains = {method.name for method in wide.methods if method.trains}
    assert not any(stage.method in trains for candidate in hurried for stage in candidate.strategy.stages)


def test_candidates_are_not_all_alike() -> None:
    history = [record("baseline", 0, 0.9, 1.0)]
    found = GreyboxPlanner().candidates(SPACE, history, 0, limit=6)
    methods = [tuple(stage.method for stage in candidate.strategy.stages) for candidate in found]
    assert len(set(methods)) >= 3


def test_a_large_space_is_searched_through_a_coarse_grid_and_neighbours() -> None:
    wide = search_space(2)
    assert StrategyGrid(coarse(wide)).count < 20_000 < StrategyGrid(wide).count
    near = list(neighbours(wide, canonical(wide, Strategy.parse("drop_channels:share=0.2 | gptq:bits=4"))))
    assert all(wide.problem_with(strategy) is None for strategy in near)
    labels = {wide.brief(strategy) for strategy in near}
    assert any("bits=3" in label for label in labels)
    assert any("gptq" in label and "drop_channels" not in label for label in labels)


def test_on_real_results_it_is_far_ahead_of_drawing_at_random() -> None:
    """The recorded demo table, three halves of its items: what is missing of the best after 20 of 313 strategies."""
    missing = {"greybox": 0.0, "random": 0.0}
    for seed in range(3):
        replay = Replay(demo_table(), seed)
        for name in missing:
            course = play(replay, load_planner(name), 20, demo_table().header.spec)
            missing[name] += (1 - course.volumes[-1]) / 3
    assert missing["greybox"] < 0.05
    assert missing["greybox"] < 0.6 * missing["random"]


def test_the_table_holds_its_whole_space() -> None:
    labels = {row.strategy for row in demo_table().rows}
    assert {strategy.label for strategy in StrategyGrid(SPACE)} | {"baseline"} == labels
    assert BASELINE.label == "baseline"


def test_beliefs_cover_every_column() -> None:
    for space in (SPACE, search_space(2)):
        beliefs: Beliefs = damage_beliefs(Columns(space))
        assert (beliefs.deviation > 0).all()
        assert np.isfinite(beliefs.mean).all()


def test_constraints_in_units_wait_for_a_baseline_in_units() -> None:
    """Before the baseline is measured, a bound of so many GB says nothing about proportions of it."""
    bound = Situation(constraints=(Constraint.parse("model_size_gb<=0.001"), Constraint.parse("latency_ms<=0.1")))
    planner = GreyboxPlanner()
    assert planner.candidates(SPACE, [], 0, bound, limit=5) == planner.candidates(SPACE, [], 0, limit=5)
    relative = Situation(constraints=(Constraint.parse("size_ratio<=0.25"),))
    first = planner.propose(SPACE, [], 0, relative)
    assert first.expected["model_size_gb"][0] < 0.27


def test_a_forecast_is_what_a_candidate_expects() -> None:
    history = [record("baseline", 0, 1.0, 1.0), record("rtn:bits=4,group_size=64", 1, 0.9, 0.4, kl=0.02)]
    planner = GreyboxPlanner()
    candidates = planner.candidates(SPACE, history, 0, limit=5)
    found = planner.forecast(SPACE, [candidate.strategy for candidate in candidates], history)
    assert list(found) == [candidate.expected for candidate in candidates]
    assert planner.forecast(SPACE, [], history) == ()


def test_every_gguf_type_on_offer_has_its_bits() -> None:
    """Types of the real method, importance-weighted ones among them, are one number to the planner and shrink."""
    method = next(method for method in search_space(1).methods if method.name == "gguf")
    types = [str(value) for value in method.parameter("type").choices]  # type: ignore[union-attr]
    assert {"IQ4_XS", "IQ2_XXS", "Q4_K_M"} <= set(types)
    sizes = {name: size_ratio(Strategy.parse(f"gguf:type={name}"), SHARES) for name in types}
    assert sizes["IQ2_XXS"] < sizes["Q2_K"] < sizes["IQ3_S"] < sizes["Q4_K_M"] < sizes["Q8_0"] < 0.6
    names = Columns(SearchSpace(methods=(method,), max_stages=1)).names
    assert "gguf.type" in names
    assert not [name for name in names if name.startswith("gguf.type=")]


def test_a_model_that_little_disturbs_is_known_by_any_method() -> None:
    """One quantizer hardly moved the model: the others are expected to move it less as well, pruning among them."""
    encoder = Encoder(SPACE, SHARES)
    seen = encoder.design([canonical(SPACE, Strategy.parse("rtn:bits=4,group_size=64"))])
    others = encoder.design(
        [canonical(SPACE, Strategy.parse(label)) for label in ("nf4", "gguf:type=Q3_K_M", "wanda:sparsity=0.5")]
    )
    beliefs = damage_beliefs(encoder.columns)
    before, _ = DamageModel(beliefs, encoder.design([]), np.zeros(0), np.zeros(0)).predict(others)
    after, _ = DamageModel(beliefs, seen, np.log([1e-4]), np.array([0.25])).predict(others)
    assert (after < before - 0.7).all()
    assert after[0] < before[0] - (before[2] - after[2])  # and quantizers by more than pruning


def test_rejected_episodes_teach_costs_and_accuracy_by_what_was_read() -> None:
    baseline = record("baseline", 0, 1.0, 1.0)
    label = "svd_llm:rank_ratio=0.7"

    def rejected(memory: float, accuracy: float) -> EpisodeRecord:
        readings = [
            RungReading(rung=1, quantity="kl", value=0.2, low=0.2, high=0.2, n=9, passed=True),
            RungReading(rung=0, quantity="memory_gb", value=memory, low=memory, high=memory, n=3, passed=True),
            RungReading(rung=2, quantity="accuracy", value=0.5, low=0, high=1, n=6, passed=True),
            RungReading(rung=2, quantity="accuracy", value=accuracy, low=accuracy, high=accuracy, n=60, passed=False),
        ]
        blank = record(label, 1, 1.0, 1.0)
        return blank.model_copy(update={"status": "rejected", "objectives": None, "screening": tuple(readings)})

    like = [canonical(SPACE, Strategy.parse("svd_llm:rank_ratio=0.9"))]
    planner = GreyboxPlanner()
    dear, cheap = (planner.forecast(SPACE, like, [baseline, rejected(memory, 0.9)])[0] for memory in (1.6, 0.4))
    assert dear["memory_gb"][0] > 1.3 * cheap["memory_gb"][0]
    assert dear["latency_ms"] == cheap["latency_ms"]
    good, bad = (planner.forecast(SPACE, like, [baseline, rejected(0.5, accuracy)])[0] for accuracy in (0.99, 0.2))
    assert good["accuracy"][0] > bad["accuracy"][0] + 0.05


def test_a_glance_that_rejected_an_episode_teaches_its_costs() -> None:
    """A floor is what was seen, lowered: what is like the rejected strategy is expected to cost what was seen."""
    baseline = record("baseline", 0, 1.0, 1.0)

    def rejected(latency: float) -> EpisodeRecord:
        floors = {"latency_floor_ms": 0.85 * latency, "co2_floor_grams": 0.85 * latency, "memory_floor_gb": 0.97}
        readings = [
            RungReading(rung=0, quantity=name, value=value, low=value, high=value, n=1, passed=False)
            for name, value in floors.items()
        ]
        blank = record("gguf:type=BF16", 1, 1.0, 1.0)
        return blank.model_copy(update={"status": "rejected", "objectives": None, "screening": tuple(readings)})

    def measured(latency: float) -> EpisodeRecord:
        costs = {"latency_ms": latency, "co2_grams": latency, "memory_gb": 1.0}
        made = record("gguf:type=BF16", 1, 1.0, 1.0)
        assert made.objectives is not None
        return made.model_copy(update={"objectives": made.objectives.model_copy(update=costs)})

    like = [canonical(SPACE, Strategy.parse("gguf:type=F16"))]
    planner = GreyboxPlanner()
    for latency in (0.2, 5.0):
        glanced, known = (
            planner.forecast(SPACE, like, [baseline, episode])[0] for episode in (rejected(latency), measured(latency))
        )
        for name in ("latency_ms", "co2_grams", "memory_gb"):
            assert glanced[name] == pytest.approx(known[name]), name


def test_gguf_multiplies_layers_of_low_rank_out() -> None:
    plain, thin = (Strategy.parse(label) for label in ("gguf:type=Q4_K_M", "svd_llm:rank_ratio=0.7 | gguf:type=Q4_K_M"))
    assert size_ratio(thin, SHARES) == size_ratio(plain, SHARES)
    assert size_ratio(Strategy.parse("svd_llm:rank_ratio=0.7"), SHARES) == pytest.approx(0.7 * 0.8 + 0.2)


def test_what_is_not_known_of_a_cost_is_worth_trying() -> None:
    """Two strategies that are expected to cost the same: the one whose speed is in doubt may turn out faster."""
    history = [record("baseline", 0, 1.0, 1.0), record("rtn:bits=4,group_size=64", 1, 0.99, 0.5, kl=0.002)]
    encoder = encoder_of(SPACE, Situation())
    pool = [canonical(SPACE, Strategy.parse(label)) for label in ("gguf:type=Q4_K_M", "rtn:bits=8,group_size=64")]
    beliefs = Posterior(encoder, history, Situation())
    forecast = beliefs.forecast(encoder.design(pool))
    plain = dataclasses.replace(
        forecast,
        costs={name: np.full(2, 0.4) for name in forecast.costs},
        losses=np.full_like(forecast.losses, 0.01),
        spread={name: np.array([1.0, model.noise]) for name, model in beliefs.costs.items()},
    )
    doubtful, known = beliefs.gains(plain, pool, np.ones(2), best=2)
    assert doubtful > 1.02 * known
