"""Two sources and the share that their results earn."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.planning import tried_keys
from agentic_compression.planning.hybrid import HybridPlanner
from agentic_compression.planning.llm.candidates import OneCandidate
from agentic_compression.planning.llm.review import HYBRID_LLM, HYBRID_OPTIMIZER
from agentic_compression.planning.llm.shares import _probability_of_more, standing
from agentic_compression.planning.random_planner import RandomPlanner
from agentic_compression.records import BASELINE, EpisodeRecord, Objectives, Proposal, Strategy
from agentic_compression.testing.language_model import Response, answer, decision, scripted_model
from tests.unit.planning.llm_studies import ListedOptimizer, endpoint, history
from tests.unit.planning.llm_studies import settings as settings_of
from tests.unit.planning.spaces import SPACE, record

OWN = decision("quantization", stages=[{"method": "gptq", "parameters": {"bits": 3, "group_size": 32}}])


def _study(*results: tuple[str, bool]) -> list[EpisodeRecord]:
    """A baseline, then episodes of a source that gained or not, each gain as large as the one before."""
    records = [record(0, BASELINE)]
    cost = 1.0
    for number, (source, gained) in enumerate(results, start=1):
        cost *= 0.9 if gained else 1.0
        worse = cost if gained else 1.9
        made = record(number, Strategy.parse(f"rtn:bits=4,group_size={number}"))
        objectives = Objectives(
            accuracy=0.7, latency_ms=100 * worse, memory_gb=worse, model_size_gb=worse, co2_grams=worse
        )
        records.append(made.model_copy(update={"objectives": objectives, "source": source}))
    return records


def _model_wins(rounds: int) -> list[EpisodeRecord]:
    return _study(*[(HYBRID_LLM, True), (HYBRID_OPTIMIZER, False)] * rounds)


def _model_loses(rounds: int) -> list[EpisodeRecord]:
    return _study(*[(HYBRID_LLM, False), (HYBRID_OPTIMIZER, True)] * rounds)


def test_nothing_known_is_an_even_chance_and_the_full_share() -> None:
    stands = standing([record(0, BASELINE)], 0, 0.4)
    assert stands.probability == pytest.approx(0.5)
    assert stands.share == pytest.approx(0.4)
    assert stands.asked


def test_the_share_shrinks_while_overrides_do_worse_and_stays_while_they_do_better() -> None:
    shares = [standing(_model_loses(rounds), 0, 0.5).share for rounds in range(6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.4 * shares[0]
    assert [standing(_model_wins(rounds), 0, 0.5).share for rounds in range(6)] == pytest.approx([0.5] * 6)


def test_a_share_that_is_lost_saves_the_call_and_may_come_back() -> None:
    lost = standing(_model_loses(12), 0, 0.5)
    assert not lost.asked
    assert not lost.may_override
    assert "lost its share" in lost.note
    later = _study(*[(HYBRID_LLM, False), (HYBRID_OPTIMIZER, True)] * 12, *[(HYBRID_OPTIMIZER, False)] * 40)
    assert standing(later, 0, 0.5).asked  # the optimizer has stopped gaining


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([HYBRID_LLM, HYBRID_OPTIMIZER, "seed"]), st.booleans()), max_size=12),
    st.integers(0, 2**31 - 1),
    st.floats(0, 1),
)
def test_standing_is_a_pure_function_within_its_bounds(results: list[tuple[str, bool]], seed: int, most: float) -> None:
    records = _study(*results)
    stands = standing(records, seed, most)
    assert standing(records[::-1], seed, most) == stands
    assert 0 <= stands.share <= most
    assert 0 <= stands.probability <= 1
    own = sum(source == HYBRID_LLM for source, _ in results)
    both = sum(source != "seed" for source, _ in results)
    if stands.may_override:
        assert own + 1 <= most * (both + 1) + 1e-6
    assert stands.asked or not stands.may_override


@pytest.mark.parametrize("most", [0.0, 0.25, 0.5, 1.0])
def test_overrides_never_take_more_than_the_largest_share(most: float) -> None:
    for seed in range(3):
        results: list[tuple[str, bool]] = []
        for _ in range(24):  # a model whose every override gains
            own = standing(_study(*results), seed, most).may_override
            results.append((HYBRID_LLM, True) if own else (HYBRID_OPTIMIZER, False))
        taken = sum(source == HYBRID_LLM for source, _ in results)
        assert taken <= most * 24
        assert most == 0 or taken > 0


def test_a_better_source_is_drawn_more_often() -> None:
    better = sum(standing(_model_wins(3), seed, 1.0).may_override for seed in range(200))
    worse = sum(standing(_model_loses(3), seed, 1.0).may_override for seed in range(200))
    assert better > 150
    assert worse < 50


@pytest.mark.parametrize("pair", [((1, 1), (1, 1)), ((3, 1), (1, 2)), ((1.5, 8), (4, 2.5)), ((40, 3), (2, 60))])
def test_the_probability_agrees_with_draws(pair: Any) -> None:
    first, second = pair
    draw, n = random.Random(1), 40_000
    wins = sum(draw.betavariate(*first) > draw.betavariate(*second) for _ in range(n))
    assert _probability_of_more(first, second) == pytest.approx(wins / n, abs=0.01)


def _with_share(most: float) -> Any:
    return settings_of(ACF_PLANNER_OVERRIDE_SHARE=most)


def _propose(url: str, records: list[EpisodeRecord], most: float, seed: int = 0) -> Proposal:
    return HybridPlanner(ListedOptimizer(), endpoint(url), _with_share(most)).propose(SPACE, records, seed)


def test_with_no_share_the_model_may_only_choose_among_candidates() -> None:
    with scripted_model(lambda body, n: answer(OWN if n == 0 else decision("search", candidate=3))) as server:
        proposal = _propose(server.url, history(), 0.0)
        schema = server.requests[0]["response_format"]["json_schema"]["schema"]
        assert "stages" not in schema["properties"]
        assert len(server.requests) == 2  # the override was refused, the choice taken
    assert proposal.source == HYBRID_OPTIMIZER
    assert "candidate 3 of 3" in proposal.rationale
    assert "its share is 0.00" in proposal.rationale


def test_within_its_share_the_model_may_override() -> None:
    seed = next(seed for seed in range(50) if standing(history(), seed, 1.0).may_override)
    with scripted_model(lambda body, n: answer(OWN)) as server:
        proposal = _propose(server.url, history(), 1.0, seed)
    assert proposal.source == HYBRID_LLM
    assert proposal.strategy is not None
    assert "may override" in proposal.rationale
    assert proposal.fallback == ""


def test_a_model_without_share_is_not_asked_and_that_is_no_fallback() -> None:
    with scripted_model(lambda body, n: answer(OWN)) as server:
        proposal = _propose(server.url, _model_loses(12), 0.5)
        assert server.requests == []
    assert proposal.source == HYBRID_OPTIMIZER
    assert proposal.fallback == ""
    assert "was not asked" in proposal.rationale
    assert "lost its share" in proposal.rationale


def test_one_candidate_and_no_override_leave_nothing_to_ask() -> None:
    with scripted_model(lambda body, n: answer(OWN)) as server:
        planner = HybridPlanner(OneCandidate(RandomPlanner()), endpoint(server.url), _with_share(0.0))
        proposal = planner.propose(SPACE, history(), 0)
        assert server.requests == []
    assert proposal.strategy is not None
    assert proposal.fallback == ""


def test_a_failing_model_is_a_fallback_of_the_optimizer() -> None:
    with scripted_model(lambda body, n: Response.error(401, "no")) as server:
        proposal = _propose(server.url, history(), 0.0)
    assert proposal.source == HYBRID_OPTIMIZER
    assert "401" in proposal.fallback
    assert len(proposal.calls) == 1


def test_a_whole_study_proposes_only_new_legal_strategies_of_two_sources() -> None:
    def script(body: dict[str, Any], number: int) -> Response:
        bits, group = (2, 3, 4, 8)[number % 4], (32, 64, 128)[number % 3]
        stage = {"method": "gptq", "parameters": {"bits": bits, "group_size": group, "order": "activation"}}
        return answer(decision("quantization", stages=[stage]))

    with scripted_model(script) as server:
        planner = HybridPlanner(OneCandidate(RandomPlanner()), endpoint(server.url), _with_share(0.5))
        records = history()
        for number in range(len(records), len(records) + 16):
            proposal = planner.propose(SPACE, records, 3)
            assert proposal.strategy is not None
            assert proposal.strategy.key not in tried_keys(SPACE, records)
            records.append(
                record(number, proposal.strategy).model_copy(
                    update={"source": proposal.source, "calls": proposal.calls, "fallback": proposal.fallback}
                )
            )
    sources = [item.source for item in records[-16:]]
    assert set(sources) == {HYBRID_LLM, HYBRID_OPTIMIZER}
    assert sources.count(HYBRID_LLM) <= 8
