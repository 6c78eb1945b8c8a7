"""Studies in the middle of their search, and planners that ask a scripted model, for the tests of both."""

from __future__ import annotations

from typing import Any

from agentic_compression.planning import canonical, seed_strategies
from agentic_compression.planning.llm.decision import Rules
from agentic_compression.planning.llm.endpoint import Endpoint, Limits
from agentic_compression.planning.random_planner import RandomPlanner
from agentic_compression.records import (
    BASELINE,
    Candidate,
    EpisodeRecord,
    ModelSpec,
    Proposal,
    SearchSpace,
    Situation,
    SpecSource,
    Strategy,
)
from agentic_compression.settings import Settings
from tests.unit.planning.spaces import SPACE, record

__all__ = ["KEY", "ListedOptimizer", "candidate", "endpoint", "history", "rules", "settings", "situation"]

KEY = "sk-test-8f3b1c9d7e5a4021"


def settings(**changes: Any) -> Settings:
    """Settings with a key, whatever the environment holds."""
    return Settings(_env_file=None, OPENAI_API_KEY=KEY, **changes)  # type: ignore[call-arg]


def endpoint(url: str, **limits: Any) -> Endpoint:
    """An endpoint that does not pause for long."""
    bounds = {"timeout_s": 2.0, "deadline_s": 10.0, "longest_pause_s": 0.05, **limits}
    return Endpoint(url, "scripted-model", KEY, Limits(**bounds))


def history(space: SearchSpace = SPACE) -> list[EpisodeRecord]:
    """The baseline and the seeds."""
    strategies = [BASELINE, *(strategy for strategy, _ in seed_strategies(space, limit=8))]
    return [record(number, strategy) for number, strategy in enumerate(strategies)]


def candidate(label: str, gain: float = 0.01) -> Candidate:
    """A candidate with an expectation."""
    strategy = canonical(SPACE, Strategy.parse(label))
    return Candidate(strategy=strategy, gain=gain, expected={"accuracy": (0.6, 0.5, 0.7)}, seconds=3.0)


class ListedOptimizer:
    """An optimizer that names untried strategies of a fixed list."""

    name = "listed"

    def __init__(self, *labels: str) -> None:
        chosen = labels or ("rtn:bits=3,group_size=32", "gptq:bits=8,group_size=64", "magnitude:sparsity=0.4")
        self._listed = [candidate(label, gain=0.05 / (1 + at)) for at, label in enumerate(chosen)]

    def candidates(
        self,
        space: SearchSpace,
        history: Any,
        seed: int,
        situation: Situation | None = None,
        limit: int = 8,
    ) -> tuple[Candidate, ...]:
        tried = {canonical(space, item.strategy).key for item in history}
        return tuple(item for item in self._listed if item.strategy.key not in tried)[:limit]

    def propose(self, space: SearchSpace, history: Any, seed: int, situation: Situation | None = None) -> Proposal:
        found = self.candidates(space, history, seed, situation)
        if found:
            return Proposal(strategy=found[0].strategy, source=self.name, rationale="listed: the first")
        return RandomPlanner().propose(space, history, seed, situation)


def rules(**changes: Any) -> Rules:
    """Everything allowed, two candidates, nothing tried."""
    named = (candidate("rtn:bits=3,group_size=32"), candidate("gptq:bits=8,group_size=64"))
    values: dict[str, Any] = {"space": SPACE, "candidates": named, "may_override": True, "may_end": True, "taken": {}}
    return Rules(**{**values, **changes})


def situation(**changes: Any) -> Situation:
    """A model, a dataset and a wish."""
    source = SpecSource(source="local_checkpoint", parameters=1000, exact=True)
    spec = ModelSpec(
        model=changes.pop("model", "demo"), parameters=1000, bytes_per_parameter=2, dtype="bfloat16", family="llama",
        size_class="tiny", sources=(source,),
    )  # fmt: skip
    return Situation(spec=spec, **{"dataset": "questions", "objective": "as small as it gets", **changes})
