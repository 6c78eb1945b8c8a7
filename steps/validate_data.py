"""Resolve and validate the dataset."""

from typing import Annotated

from zenml import step

from agentic_compression import study as domain
from agentic_compression.records import DatasetSpec, StudyConfig, ValidationReport


@step
def validate_data(
    study: StudyConfig,
) -> tuple[Annotated[DatasetSpec, "dataset"], Annotated[ValidationReport, "validation_report"]]:
    """The study's dataset in canonical form, and what Great Expectations found in it."""
    dataset, report = domain.validate_data(domain.with_name(study), domain.open_workbench())
    return dataset, report  # a literal tuple: ZenML reads the number of outputs from it
