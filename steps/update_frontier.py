"""Record the episode and update the Pareto frontier."""

from typing import Annotated

from zenml import step

from agentic_compression import study as domain
from agentic_compression.records import (
    CompressionOutcome,
    EpisodePlan,
    EvaluationOutcome,
    FrontierDocument,
    StudyConfig,
)
from materializers import FrontierMaterializer


@step(output_materializers=FrontierMaterializer)
def update_frontier(
    study: StudyConfig, plan: EpisodePlan, compressed: CompressionOutcome, evaluated: EvaluationOutcome
) -> Annotated[FrontierDocument, "pareto_frontier"]:
    """The frontier rebuilt from all recorded episodes, its members registered, the study's files rewritten."""
    return domain.update_frontier(domain.with_name(study), plan, compressed, evaluated, domain.open_workbench())
