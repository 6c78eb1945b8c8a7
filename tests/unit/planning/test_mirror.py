"""The Optuna journal: fresh, resumed, killed, torn or contradicting, the proposal is the same."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentic_compression.planning import StrategyGrid, load_planner
from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.mirror import CARRIED_OUT, DIRECTIONS, OptunaMirror, quiet_optuna, told_of
from agentic_compression.records import BASELINE, Constraint, EpisodeRecord, RungReading, Situation, Strategy
from tests.unit.planning.spaces import SPACE, fake_result, record

stored_planners = pytest.mark.parametrize("name", ["tpe", "nsga2"])


def _grow(
    name: str, path: Path | None, episodes: int, seed: int, fail: frozenset[int] = frozenset()
) -> list[EpisodeRecord]:
    """A study run to its end with one journal; a new planner object for every episode, as after a restart."""
    history = [record(0, BASELINE)]
    for episode in range(1, episodes + 1):
        proposal = load_planner(name, path).propose(SPACE, history, seed)
        assert proposal.strategy is not None
        history.append(record(episode, proposal.strategy, "oom" if episode in fail else "succeeded"))
    return history


@stored_planners
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), episodes=st.integers(5, 10), fail=st.frozensets(st.integers(1, 10), max_size=3))
def test_fresh_and_resumed_storage_propose_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, episodes: int, fail: frozenset[int]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    history = _grow(name, folder / "grown", episodes, seed, fail)
    resumed = load_planner(name, folder / "grown").propose(SPACE, history, seed)
    assert load_planner(name, folder / "fresh").propose(SPACE, history, seed) == resumed
    assert load_planner(name).propose(SPACE, history, seed) == resumed


@stored_planners
def test_proposal_that_was_never_recorded_changes_nothing(tmp_path: Path, name: str) -> None:
    history = _grow(name, tmp_path / "journal", 8, seed=0)
    expected = load_planner(name).propose(SPACE, history, seed=0)
    for _ in range(3):  # killed between ask and tell, three times
        assert load_planner(name, tmp_path / "journal").propose(SPACE, history, seed=0) == expected


@stored_planners
def test_episodes_that_another_process_recorded_out_of_order_are_mirrored(tmp_path: Path, name: str) -> None:
    history = _grow(name, None, 9, seed=0)
    path = tmp_path / "journal"
    for known in (history[:4], [*history[:4], *history[6:8]], history):
        load_planner(name, path).propose(SPACE, known, seed=0)
    shuffled = random.Random(0).sample(history, len(history))
    assert load_planner(name, path).propose(SPACE, shuffled, seed=0) == load_planner(name).propose(SPACE, history, 0)


@pytest.mark.parametrize("damage", ["torn", "foreign", "empty"])
def test_damaged_journal_is_made_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal"
    history = _grow("tpe", path, 7, seed=0)
    whole = path.read_bytes()
    path.write_bytes({"torn": whole[:-40], "foreign": b"not a journal\n{}\n", "empty": b""}[damage])
    expected = load_planner("tpe").propose(SPACE, history, seed=0)
    assert load_planner("tpe", path).propose(SPACE, history, seed=0) == expected
    assert load_planner("tpe", path).propose(SPACE, history, seed=0) == expected


def test_journal_that_contradicts_the_history_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    history = _grow("tpe", path, 7, seed=0)
    changed = [*history[:3], record(3, history[3].strategy, "failed"), *history[4:]]
    expected = load_planner("tpe").propose(SPACE, changed, seed=0)
    assert load_planner("tpe", path).propose(SPACE, changed, seed=0) == expected


_PROPOSE = """
import pickle, sys
from pathlib import Path
from agentic_compression.planning import load_planner
from tests.unit.planning.spaces import SPACE
history = pickle.loads(sys.stdin.buffer.read())
for known in range(1, len(history) + 1):
    print(load_planner("tpe", Path(sys.argv[1])).propose(SPACE, history[:known], 0).model_dump_json())
"""


def test_overlapping_processes_share_a_journal_and_agree(tmp_path: Path) -> None:
    history = _grow("tpe", None, 8, seed=0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _PROPOSE, str(tmp_path / "journal")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for number in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(history))
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate(timeout=120) for process in processes]
    expected = [load_planner("tpe").propose(SPACE, history[:known], 0).model_dump_json() for known in range(1, 10)]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err.decode()
        assert out.decode().splitlines() == expected


@pytest.mark.parametrize("form", ["two objectives", "another name"])
def test_journal_of_an_earlier_form_is_made_again_and_never_read(tmp_path: Path, form: str) -> None:
    import optuna

    path = tmp_path / "journal"
    history = _grow("tpe", None, 7, seed=0)
    with quiet_optuna():
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        older = OptunaMirror(Encoding(SPACE, conditional=True))._name.removeprefix("objectives5-")
        directions = ["maximize", "minimize"] if form == "two objectives" else list(DIRECTIONS)
        study = optuna.create_study(storage=storage, study_name=older, directions=directions)
        for item in history[1:]:
            encoded = Encoding(SPACE, conditional=True).encode(item.strategy)
            assert encoded is not None
            attributes = {"key": item.strategy.key, "episode": item.episode}
            values = [0.9] * len(directions)
            study.add_trial(
                optuna.trial.create_trial(
                    values=values, params=encoded[0], distributions=encoded[1], user_attrs=attributes
                )
            )
    expected = load_planner("tpe").propose(SPACE, history, seed=0)
    assert load_planner("tpe", path).propose(SPACE, history, seed=0) == expected
    with quiet_optuna():
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        assert all(name.startswith("objectives5-") for name in optuna.get_all_study_names(storage))
    assert load_planner("tpe", path).propose(SPACE, history, seed=0) == expected


@stored_planners
def test_other_constraints_are_another_study_in_the_same_journal(tmp_path: Path, name: str) -> None:
    path = tmp_path / "journal"
    history = _grow(name, path, 9, seed=0, fail=frozenset({3}))
    bound = Situation(constraints=(Constraint.parse("size_ratio<=0.3"), Constraint.parse("latency_ms<=40")))
    for situation in (bound, None, bound):
        expected = load_planner(name).propose(SPACE, history, 0, situation)
        assert load_planner(name, path).propose(SPACE, history, 0, situation) == expected


def test_a_trial_that_a_killed_process_half_told_is_told_to_its_end(tmp_path: Path) -> None:
    import optuna

    grid, path = StrategyGrid(SPACE), tmp_path / "journal"
    bound = [Constraint.parse("size_ratio<=0.01"), Constraint.parse("accuracy>=0.1")]
    history = [record(0, BASELINE), record(1, grid.at(20))]
    for value in (0.0, 7.0):  # what it had set: the same, then another value
        path.unlink(missing_ok=True)
        with quiet_optuna():
            mirror = OptunaMirror(Encoding(SPACE, conditional=True), path, bound)
            mirror.asked(grid.at(20))
            study = mirror._open()
            optuna.trial.Trial(study, study.trials[0]._trial_id).set_constraint(CARRIED_OUT, value)
            (trial,) = mirror.recorded(history)
            again = OptunaMirror(Encoding(SPACE, conditional=True), None, bound).recorded(history)[0]
        assert (trial.values, trial.constraints) == (again.values, again.constraints)
        assert trial.constraints[CARRIED_OUT] == 0.0


def test_what_is_told_of_an_episode_by_its_status() -> None:
    base = record(0, BASELINE).objectives
    assert base is not None
    size, accuracy = Constraint.parse("size_ratio<=0.5"), Constraint.parse("accuracy_drop<=0.1")
    strategy = StrategyGrid(SPACE).at(20)
    fine = told_of(record(1, strategy), base, [size])
    result = fake_result(strategy)
    assert fine is not None
    assert fine.values == tuple(result.model_dump().values())
    assert fine.constraints[CARRIED_OUT] == 0
    failed = told_of(record(1, strategy, "oom"), base, [size, accuracy])
    assert failed is not None
    assert failed.values == (0.0, 2 * base.latency_ms, 2 * base.memory_gb, 2 * base.model_size_gb, 2 * base.co2_grams)
    assert failed.constraints == {CARRIED_OUT: 3.0, str(size): 0.0, str(accuracy): 0.0}
    reading = RungReading(rung=2, quantity="accuracy", value=0.2, low=0, high=1, n=5, passed=False)
    cut = record(1, strategy, "rejected").model_copy(update={"screening": (reading,)})
    rejected = told_of(cut, base, [size, accuracy])
    assert rejected is not None
    assert rejected.values == (0.2, *failed.values[1:])
    assert rejected.constraints[CARRIED_OUT] == 0.5
    assert rejected.constraints[str(size)] == 0.0  # it was not read
    assert rejected.constraints[str(accuracy)] == pytest.approx(base.accuracy - 0.2 - 0.1)
    assert told_of(cut, None, [size]) is None
    assert told_of(record(1, strategy, "failed"), None) is None


def test_mirror_tells_the_asked_trial_and_fails_the_stale_one(tmp_path: Path) -> None:
    import optuna

    grid = StrategyGrid(SPACE)
    path = tmp_path / "journal"
    with quiet_optuna():
        mirror = OptunaMirror(Encoding(SPACE, conditional=True), path)
        mirror.asked(grid.at(10))
        mirror.asked(grid.at(20))
        trials = mirror.recorded([record(0, BASELINE), record(1, grid.at(20))])
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        (study,) = optuna.get_all_study_summaries(storage)
        states = [trial.state.name for trial in optuna.load_study(study_name=study.study_name, storage=storage).trials]
    assert states == ["FAIL", "COMPLETE"]
    assert [trial.number for trial in trials] == [1]


@pytest.mark.parametrize("conditional", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_encoding_round_trips_through_a_trial(conditional: bool, data: st.DataObject) -> None:
    import optuna

    grid, encoding = StrategyGrid(SPACE), Encoding(SPACE, conditional)
    strategy = grid.at(data.draw(st.integers(0, grid.count - 1)))
    encoded = encoding.encode(strategy)
    assert encoded is not None
    trial = optuna.trial.FixedTrial(encoded[0])
    assert encoding.suggest(trial).key == strategy.key  # type: ignore[arg-type]


@pytest.mark.parametrize("conditional", [True, False])
def test_encoding_refuses_what_the_space_cannot_express(conditional: bool) -> None:
    encoding = Encoding(SPACE, conditional)
    for text in ("baseline", "awq:bits=4", "gone:x=1", "gptq:bits=4 | magnitude:sparsity=0.3"):
        assert encoding.encode(Strategy.parse(text)) is None
    off_grid = encoding.encode(Strategy.parse("magnitude:sparsity=0.34"))
    assert off_grid is not None
    assert off_grid[0]["magnitude.sparsity"] == 2  # 0.3, the nearest
