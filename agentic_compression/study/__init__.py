"""Composes the stages into episodes, and keeps a study's files. Knows nothing of ZenML."""

from agentic_compression.study.episode import (
    compress,
    evaluate,
    infer_model_spec,
    plan_episode,
    update_frontier,
    validate_data,
)
from agentic_compression.study.naming import study_name, with_name
from agentic_compression.study.workbench import Workbench, open_workbench

__all__ = [
    "Workbench",
    "compress",
    "evaluate",
    "infer_model_spec",
    "open_workbench",
    "plan_episode",
    "study_name",
    "update_frontier",
    "validate_data",
    "with_name",
]
