"""Conformance of every registered planner, and of the order in which a study is filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.errors import ConfigurationError, UnavailableError
from agentic_compression.planning import (
    PLANNER_FACTORIES,
    StrategyGrid,
    canonical,
    load_planner,
    propose_episode,
    seed_strategies,
    select_planner,
    tried_keys,
)
from agentic_compression.records import BASELINE, EpisodeRecord, SearchSpace, Strategy
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
    strategies = [BASELINE, *(strategy for strategy, _ in seed_strategies(space))]
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


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
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
    history = [record(0, BASELINE, "failed")]
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
    assert sources == ["baseline", *["seed"] * seeds, *["tpe"] * (9 - seeds)]


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
    assert planner.name == "tpe"
    assert "OPENAI_API_KEY" in note
    assert "\n" not in note


@pytest.mark.parametrize("name", ["llm", "hybrid"])
def test_language_model_planner_without_a_key_is_a_usage_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY environment variable not set") as caught:
        select_planner(name, has_api_key=False)
    assert caught.value.exit_code == 2
    assert "export OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize(("name", "key"), [("bandit", True), ("bandit", False), ("pbt", False)])
def test_planner_not_built_yet_names_one_that_is(name: str, key: bool) -> None:
    with pytest.raises(UnavailableError, match=r"not built yet in this version; use --planner tpe"):
        select_planner(name, has_api_key=key)


def test_unknown_planner_suggests_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'random'"):
        select_planner("randon", has_api_key=False)
