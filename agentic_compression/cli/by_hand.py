"""What the commands outside any study share: a configuration, the model itself, one strategy applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    from agentic_compression.records import CompressionOutcome, Strategy, StudyConfig
    from agentic_compression.study import Workbench

__all__ = ["as_it_is", "compressed", "prepare", "task_names"]


def prepare(
    model: str,
    dataset: str,
    seed: int,
    *,
    limit: int | None = None,
    benchmark_dir: Path | None = None,
    tasks: str | None = None,
) -> tuple[StudyConfig, Workbench]:
    """A configuration named ``by-hand`` and the workbench; the child processes begin to start meanwhile."""
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.records import EvaluationSettings, StudyConfig

    shared_supervisor().start()
    from agentic_compression.study import open_workbench

    config = StudyConfig(
        model=model,
        dataset=dataset,
        name="by-hand",
        seed=seed,
        benchmark_dir=str(benchmark_dir.resolve()) if benchmark_dir else None,
        tasks=task_names(tasks),
        evaluation=EvaluationSettings(limit=limit),
    )
    return config, open_workbench()


def task_names(text: str | None) -> tuple[str, ...]:
    """``arc_easy, arc_challenge`` as names."""
    return tuple(name for name in (part.strip() for part in (text or "").split(",")) if name)


def as_it_is(config: StudyConfig, bench: Workbench) -> CompressionOutcome:
    """The model itself: a folder of any form that a runtime loads, or what the Hub has under its name."""
    from agentic_compression.checkpoints import checkpoint_ref
    from agentic_compression.records import BASELINE, CompressionOutcome
    from agentic_compression.study.model_source import readable_model

    folder = Path(readable_model(config, bench))
    if not folder.is_dir():
        return compressed(config, bench, BASELINE)
    reference = checkpoint_ref(folder, BASELINE.key, shared=True)
    return CompressionOutcome(status="succeeded", checkpoint=reference, cached=True)


def compressed(config: StudyConfig, bench: Workbench, strategy: Strategy) -> CompressionOutcome:
    """Compress outside any study; raises what an episode would have recorded as its error."""
    from agentic_compression.records import EpisodePlan
    from agentic_compression.study import compress as apply
    from agentic_compression.study import infer_model_spec
    from agentic_compression.study.episode import dataset_of

    spec = infer_model_spec(config, bench)
    plan = EpisodePlan(
        study=config.name, episode=0, strategy=strategy, planner="by hand", source="user", seed=config.seed
    )
    outcome = apply(config, spec, dataset_of(config, bench.settings), plan, bench)
    if outcome.checkpoint is None:
        raise CompressionError(f"compression {outcome.status}: {outcome.error}")
    return outcome
