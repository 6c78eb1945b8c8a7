"""What an evaluation is asked to do: one JSON record that crosses the process boundary."""

from __future__ import annotations

from pydantic import Field

from agentic_compression.records import CheckpointRef, DatasetSpec, EvaluationSettings, Record, ScreeningPlan, Split

__all__ = ["EvaluationRequest", "engine_of"]


class EvaluationRequest(Record):
    """One checkpoint, the items to ask it, and how to measure."""

    checkpoint: CheckpointRef
    dataset: DatasetSpec
    settings: EvaluationSettings = Field(default_factory=EvaluationSettings)
    grid_country: str = Field(default="USA", pattern=r"^[A-Z]{3}$", description="ISO 3166-1 alpha-3")
    grid_grams_per_kwh: float | None = Field(default=None, gt=0, description="overrides the country's factor")
    grid_region: str | None = Field(
        default=None, pattern=r"^[A-Z]{2}-[A-Z0-9]{2,3}$", description="ISO 3166-2; taken before the country"
    )
    pue: float = Field(default=1.0, ge=1, description="power usage effectiveness: the building's energy over its IT's")
    price_per_kwh: float | None = Field(default=None, ge=0, description="of electricity; no cost is stated when None")
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="ISO 4217, of the price")
    gpu_watts: float | None = Field(default=None, gt=0, description="of a busy GPU whose energy nothing here can read")
    cpu_watts_per_core: float = Field(default=15.0, gt=0, description="used where no energy counter exists")
    store_root: str = Field(description="folder of the results, one file a content key")
    tasks_dir: str = Field(description="folder of multiple_choice.yaml and generation.yaml (configs/tasks)")
    reuse: bool = Field(default=True, description="read a stored result instead of measuring again")
    memory_repeats: int = Field(default=3, ge=1, description="fresh processes that load and serve the checkpoint")
    split: Split = Field(default="all", description="which items are asked; a plan must not see the report side")
    report_share: float = Field(default=0.5, gt=0, lt=1, description="expected share of the items on the report side")
    screening: ScreeningPlan | None = Field(
        default=None, description="rivals, for rejecting early and for asking the report side; None: neither"
    )
    teacher: CheckpointRef | None = Field(
        default=None, description="the uncompressed model, from whose next-token distributions divergence is measured"
    )


def engine_of(checkpoint: CheckpointRef) -> str:
    """What runs a checkpoint, told from its record alone: it may be deleted by now."""
    return "llama.cpp" if "llama.cpp" in checkpoint.loads_with else "transformers"
