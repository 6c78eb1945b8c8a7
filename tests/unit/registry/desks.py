"""A registry desk over a real MLflow store, with studies whose records are made up and kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agentic_compression.execution import TaskOutcome
from agentic_compression.progress import Progress
from agentic_compression.records import (
    BenchmarkScore,
    EpisodeRecord,
    Evaluation,
    FrontierDocument,
    Promoted,
    PromotionPolicy,
    PromotionRequest,
    SmokeResult,
    Solution,
    StudyConfig,
)
from agentic_compression.registry import RegistryDesk, promote_frontier
from agentic_compression.settings import get_settings
from agentic_compression.study import Workbench
from agentic_compression.study.promotion import open_desk, promote, verdict_on
from agentic_compression.study.version_evidence import StudyEvidence
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_estimate, make_evaluation, make_plan, make_record
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor

if TYPE_CHECKING:
    from mlflow import MlflowClient

Point = tuple[float, float]
"""Accuracy and size in MB."""

ITEMS = 100


def answered(accuracy: float, items: int = ITEMS, prefix: str = "item") -> BenchmarkScore:
    """The first items right, the others wrong: two models differ in exactly the items between them."""
    right = round(accuracy * items)
    return BenchmarkScore(
        task="demo_mc",
        metric="acc",
        score=make_estimate(accuracy, 0.03, items),
        harness="test",
        outcomes=(1,) * right + (0,) * (items - right),
        items=tuple(f"{prefix}-{number}" for number in range(items)),
    )


def measured(
    accuracy: float, size_mb: float, latency_ms: float = 10.0, items: int = ITEMS, prefix: str = "item"
) -> Evaluation:
    """An evaluation whose items have names, so that it can be paired."""
    evaluation = make_evaluation(accuracy, latency_ms=latency_ms, size_bytes=int(size_mb * 1e6))
    return evaluation.model_copy(update={"benchmarks": (answered(accuracy, items, prefix),)})


class SmokingSupervisor(ScriptedSupervisor):
    """Answers smoke tests: those of the versions in ``broken`` fail."""

    def __init__(self) -> None:
        super().__init__(lambda _: "failed")
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def run(self, entry: str, request: Any, *, timeout_s: float, progress: Progress | None = None) -> TaskOutcome:
        assert entry.endswith(":smoke")
        self.asked.append(request.uri)
        if request.uri.rpartition("/")[2] in self.broken:
            return TaskOutcome(status="failed", error="scripted", wall_seconds=1.0)
        smoke = SmokeResult(uri=request.uri, prompt="p", answer="a", expected="a", passed=True)
        return TaskOutcome(status="succeeded", result=smoke.model_dump(mode="json"), wall_seconds=1.0)


@dataclass
class Studio:
    """Studies with made-up records, and the registered model that they share."""

    client: MlflowClient
    home: Path
    policy: PromotionPolicy = field(default_factory=PromotionPolicy)
    name: str = field(default_factory=lambda: f"model-{uuid4().hex[:8]}--demo")

    def __post_init__(self) -> None:
        self.history = MemoryHistory()
        self.supervisor = SmokingSupervisor()
        self.bench = Workbench(get_settings(), self.history, self.supervisor, registry=self.client)

    @property
    def desk(self) -> RegistryDesk:
        return open_desk(self.bench, policy=self.policy)

    def study(self, points: Mapping[int, Point], name: str = "", **options: Any) -> str:
        """Record a study with one episode a point; returns its name."""
        study = name or f"study-{uuid4().hex[:8]}"
        config = StudyConfig(model="demo", dataset="./missing.jsonl", name=study)
        self.history.open_study(config)
        for episode, (accuracy, size) in points.items():
            evaluation = measured(accuracy, size, latency_ms=10.0 - episode, **options)
            plan = make_plan(study, episode, f"rtn:bits={8 - episode}" if episode else "")
            folder = self.home / f"{study}-{episode}"
            record = make_record(plan, folder, evaluation, run_id=None, environment=evaluation.environment)
            assert record.checkpoint is not None
            own = record.checkpoint.model_copy(update={"digest": f"{study}-{episode}"})  # tests share one registry
            self.history.record(record.model_copy(update={"checkpoint": own}))
        return study

    def records(self, study: str) -> list[EpisodeRecord]:
        return self.history.records(study)

    def promote(
        self, study: str, members: tuple[int, ...], knee: int = 1, withheld: Mapping[int, str] | None = None
    ) -> FrontierDocument:
        """Let the registry follow a frontier of these episodes."""
        config = StudyConfig(model="demo", dataset="./missing.jsonl", name=study)
        desk = open_desk(self.bench, config, self.policy)
        assert isinstance(desk.evidence, StudyEvidence)
        document = frontier(study, [item for item in self.records(study) if item.episode in members], knee)
        return promote_frontier(desk, self.name, document, self.records(study), withheld)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model(self.name).aliases
        return {alias: str(version) for alias, version in found.items()}

    def ask(self, version: str, alias: str, **options: Any) -> Promoted:
        """Promote as a person does from the command line."""
        desk = self.desk
        request = PromotionRequest(model=self.name, version=version, alias=alias, policy=self.policy, **options)
        return promote(desk, request, verdict_on(desk, request))


def frontier(study: str, records: list[EpisodeRecord], knee: int = 1) -> FrontierDocument:
    """A frontier of exactly these records."""
    solutions = []
    for record in records:
        assert record.objectives is not None
        solutions.append(
            Solution(
                episode=record.episode,
                strategy=record.strategy.label,
                objectives=record.objectives,
                intervals=record.intervals,
                checkpoint=record.checkpoint.path if record.checkpoint else None,
                is_knee=record.episode == knee,
            )
        )
    return FrontierDocument(
        study=study, objectives=(), baseline=None, reference_point=None, hypervolume=0.5, solutions=tuple(solutions)
    )
