"""A history in memory: what MLflow's costs is measured against it, and tests of the loop need no database."""

from __future__ import annotations

from collections.abc import Mapping

from agentic_compression.records import EpisodePlan, EpisodeRecord, Evaluation, Report, Strategy, StudyConfig

__all__ = ["MemoryHistory"]


class MemoryHistory:
    """A ``History`` that forgets everything with its process."""

    def __init__(self) -> None:
        self._studies: dict[str, StudyConfig] = {}
        self._records: dict[str, dict[int, EpisodeRecord]] = {}
        self._claims: dict[str, dict[int, EpisodePlan]] = {}
        self.members: dict[str, frozenset[int]] = {}
        self.attached: dict[str, dict[str, str]] = {}

    def open_study(self, config: StudyConfig, digests: str = "") -> None:
        """Begin the study."""
        self._studies.setdefault(config.name, config)

    def exists(self, study: str) -> bool:
        """Whether it was begun."""
        return study in self._studies

    def forget(self, study: str) -> None:
        """Drop it."""
        for store in (self._studies, self._records, self._claims, self.members, self.attached):
            store.pop(study, None)

    def records(self, study: str) -> list[EpisodeRecord]:
        """By number; evaluations only for episode 0, as the durable history gives them."""
        found = self._records.get(study, {})
        return [
            found[number] if number == 0 else found[number].model_copy(update={"evaluation": None})
            for number in sorted(found)
        ]

    def evaluation(self, study: str, episode: int) -> Evaluation | None:
        """The full evaluation."""
        record = self._records.get(study, {}).get(episode)
        return record.evaluation if record else None

    def report(self, study: str, episode: int) -> Report | None:
        """Quality on the report items."""
        record = self._records.get(study, {}).get(episode)
        return record.report if record else None

    def adopt(self, study: str) -> EpisodePlan | None:
        """Take over the lowest claim left by ``abandon``."""
        claims = self._claims.get(study, {})
        for number in sorted(claims):
            if claims[number].run_id == "abandoned":
                claims[number] = claims[number].model_copy(update={"run_id": f"{study}-{number}"})
                return claims[number]
        return None

    def abandon(self, study: str) -> None:
        """Pretend that the process which claimed the open episodes is gone."""
        claims = self._claims.get(study, {})
        for number, plan in claims.items():
            claims[number] = plan.model_copy(update={"run_id": "abandoned"})

    def in_flight(self, study: str) -> list[Strategy]:
        """Claimed strategies."""
        plans = self._claims.get(study, {}).values()
        return [plan.strategy for plan in plans if plan.strategy is not None]

    def next_episode(self, study: str) -> int:
        """The lowest free number."""
        taken = {*self._records.get(study, {}), *self._claims.get(study, {})}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def claim(self, plan: EpisodePlan) -> EpisodePlan:
        """Mark as in progress."""
        claimed = plan.model_copy(update={"run_id": f"{plan.study}-{plan.episode}"})
        self._claims.setdefault(plan.study, {})[plan.episode] = claimed
        return claimed

    def record(self, record: EpisodeRecord) -> None:
        """Finish."""
        self._claims.get(record.study, {}).pop(record.episode, None)
        self._records.setdefault(record.study, {})[record.episode] = record

    def attach(self, study: str, texts: Mapping[str, str]) -> None:
        """Remember the files."""
        if 0 in self._records.get(study, {}):
            self.attached.setdefault(study, {}).update(texts)

    def mark_frontier(self, study: str, members: frozenset[int]) -> None:
        """Remember the members."""
        self.members[study] = members
