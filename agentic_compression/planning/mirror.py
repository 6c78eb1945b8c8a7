"""An Optuna study that mirrors the recorded history, in memory or in a journal file.

MLflow holds the truth; the journal is derived from it. Before every question to a sampler the mirror is brought up to
date: recorded episodes it lacks are added (``tell`` where the strategy was asked for here, ``add_trial`` otherwise),
trials that were asked for and never recorded are failed, and a journal that contradicts the history or cannot be read
is made again. A process killed at any point therefore changes nothing but what the next one has to add. The file can
be opened with optuna-dashboard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.grid import canonical
from agentic_compression.records import EpisodeRecord, Strategy, content_digest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["DIRECTIONS", "OptunaMirror", "quiet_optuna", "result_of"]

DIRECTIONS = ("maximize", "minimize")  # accuracy, model_size_gb: the reproducible objectives

_TOLD = "episode_of_trial"  # study attribute: number of a trial that was asked for here to the episode it became

_log = logging.getLogger(__name__)


def result_of(record: EpisodeRecord) -> tuple[float, float] | None:
    """Accuracy on the search items and size; None for an episode that is told as failed.

    Of a rejected episode the accuracy of the items it was asked counts, and its size: an observed point. One that was
    rejected before any item was asked (too costly, too far from the baseline) is told as failed.
    """
    if record.status == "rejected":
        accuracy = [reading.value for reading in record.screening if reading.quantity == "accuracy"]
        size = [reading.value for reading in record.screening if reading.quantity == "model_size_gb"]
        return (accuracy[-1], size[-1]) if accuracy and size else None
    if record.status != "succeeded" or record.objectives is None:
        return None
    return record.objectives.accuracy, record.objectives.model_size_gb


class OptunaMirror:
    """The mirror of one study for one encoding.

    Args:
        encoding: how strategies become Optuna parameters; another space or encoding is another Optuna study in the
            same file.
        path: the journal file, created when missing; in memory when None.
    """

    def __init__(self, encoding: Encoding, path: Path | None = None) -> None:
        self._encoding, self._path = encoding, path
        digest = content_digest([encoding.conditional, encoding.space.model_dump(mode="json")])
        self._name = f"{'conditional' if encoding.conditional else 'flat'}-{digest}"

    def recorded(self, history: Sequence[EpisodeRecord]) -> list[FrozenTrial]:
        """Bring the mirror up to date and read the recorded episodes back.

        Args:
            history: compressed episodes by rising number.

        Returns:
            One finished trial for each episode that this space can express, by rising episode number.
        """
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
        strategy, result = canonical(self._encoding.space, record.strategy), result_of(record)
        state = optuna.trial.TrialState.COMPLETE if result else _failed()
        number = running.pop(strategy.key, None)
        if number is not None:
            told = study.user_attrs.get(_TOLD, {})
            study.set_user_attr(_TOLD, {**told, str(number): record.episode})
            study.tell(number, values=result, state=state)
            return
        params, distributions = encoded
        attributes = {"strategy": strategy.label, "key": strategy.key, "episode": record.episode}
        study.add_trial(
            optuna.trial.create_trial(
                state=state, values=result, params=params, distributions=distributions, user_attrs=attributes
            )
        )

    def _contradicts(self, trial: FrozenTrial, record: EpisodeRecord) -> bool:
        encoded = self._encoding.encode(record.strategy)
        if encoded is None:
            return True
        values = tuple(trial.values) if trial.values is not None else None
        key = canonical(self._encoding.space, record.strategy).key
        return trial.params != encoded[0] or values != result_of(record) or trial.user_attrs.get("key") != key


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
