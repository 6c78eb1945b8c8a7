"""Infer the model's specification."""

from typing import Annotated

from zenml import step

from agentic_compression.records import ModelSpec, StudyConfig
from agentic_compression.study import infer_model_spec, open_workbench, with_name


@step
def infer_spec(study: StudyConfig) -> Annotated[ModelSpec, "model_spec"]:
    """Parameters, shapes and memory needs of the study's model, each with its source."""
    return infer_model_spec(with_name(study), open_workbench())
