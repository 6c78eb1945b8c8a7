"""Measure the checkpoint."""

from typing import Annotated

from zenml import step

from agentic_compression import study as domain
from agentic_compression.records import CompressionOutcome, DatasetSpec, EpisodePlan, EvaluationOutcome, StudyConfig
from materializers import EvaluationMaterializer


@step(output_materializers=EvaluationMaterializer)
def evaluate(
    study: StudyConfig, dataset: DatasetSpec, plan: EpisodePlan, compressed: CompressionOutcome
) -> Annotated[EvaluationOutcome, "evaluation"]:
    """Accuracy, perplexity, latency, memory, size and energy of the checkpoint, from a fresh process."""
    return domain.evaluate(domain.with_name(study), dataset, compressed, domain.open_workbench(), plan)
