"""Population based training: what a history leaves in the population, whom a child is made from, how far it is."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.planning import StrategyGrid, canonical, load_planner, tried_keys
from agentic_compression.planning.moves import parameter_moves, sequence_of, stage_moves
from agentic_compression.planning.pbt import PLACES, Member, PbtPlanner, _exploit, population
from agentic_compression.planning.reward import present_rewards
from agentic_compression.records import BASELINE, EpisodeRecord, EpisodeStatus, SearchSpace, Strategy
from tests.unit.planning.spaces import SPACE, record

GRID = StrategyGrid(SPACE)
STATUSES: tuple[EpisodeStatus, ...] = ("succeeded", "succeeded", "failed", "rejected")


def _history(indices: list[int], statuses: list[EpisodeStatus]) -> list[EpisodeRecord]:
    pairs = zip(indices, statuses, strict=False)
    return [record(0, BASELINE), *(record(n, GRID.at(i), status) for n, (i, status) in enumerate(pairs, start=1))]


HISTORIES = st.builds(
    _history,
    st.lists(st.integers(0, GRID.count - 1), min_size=0, max_size=30, unique=True),
    st.lists(st.sampled_from(STATUSES), min_size=30, max_size=30),
)


@settings(deadline=None, max_examples=50)
@given(HISTORIES, st.randoms(use_true_random=False))
def test_every_place_holds_the_fittest_of_its_line(history: list[EpisodeRecord], shuffle: random.Random) -> None:
    fitness = present_rewards(history)
    expected: dict[int, EpisodeRecord] = {}
    for item in history[1:]:
        place = (item.episode - 1) % PLACES
        if item.status == "succeeded":
            held = expected.get(place)
            if held is None or fitness[item.episode] >= fitness[held.episode]:
                expected[place] = item
    members = population(SPACE, history)
    assert {member.place: member.episode for member in members} == {p: item.episode for p, item in expected.items()}
    mixed = list(history)
    shuffle.shuffle(mixed)
    assert population(SPACE, mixed) == members


@settings(deadline=None, max_examples=40)
@given(HISTORIES, st.integers(0, 100))
def test_a_child_is_legal_untried_and_the_same_again(history: list[EpisodeRecord], seed: int) -> None:
    proposal = load_planner("pbt").propose(SPACE, history, seed)
    assert proposal.strategy is not None
    assert SPACE.problem_with(proposal.strategy) is None
    assert canonical(SPACE, proposal.strategy).key == proposal.strategy.key
    assert proposal.strategy.key not in tried_keys(SPACE, history)
    assert load_planner("pbt").propose(SPACE, history[::-1], seed) == proposal


def _members(*fitness: float) -> list[Member]:
    return [Member(place, place + 1, GRID.at(place), value) for place, value in enumerate(fitness)]


def test_the_bottom_quantile_copies_the_top_and_the_rest_goes_on_alone() -> None:
    members = _members(0.1, 0.9, 0.5, 0.8, 0.2, 0.6, 0.4, 0.3)
    for turn in range(PLACES):
        parents = {_exploit(members, turn, random.Random(seed))[0].place for seed in range(20)}
        assert parents == ({1, 3} if turn in {0, 4} else {turn})


def test_an_empty_place_is_filled_from_the_top() -> None:
    members = [member for member in _members(0.1, 0.9, 0.5, 0.8) if member.place != 2]
    parent, how = _exploit(members, 2, random.Random(0))
    assert parent.place == 1
    assert "was empty" in how


def test_a_failed_child_never_displaces_its_parent() -> None:
    history = _history(list(range(0, 16 * 7, 7)), ["succeeded"] * 8 + ["oom"] * 8)
    assert {member.episode for member in population(SPACE, history)} == set(range(1, 9))


def _steps(space: SearchSpace, first: Strategy, second: Strategy) -> int:
    """Distance in moves, by breadth-first search over both kinds of moves with every setting of a new stage."""
    if first.key == second.key:
        return 0
    if sequence_of(first) != sequence_of(second):
        return 1
    seen, level, count = {first.key}, [first], 0
    while level:
        count += 1
        level = [move for strategy in level for move in parameter_moves(space, strategy) if move.key not in seen]
        seen |= {move.key for move in level}
        if second.key in seen:
            return count
    raise AssertionError("not reached")


def test_children_stay_near_their_parents_and_both_kinds_of_change_happen() -> None:
    history = _history(list(range(0, 8 * 53, 53)), ["succeeded"] * 8)
    members = population(SPACE, history)
    same = other = 0
    for seed in range(40):
        child = PbtPlanner().propose(SPACE, history, seed).strategy
        assert child is not None
        lines = [member.strategy for member in members if sequence_of(member.strategy) == sequence_of(child)]
        near = [_steps(SPACE, parent, child) for parent in lines]
        same, other = same + (min(near, default=9) <= 2), other + (not lines)
    assert same >= 8
    assert other >= 4


@settings(deadline=None, max_examples=60)
@given(index=st.integers(0, GRID.count - 1), seed=st.integers(0, 50))
def test_moves_are_legal_distinct_and_one_step(index: int, seed: int) -> None:
    start = GRID.at(index)
    for move in parameter_moves(SPACE, start):
        assert SPACE.problem_with(move) is None
        assert sequence_of(move) == sequence_of(start)
        pairs = [
            (name, a.parameters[name], b.parameters[name])
            for a, b in zip(start.stages, move.stages, strict=True)
            for name in a.parameters
            if a.parameters[name] != b.parameters[name]
        ]
        assert len(pairs) == 1
        name, before, after = pairs[0]
        if name == "bits":
            assert abs([2, 3, 4, 8].index(int(before)) - [2, 3, 4, 8].index(int(after))) == 1
        if name in {"sparsity", "rank_ratio"}:
            assert abs(float(before) - float(after)) < 0.1 + 1e-9
        assert start.key in {back.key for back in parameter_moves(SPACE, move)}  # a step leads back
    moves = stage_moves(GRID, start, random.Random(seed))
    assert len({move.key for move in moves}) == len(moves)
    for move in moves:
        assert SPACE.problem_with(move) is None
        assert not move.is_baseline
        assert sequence_of(move) != sequence_of(start)
        assert abs(len(move.stages) - len(start.stages)) <= 1


def test_pruning_of_nothing_is_never_a_move() -> None:
    zero = SPACE.methods[2].model_copy(
        update={"parameters": (SPACE.methods[2].parameters[0].model_copy(update={"low": 0.0}),)}
    )
    space = SearchSpace(methods=(zero, SPACE.methods[0]), max_stages=2)
    pruned = canonical(space, Strategy.parse("magnitude:sparsity=0.1 | rtn:bits=4"))
    assert all(len(move.stages) == 2 for move in parameter_moves(space, pruned))


def test_a_study_improves_on_its_seeds() -> None:
    history = _history(list(range(0, 8 * 53, 53)), ["succeeded"] * 8)
    first = max(member.fitness for member in population(SPACE, history))
    assert first > 0
    while len(history) < 40:
        strategy = PbtPlanner().propose(SPACE, history, 0).strategy
        assert strategy is not None
        history.append(record(len(history), strategy))
    start = present_rewards(history)
    seeds = [start[number] for number in range(1, 9)]
    held = [member.fitness for member in population(SPACE, history)]
    assert sum(held) / len(held) > sum(seeds) / len(seeds)
