"""Conformance of every registered planner, and of the order in which a study is filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.errors import ConfigurationError
from agentic_compression.methods import search_space
from agentic_compression.planning import (
    CONSULTING_FACTORIES,
    PLANNER_FACTORIES,
    StrategyGrid,
    canonical,
    load_planner,
    propose_episode,
    seed_strategies,
    select_planner,
    tried_keys,
)
from agentic_compression.planning.reward import rewards
from agentic_compression.records import (
    BASELINE,
    PLANNERS,
    Constraint,
    EpisodeRecord,
    Objectives,
    RungReading,
    SearchSpace,
    Situation,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from tests.unit.planning.spaces import SPACE, TINY_SPACE, record

# GP proposals take seconds each, so its conformance runs with "make test"
every_planner = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "gp" else ()) for name in PLANNER_FACTORIES]
)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    get_settings.cache_clear()


def _history(space: SearchSpace, episodes: int) -> list[EpisodeRecord]:
    """The baseline, the seeds, then strategies spread over the grid."""
    grid = StrategyGrid(space)
    strategies = [BASELINE, *(strategy for strategy, _ in seed_strategies(space, limit=8))]
    taken = {strategy.key for strategy in strategies}
    while len(strategies) < episodes:
        drawn = grid.draw_untried(taken, (len(strategies),))
        assert drawn is not None
        strategies.append(drawn)
        taken.add(drawn.key)
    return [record(episode, strategy) for episode, strategy in enumerate(strategies[:episodes])]


@every_planner
def test_planner_is_deterministic_whatever_the_order_of_the_history(name: str) -> None:
    history = _history(SPACE, 12)
    first = load_planner(name).propose(SPACE, history, seed=3)
    assert load_planner(name).propose(SPACE, history[::-1], seed=3) == first


@pytest.mark.parametrize("name", ["tpe", "nsga2", "bandit", "pbt", "random"])
def test_planner_depends_on_the_seed(name: str) -> None:
    history = _history(SPACE, 12)
    assert len({load_planner(name).propose(SPACE, history, seed).strategy.label for seed in range(4)}) > 1


@every_planner
def test_planner_proposes_only_legal_untried_strategies(name: str) -> None:
    history = [record(0, BASELINE)]
    planner = load_planner(name)
    for episode in range(1, 9 if name == "gp" else 16):
        proposal = planner.propose(SPACE, history, seed=0)
        assert proposal.strategy is not None
        assert proposal.end is None
        assert SPACE.problem_with(proposal.strategy) is None
        assert canonical(SPACE, proposal.strategy).key not in tried_keys(SPACE, history)
        assert proposal.source == name
        assert proposal.rationale.startswith(name)
        history.append(record(episode, proposal.strategy))


@every_planner
def test_planner_exhausts_a_small_space_and_says_so(name: str) -> None:
    history = [record(0, BASELINE)]
    for episode in range(1, 10):
        proposal = load_planner(name).propose(TINY_SPACE, history, seed=1)
        assert proposal.strategy is not None
        history.append(record(episode, proposal.strategy))
    assert len(tried_keys(TINY_SPACE, history)) == 10
    end = load_planner(name).propose(TINY_SPACE, history, seed=1)
    assert end.strategy is None
    assert end.end == "search_space_exhausted"


@every_planner
def test_planner_goes_on_after_failures_of_every_kind(name: str) -> None:
    grid, statuses = StrategyGrid(SPACE), ("failed", "oom", "timed_out", "infeasible")
    for baseline in ("failed", "succeeded"):
        history = [record(0, BASELINE, baseline)]  # type: ignore[arg-type]
        history += [record(n + 1, grid.at(n * 17), statuses[n % 4]) for n in range(8)]
        proposal = load_planner(name).propose(SPACE, history, seed=0)
        assert proposal.strategy is not None
        assert proposal.strategy.key not in tried_keys(SPACE, history)


@every_planner
def test_planner_ignores_recorded_strategies_that_the_space_no_longer_offers(name: str) -> None:
    history = [record(0, BASELINE), record(1, Strategy.parse("awq:bits=4")), record(2, Strategy.parse("gone:x=1"))]
    assert load_planner(name).propose(SPACE, history, seed=0).strategy is not None


@every_planner
def test_planner_handles_two_hundred_episodes(name: str) -> None:
    assert load_planner(name).propose(SPACE, _history(SPACE, 200), seed=0).strategy is not None


@every_planner
def test_planner_ends_at_once_when_nothing_is_offered(name: str) -> None:
    proposal = load_planner(name).propose(SearchSpace(methods=()), [record(0, BASELINE)], seed=0)
    assert proposal.end == "search_space_exhausted"


@pytest.mark.parametrize(
    ("name", "starts", "proposals"),
    [("tpe", (0, 1), 16), ("nsga2", (0, 1), 16), ("gp", (1,), 1)],
)
def test_optuna_planners_search_the_whole_real_space(name: str, starts: tuple[int, ...], proposals: int) -> None:
    """Methods whose successors differ gave one name two sets of choices, which Optuna refuses."""
    space = search_space(2)
    grid = StrategyGrid(space)
    for start in starts:
        history = [record(0, BASELINE)]
        history += [record(n, grid.at((start * 977_651 + n * 7_919_317) % grid.count)) for n in range(1, 8 * start + 1)]
        for _ in range(proposals):
            proposal = load_planner(name).propose(space, history, seed=start)
            assert proposal.strategy is not None
            assert space.problem_with(proposal.strategy) is None
            assert proposal.strategy.key not in tried_keys(space, history)
            history.append(record(len(history), proposal.strategy))
        assert "judged from" in proposal.rationale


def _flat(cost: float = 1.0, **changes: float) -> Objectives:
    costs = dict.fromkeys(("latency_ms", "memory_gb", "model_size_gb", "co2_grams"), cost)
    return Objectives(**{"accuracy": 0.5, **costs, **changes})


def _nudged(objectives: Objectives, number: int) -> Objectives:
    """A little more accurate and dearer by number, so that no two episodes are equal or dominate one another."""
    values = {name: value * (1 + 0.001 * number) for name, value in objectives.model_dump().items()}
    return Objectives(**values)


def _by_turns(groups: list[list[Strategy]]) -> list[Strategy]:
    """One of each group, then another of each, spread over the group."""
    return [group[(turn * 5) % len(group)] for turn in range(9) for group in groups]


def _share(name: str, better: dict[str, float], status: str = "succeeded", situation: Situation | None = None) -> float:
    """Share of proposals with low rank, after a study in which only its results were any different from the rest."""
    grid = StrategyGrid(SPACE)
    by_methods: dict[tuple[str, ...], list[Strategy]] = {}  # TPE prefers whatever it never saw, so it sees everything
    for strategy in grid:
        by_methods.setdefault(tuple(stage.method for stage in strategy.stages), []).append(strategy)
    low_rank = _by_turns([found for names, found in by_methods.items() if names[0] == "svd_llm"])
    others = _by_turns([found for names, found in by_methods.items() if "svd_llm" not in names])
    history = [record(0, BASELINE).model_copy(update={"objectives": _flat()})]
    for number in range(1, 25):
        own = number % 2 == 0
        made = record(number, low_rank[number // 2] if own else others[number // 2])
        objectives = _flat(**better) if own else _flat(0.9)
        if name == "tpe":  # it takes one of equals for good and the others for bad
            objectives = _nudged(objectives, number)
        history.append(made.model_copy(update={"objectives": objectives}))
        if own and status != "succeeded":
            history[-1] = history[-1].model_copy(update={"objectives": None, "status": status})
    found = [
        load_planner(name).propose(SPACE, history, seed, situation).strategy
        for seed in range({"gp": 6, "bandit": 40}.get(name, 20))
    ]
    return sum("svd_llm" in strategy.label for strategy in found if strategy) / len(found)


@pytest.mark.parametrize("objective", list(Objectives.model_fields))
@pytest.mark.parametrize("name", ["tpe", "nsga2", "bandit", pytest.param("gp", marks=pytest.mark.slow)])
def test_every_objective_reaches_the_search(name: str, objective: str) -> None:
    good = {objective: 0.8 if objective == "accuracy" else 0.1}
    bad = {objective: 0.2 if objective == "accuracy" else 1.9}
    costs = dict.fromkeys(("latency_ms", "memory_gb", "model_size_gb", "co2_grams"), 0.9)
    assert _share(name, costs | good) > _share(name, costs | bad) + 0.1


@pytest.mark.parametrize("name", ["tpe", "nsga2", "bandit"])
def test_constraints_of_the_study_keep_a_search_away(name: str) -> None:
    better = {"accuracy": 0.4, "model_size_gb": 0.3, "latency_ms": 0.3, "memory_gb": 0.3, "co2_grams": 0.3}
    bound = Situation(constraints=(Constraint.parse("accuracy_drop<=0.03"),))
    assert _share(name, better, situation=bound) < _share(name, better) - 0.1


@pytest.mark.parametrize("status", ["oom", "rejected"])
@pytest.mark.parametrize("name", ["tpe", "nsga2", "bandit", pytest.param("gp", marks=pytest.mark.slow)])
def test_failures_keep_a_search_away_from_what_is_like_them(name: str, status: str) -> None:
    same = dict.fromkeys(("latency_ms", "memory_gb", "model_size_gb", "co2_grams"), 0.9)
    assert _share(name, same, status) < _share(name, same | {"latency_ms": 0.8}) - 0.1


def test_a_rejected_episode_teaches_by_what_was_read_of_it() -> None:
    def rejected(accuracy: float) -> list[str]:
        history = _history(SPACE, 20)
        readings = [
            RungReading(rung=2, quantity="accuracy", value=accuracy, low=0, high=1, n=9, passed=False),
            RungReading(rung=0, quantity="model_size_gb", value=0.1, low=0.1, high=0.1, n=0, passed=True),
        ]
        for number in range(6, 16):
            changes = {"status": "rejected", "objectives": None, "screening": tuple(readings)}
            history[number] = history[number].model_copy(update=changes)
        return [load_planner("pbt").propose(SPACE, history, seed).rationale for seed in range(3)] + [
            f"{value:.6f}" for value in rewards(history).values()
        ]

    assert rejected(0.1) != rejected(0.6)


def test_study_starts_with_baseline_then_seeds_then_the_planner() -> None:
    history: list[EpisodeRecord] = []
    sources = []
    for episode in range(10):
        proposal = propose_episode("auto", SPACE, history, seed=0)
        assert proposal.strategy is not None
        assert proposal.rationale
        sources.append(proposal.source)
        history.append(record(episode, proposal.strategy))
    seeds = len(seed_strategies(SPACE))
    assert sources == ["baseline", *["seed"] * seeds, *["greybox"] * (9 - seeds)]


def test_every_planner_gets_the_same_seeds() -> None:
    history = [record(0, BASELINE)]
    assert len({propose_episode(name, SPACE, history, seed=0).strategy.label for name in PLANNER_FACTORIES}) == 1


def test_strategies_in_flight_are_not_proposed_again(tmp_path: Path) -> None:
    history = _history(TINY_SPACE, 7)
    grid = StrategyGrid(TINY_SPACE)
    untried = [strategy for strategy in grid if strategy.key not in tried_keys(TINY_SPACE, history)]
    path = tmp_path / "planner.journal"
    proposal = propose_episode("tpe", TINY_SPACE, history, 0, path, in_flight=untried[1:])
    assert proposal.strategy is not None
    assert proposal.strategy.key == untried[0].key
    assert propose_episode("tpe", TINY_SPACE, history, 0, path, in_flight=untried).end == "search_space_exhausted"
    assert propose_episode("tpe", TINY_SPACE, [], 0, in_flight=[BASELINE]).source == "seed"


def test_auto_without_a_key_says_in_one_line_that_it_plans_by_search() -> None:
    planner, note = select_planner("auto", has_api_key=False)
    assert planner.propose(SPACE, _history(SPACE, 9), 0).source == "greybox"
    assert "plans by search (greybox)" in note
    assert "OPENAI_API_KEY" in note
    assert "\n" not in note


@pytest.mark.parametrize("name", ["llm", "hybrid"])
def test_language_model_planner_without_a_key_is_a_usage_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY environment variable not set") as caught:
        select_planner(name, has_api_key=False)
    assert caught.value.exit_code == 2
    assert "export OPENAI_API_KEY" in str(caught.value)


def test_every_planner_that_a_study_may_name_is_built() -> None:
    assert set(PLANNERS) == {"auto", *PLANNER_FACTORIES, *CONSULTING_FACTORIES}
    for name in PLANNERS:
        assert StudyConfig(model="demo", dataset="demo", planner=name).planner == name  # type: ignore[arg-type]
        assert load_planner(name).name == ("greybox" if name == "auto" else name)


def test_unknown_planner_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'random'"):
        select_planner("randon", has_api_key=False)
