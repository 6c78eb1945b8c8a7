"""Apply the planned strategy."""

from typing import Annotated

from zenml import step

from agentic_compression import study as domain
from agentic_compression.records import CompressionOutcome, DatasetSpec, EpisodePlan, ModelSpec, StudyConfig
from materializers import CheckpointMaterializer


@step(output_materializers=CheckpointMaterializer)
def compress(
    study: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, plan: EpisodePlan
) -> Annotated[CompressionOutcome, "checkpoint"]:
    """A stored checkpoint, or the reason there is none; a failing strategy is a result, not a failed run."""
    return domain.compress(domain.with_name(study), spec, dataset, plan, domain.open_workbench())
