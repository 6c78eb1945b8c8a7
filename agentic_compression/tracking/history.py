"""What a study needs of its history, whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from agentic_compression.records import EpisodePlan, EpisodeRecord, Evaluation, Report, Strategy, StudyConfig

__all__ = ["History"]


class History(Protocol):
    """Recorded episodes of studies.

    An episode is *claimed* before its work begins, so that two processes never take the same number, and
    *recorded* when it is over. A claim whose process died is *adopted*: the same plan is carried out again.
    """

    def open_study(self, config: StudyConfig, digests: str = "") -> None:
        """Create the study if it is new, and keep the digests of model and data when they are given.

        Raises:
            ConfigurationError: when a study of this name exists with another model, dataset or seed,
                or model or data have changed since.
        """

    def exists(self, study: str) -> bool:
        """Whether the study was ever begun (and not forgotten)."""

    def forget(self, study: str) -> None:
        """Remove the study; nothing happens when there is none."""

    def records(self, study: str) -> list[EpisodeRecord]:
        """All recorded episodes, by number; evaluations are left out but for episode 0's, and reports' tasks."""

    def evaluation(self, study: str, episode: int) -> Evaluation | None:
        """The full evaluation of one episode, with its per-item outcomes."""

    def report(self, study: str, episode: int) -> Report | None:
        """The full quality of one episode on the report items, where they were asked."""

    def adopt(self, study: str) -> EpisodePlan | None:
        """Take over the lowest-numbered claim whose process is no longer alive, if there is one."""

    def in_flight(self, study: str) -> list[Strategy]:
        """The strategies that are claimed and not yet recorded."""

    def next_episode(self, study: str) -> int:
        """The lowest number that is neither recorded nor claimed."""

    def claim(self, plan: EpisodePlan) -> EpisodePlan:
        """Store the plan as in progress by this process; returns it with its ``run_id``."""

    def record(self, record: EpisodeRecord) -> None:
        """Store the outcome; recording the same episode again replaces it."""

    def attach(self, study: str, texts: Mapping[str, str]) -> None:
        """Keep files that tell of the whole study, by name, with its baseline; nothing happens without a baseline."""

    def mark_frontier(self, study: str, members: frozenset[int]) -> None:
        """Note on every episode whether it is on the frontier now."""
