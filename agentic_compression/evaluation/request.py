"""What an evaluation is asked to do: one JSON record that crosses the process boundary."""

from __future__ import annotations

from pydantic import Field

from agentic_compression.records import CheckpointRef, DatasetSpec, EvaluationSettings, Record

__all__ = ["EvaluationRequest"]


class EvaluationRequest(Record):
    """One checkpoint, the items to ask it, and how to measure."""

    checkpoint: CheckpointRef
    dataset: DatasetSpec
    settings: EvaluationSettings = Field(default_factory=EvaluationSettings)
    grid_country: str = Field(default="USA", pattern=r"^[A-Z]{3}$", description="ISO 3166-1 alpha-3")
    grid_grams_per_kwh: float | None = Field(default=None, gt=0, description="overrides the country's factor")
    cpu_watts_per_core: float = Field(default=15.0, gt=0, description="used where no energy counter exists")
    store_root: str = Field(description="folder of the results, one file a content key")
    tasks_dir: str = Field(description="folder of multiple_choice.yaml and generation.yaml (configs/tasks)")
    reuse: bool = Field(default=True, description="read a stored result instead of measuring again")
    memory_repeats: int = Field(default=3, ge=1, description="fresh processes that load and serve the checkpoint")
