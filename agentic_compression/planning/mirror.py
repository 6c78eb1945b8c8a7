"""An Optuna study that mirrors the recorded history, in memory or in a journal file.

MLflow holds the truth; the journal is derived from it. Before every question to a sampler the mirror is brought up to
date: recorded episodes it lacks are added (``tell`` where the strategy was asked for here, ``add_trial`` otherwise),
trials that were asked for and never recorded are failed, and a journal that contradicts the history, that cannot be
read or that an earlier form of this module wrote is made again. A process killed at any point therefore changes nothing
but what the next one has to add. The file can be opened with optuna-dashboard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentic_compression.pareto import NAMES
from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.grid import canonical
from agentic_compression.planning.reward import (
    assumed,
    baseline_objectives,
    judged_on,
    known_values,
    violation,
)
from agentic_compression.records import Constraint, EpisodeRecord, Objectives, Strategy, content_digest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["CARRIED_OUT", "DIRECTIONS", "OptunaMirror", "Told", "quiet_optuna", "told_of"]

DIRECTIONS = tuple("maximize" if name == "accuracy" else "minimize" for name in NAMES)
"""Of the five objectives, in the order of ``pareto.NAMES``."""

CARRIED_OUT = "carried_out"
"""The constraint that every study has: 0 for a measured episode, above 0 for one that was rejected or failed."""

_REJECTED = 0.5
_FORM = "objectives5"  # what studies in the journal are called first; another form is another word
_TOLD = "episode_of_trial"  # study attribute: number of a trial that was asked for here to the episode it became

_log = logging.getLogger(__name__)


class Told(NamedTuple):
    """What Optuna is told of an episode.

    Args:
        values: the five objectives, in the order of ``pareto.NAMES`` and in their own units.
        constraints: by name; above 0 is violated.
    """

    values: tuple[float, ...]
    constraints: dict[str, float]


def told_of(record: EpisodeRecord, baseline: Objectives | None, constraints: Sequence[Constraint] = ()) -> Told | None:
    """An episode as a trial, or None for one that must be told as failed, which teaches a sampler nothing.

    A measured episode has its objectives and how far it breaks each of the study's constraints. A failed one (out of
    memory, out of time, not to be carried out) stands at the reference point and breaks ``CARRIED_OUT`` by more than a
    measured one can break all constraints together, so that samplers keep away from what is like it. A rejected one is
    censored: it has the values that its rungs read, the reference point's where they read none, and breaks
    ``CARRIED_OUT`` by a half. Without a measured baseline there is no reference point, and both are told as failed.

    Args:
        record: of a compressed episode.
        baseline: the measured baseline.
        constraints: of the study; they are left aside without a baseline.
    """
    known = known_values(record)
    measured = len(known) == len(NAMES) and record.status == "succeeded"
    if baseline is None:
        if not measured:
            return None
        return Told(tuple(known[name] for name in NAMES), {CARRIED_OUT: 0.0} | {str(item): 0.0 for item in constraints})
    objectives = assumed(record, baseline)
    carried = 0.0 if measured else _REJECTED if record.status == "rejected" else 1.0 + len(constraints)
    broken = {
        str(item): violation(item, objectives, baseline) if judged_on(item) in known else 0.0 for item in constraints
    }
    return Told(tuple(float(getattr(objectives, name)) for name in NAMES), {CARRIED_OUT: carried} | broken)


class OptunaMirror:
    """The mirror of one study for one encoding.

    Args:
        encoding: how strategies become Optuna parameters.
        path: the journal file, created when missing; in memory when None.
        constraints: of the study. Another space, encoding or set of constraints is another Optuna study in the same
            file.
    """

    def __init__(self, encoding: Encoding, path: Path | None = None, constraints: Sequence[Constraint] = ()) -> None:
        self._encoding, self._path, self._constraints = encoding, path, tuple(constraints)
        self._baseline: Objectives | None = None
        bounds = [str(item) for item in self._constraints]
        digest = content_digest([encoding.conditional, encoding.space.model_dump(mode="json"), bounds])
        self._name = f"{_FORM}-{'conditional' if encoding.conditional else 'flat'}-{digest}"

    def recorded(self, history: Sequence[EpisodeRecord]) -> list[FrozenTrial]:
        """Bring the mirror up to date and read the recorded episodes back.

        Args:
            history: everything recorded, the baseline included, in any order.

        Returns:
            One finished trial for each episode that this space can express, by rising episode number.
        """
        self._baseline = baseline_objectives(history)
        wanted = {record.episode: record for record in history if not record.strategy.is_baseline}
        with self._exclusive():
            try:
                return self._synchronise(wanted)
            except (ValueError, KeyError, TypeError, RuntimeError) as problem:  # torn or foreign journal
                if self._path is None:
                    raise
                _log.warning("planner journal %s is unreadable (%s); making it again", self._path, problem)
                self._path.unlink(missing_ok=True)
                return self._synchronise(wanted)

    def asked(self, strategy: Strategy) -> None:
        """Note that a strategy was proposed and is about to run."""
        import optuna

        encoded = self._encoding.encode(strategy)
        if self._path is not None and encoded is not None:
            trial = optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=encoded[0],
                distributions=encoded[1],
                user_attrs={"strategy": strategy.label, "key": strategy.key},
            )
            with self._exclusive():
                self._open().add_trial(trial)

    def _exclusive(self) -> AbstractContextManager[object]:
        """One process at a time: overlapping runs of a study share the journal."""
        from filelock import FileLock

        if self._path is None:
            return nullcontext()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._path.with_name(self._path.name + ".sync.lock"), timeout=60)

    def _open(self) -> Study:
        import optuna

        storage = None
        if self._path is not None:
            backend = optuna.storages.journal.JournalFileBackend(str(self._path), lock_obj=_JournalLock(self._path))
            storage = optuna.storages.JournalStorage(backend)
            if any(not name.startswith(f"{_FORM}-") for name in optuna.get_all_study_names(storage)):
                raise ValueError("it has studies of an earlier form")
        return optuna.create_study(
            storage=storage, study_name=self._name, directions=list(DIRECTIONS), load_if_exists=True
        )

    def _synchronise(self, wanted: dict[int, EpisodeRecord]) -> list[FrozenTrial]:
        study = self._open()
        held = _finished(study)
        if any(self._contradicts(held[episode], wanted[episode]) for episode in held.keys() & wanted.keys()):
            _log.warning("planner journal %s contradicts the history; making it again", self._path)
            assert self._path is not None
            self._path.unlink(missing_ok=True)
            study = self._open()
            held = _finished(study)
        running = {
            trial.user_attrs.get("key"): trial.number
            for trial in study.get_trials(deepcopy=False)
            if not trial.state.is_finished()
        }
        for episode, record in sorted(wanted.items()):
            if episode not in held:
                self._add(study, record, running)
        for number in running.values():  # asked for and never recorded: its process died, or is still at work
            study.tell(number, state=_failed())
        trials = _finished(study)
        return [trials[episode] for episode in sorted(trials.keys() & wanted.keys())]

    def _add(self, study: Study, record: EpisodeRecord, running: dict[Any, int]) -> None:
        import optuna

        encoded = self._encoding.encode(record.strategy)
        if encoded is None:
            return
        strategy, told = canonical(self._encoding.space, record.strategy), self._told(record)
        state = optuna.trial.TrialState.COMPLETE if told else _failed()
        number = running.pop(strategy.key, None)
        if number is not None:
            known = study.user_attrs.get(_TOLD, {})
            study.set_user_attr(_TOLD, {**known, str(number): record.episode})
            if told:
                _constrain(study, number, told.constraints)
            study.tell(number, values=told.values if told else None, state=state)
            return
        params, distributions = encoded
        attributes = {"strategy": strategy.label, "key": strategy.key, "episode": record.episode}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=told.values if told else None,
                params=params,
                distributions=distributions,
                user_attrs=attributes,
                constraints=told.constraints if told else None,
            )
        )

    def _told(self, record: EpisodeRecord) -> Told | None:
        return told_of(record, self._baseline, self._constraints)

    def _contradicts(self, trial: FrozenTrial, record: EpisodeRecord) -> bool:
        encoded = self._encoding.encode(record.strategy)
        if encoded is None:
            return True
        held = Told(tuple(trial.values), trial.constraints) if trial.values is not None else None
        key = canonical(self._encoding.space, record.strategy).key
        return trial.params != encoded[0] or held != self._told(record) or trial.user_attrs.get("key") != key


def _constrain(study: Study, number: int, constraints: dict[str, float]) -> None:
    """Set the constraints of a running trial, those that a killed process had set already excepted.

    Raises:
        ValueError: when it had set other ones.
    """
    from optuna.trial import Trial

    frozen = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    held = frozen.constraints
    if any(constraints.get(name) != value for name, value in held.items()):
        raise ValueError(f"trial {number} was told other constraints")
    trial = Trial(study, frozen._trial_id)  # its number alone does not open it
    for name, value in constraints.items():
        if name not in held:
            trial.set_constraint(name, value)


def _finished(study: Study) -> dict[int, FrozenTrial]:
    """The trials that stand for recorded episodes, by episode."""
    told = study.user_attrs.get(_TOLD, {})
    finished: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        episode = trial.user_attrs.get("episode", told.get(str(trial.number)))
        if episode is not None and trial.state.is_finished():
            finished.setdefault(int(episode), trial)
    return finished


class _JournalLock:
    """A lock the operating system lets go of when its process is killed (Optuna's own waits 30 seconds then)."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(path.with_name(path.name + ".lock"))

    def acquire(self) -> bool:
        self._lock.acquire(timeout=60)
        return True

    def release(self) -> None:
        self._lock.release()


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna without its log lines of every study and trial, and without its notes on experimental options."""
    import warnings

    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL
