"""Plan the next strategy."""

from typing import Annotated

from zenml import step

from agentic_compression.records import DatasetSpec, EpisodePlan, ModelSpec, StudyConfig
from agentic_compression.study import open_workbench, plan_episode, with_name


@step
def llm_plan(study: StudyConfig, spec: ModelSpec, dataset: DatasetSpec) -> Annotated[EpisodePlan, "plan"]:
    """Claim the next episode and choose its strategy from the study's history."""
    return plan_episode(with_name(study), spec, dataset, open_workbench())
