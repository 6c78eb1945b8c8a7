"""ZenML's Model control plane: which model a run belongs to, and what MLflow's registry says of it."""

from zenml import Model, get_step_context, log_metadata
from zenml.enums import ModelStages
from zenml.exceptions import StepContextError
from zenml.pipelines.compilation_context import PipelineCompilationContext

from agentic_compression.study import Workbench
from agentic_compression.study.promotion import registry_facts

__all__ = ["belongs_to", "note_registry"]


def belongs_to(model: str, study: str) -> None:
    """Link the artifacts of the pipeline that is being compiled to this study's version of the model.

    Args:
        model: the registered model's name, the same in ZenML and in MLflow.
        study: names the version; ZenML keeps numbers and names of stages for itself, so those get a prefix.
    """
    context = PipelineCompilationContext.get()
    if context is None:  # a pipeline's function called as it is
        return
    reserved = study.isnumeric() or study.lower() in ModelStages.values()
    version = f"study-{study}" if reserved else study
    # MLflow's registry is written by the promotion alone, with evidence, gate and journal.
    context.pipeline.configure(model=Model(name=model, version=version, save_models_to_registry=False))


def note_registry(model: str, bench: Workbench) -> None:
    """Write MLflow's version numbers and aliases beside the model version that this step's run belongs to."""
    try:
        linked = get_step_context().model
    except StepContextError:
        return
    if linked is not None:
        log_metadata(metadata=registry_facts(model, bench), infer_model=True)
