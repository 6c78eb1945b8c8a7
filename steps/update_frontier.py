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
from agentic_compression.study.promotion import model_of
from materializers import FrontierMaterializer
from steps.control_plane import note_registry


@step(output_materializers=FrontierMaterializer)
def update_frontier(
    study: StudyConfig, plan: EpisodePlan, compressed: CompressionOutcome, evaluated: EvaluationOutcome
) -> Annotated[FrontierDocument, "pareto_frontier"]:
    """The frontier rebuilt from all recorded episodes, its members registered, the study's files rewritten."""
    named, bench = domain.with_name(study), domain.open_workbench()
    document = domain.update_frontier(named, plan, compressed, evaluated, bench)
    note_registry(model_of(named), bench)
    return document
