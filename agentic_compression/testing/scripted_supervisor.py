"""A supervisor that computes nothing: tests of the loop script what compressing and evaluating give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentic_compression.execution import Supervisor, TaskOutcome
from agentic_compression.progress import Progress
from agentic_compression.records import BASELINE, CheckpointRef, Evaluation, Record, StageTiming, Strategy
from agentic_compression.testing.records import make_evaluation

__all__ = ["ScriptedSupervisor"]


class ScriptedSupervisor(Supervisor):
    """Writes a small folder for every strategy and measures it as ``script`` says.

    ``script`` maps a strategy to an evaluation, or to a status with no result (``oom``, ``failed`` …).
    """

    def __init__(self, script: Callable[[Strategy], Evaluation | str] | None = None) -> None:
        super().__init__(preload=())
        self.script = script or (lambda strategy: make_evaluation())
        self.calls: list[str] = []
        self._strategies: dict[str, Strategy] = {BASELINE.key: BASELINE}

    def run(self, entry: str, request: Record, *, timeout_s: float, progress: Progress | None = None) -> TaskOutcome:
        """Answer at once."""
        name = entry.rsplit(":", 1)[-1]
        self.calls.append(name)
        values: Any = request
        actions = {"compress": self._compress, "measure_quality": self._measure_quality}
        return actions.get(name, self._evaluate)(values)

    def _compress(self, request: Any) -> TaskOutcome:
        strategy: Strategy = request.strategy
        answer = self.script(strategy)
        if isinstance(answer, str):
            return TaskOutcome.model_validate({"status": answer, "error": f"scripted {answer}", "wall_seconds": 1.0})
        folder = Path(request.checkpoints_root) / strategy.key
        shared = strategy.is_baseline
        if shared:
            folder = Path(request.model_path)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.safetensors").write_bytes(b"weights")
        self._strategies[strategy.key] = strategy
        reference = CheckpointRef(
            path=str(folder),
            digest=strategy.key,
            size_bytes=answer.size_bytes,
            strategy_key=strategy.key,
            shared=shared,
        )
        timing = StageTiming(stage=strategy.label, seconds=0.5).model_dump(mode="json")
        result = {"status": "succeeded", "checkpoint": reference.model_dump(mode="json"), "stages": [timing]}
        return TaskOutcome(status="succeeded", result=result, wall_seconds=1.0, cpu_seconds=1.0)

    def _evaluate(self, request: Any) -> TaskOutcome:
        evaluation = self.script(self._strategies[request.checkpoint.strategy_key])
        assert isinstance(evaluation, Evaluation)
        evaluation = evaluation.model_copy(update={"checkpoint_digest": request.checkpoint.digest})
        result = {"status": "succeeded", "evaluation": evaluation.model_dump(mode="json")}
        return TaskOutcome(status="succeeded", result=result, wall_seconds=2.0, cpu_seconds=2.0)

    def _measure_quality(self, request: Any) -> TaskOutcome:
        evaluation = self.script(self._strategies[request.checkpoint.strategy_key])
        assert isinstance(evaluation, Evaluation)
        result = {"status": "succeeded", "accuracy": evaluation.accuracy.value}
        return TaskOutcome(status="succeeded", result=result, wall_seconds=0.5, cpu_seconds=0.5)
