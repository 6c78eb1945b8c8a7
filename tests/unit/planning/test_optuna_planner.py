"""What becomes of a sampler that suggests what was tried already."""

from __future__ import annotations

from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler

from agentic_compression.planning import StrategyGrid, canonical, tried_keys
from agentic_compression.planning.moves import parameter_moves
from agentic_compression.planning.optuna_planner import OptunaPlanner, _Search
from agentic_compression.records import BASELINE, EpisodeRecord, Proposal, Strategy
from tests.unit.planning.spaces import SPACE, record

STUCK = canonical(SPACE, Strategy.parse("gptq:bits=4,group_size=64"))


def _stuck(seed: int) -> BaseSampler:
    """Suggests ``STUCK`` every time; ordered values are suggested by their place in the list."""
    fixed = {"stage1": "gptq", "gptq.bits": 2, "gptq.group_size": 1, "gptq.order": "natural"}
    return PartialFixedSampler(fixed, RandomSampler(seed))


def _propose(history: list[EpisodeRecord], seed: int = 0) -> Proposal:
    search = _Search("tpe", _stuck, True, 5, attempts=3, replay=False, merged=False, idea="by a fixed idea")
    return OptunaPlanner(search).propose(SPACE, history, seed)


def _history(*more: Strategy) -> list[EpisodeRecord]:
    others = [strategy for strategy in StrategyGrid(SPACE) if "gptq" not in strategy.label][:6]
    return [record(number, strategy) for number, strategy in enumerate([BASELINE, *others, *more])]


def test_an_untried_suggestion_is_taken_as_it_is() -> None:
    proposal = _propose(_history())
    assert proposal.strategy == STUCK
    assert proposal.rationale == "tpe: judged from 6 results, by a fixed idea"


def test_a_tried_suggestion_leads_to_a_neighbour_that_is_still_judged_from_the_results() -> None:
    history = _history(STUCK)
    neighbours = {move.key for move in parameter_moves(SPACE, STUCK)}
    proposals = [_propose(history, seed) for seed in range(20)]
    found = {proposal.strategy.key for proposal in proposals if proposal.strategy}
    assert found <= neighbours
    assert len(found) > 1  # the seed draws one of them
    assert proposals[0] == _propose(history, 0)
    for proposal in proposals:
        assert "judged from 7 results" in proposal.rationale
        assert "its 3 suggestions had all been tried: the nearest untried to gptq" in proposal.rationale


def test_steps_are_added_while_the_neighbours_are_tried_and_chance_comes_last() -> None:
    bits, groups, orders = (2, 3, 4, 8), (32, 64, 128), ("natural", "activation")
    history, order = _history(STUCK), []
    while "drawn at random" not in (proposal := _propose(history)).rationale:
        assert proposal.strategy is not None
        values = proposal.strategy.stages[0].parameters
        steps = abs(bits.index(values["bits"]) - 2) + abs(groups.index(values["group_size"]) - 1)  # type: ignore[arg-type]
        order.append(steps + orders.index(values["order"]))  # type: ignore[arg-type]
        history.append(record(len(history), proposal.strategy))
    assert order == sorted(order)
    assert len(order) == len(bits) * len(groups) * len(orders) - 1  # all settings of the method but the first
    assert "all beside them" in proposal.rationale
    assert proposal.strategy is not None
    assert proposal.strategy.key not in tried_keys(SPACE, history)


def test_a_study_too_short_to_learn_from_says_so() -> None:
    proposal = _propose([record(0, BASELINE), record(1, STUCK)])
    assert proposal.rationale.startswith("tpe: drawn at random, 1 results are too few")
    assert "the nearest untried" in proposal.rationale
