"""Results on disk, one file a content key: an evaluation that was done before is read, not repeated."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from agentic_compression.evaluation.environment import cpu_model
from agentic_compression.evaluation.quality import harness_version
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.records import Evaluation, content_digest
from agentic_compression.runtimes import runtime_kind, runtime_version
from agentic_compression.storage import confined, write_record

__all__ = ["METHOD_VERSION", "evaluation_key", "read_evaluation", "store_evaluation"]

METHOD_VERSION = 1
"""Raised whenever the way of measuring changes, so that older results are not mistaken for new ones."""


def evaluation_key(request: EvaluationRequest, device: str, threads: int) -> str:
    """Digest of all that a result depends on: weights, items, settings, harness, engine, machine."""
    return content_digest(
        {
            "method": METHOD_VERSION,
            "checkpoint": request.checkpoint.digest,
            "size_bytes": request.checkpoint.size_bytes,
            "dataset": request.dataset.digest,
            "tasks": [task.model_dump(mode="json", exclude={"path", "split_files"}) for task in request.dataset.tasks],
            "settings": request.settings.model_dump(mode="json"),
            "memory_repeats": request.memory_repeats,
            "grid": [request.grid_country, request.grid_grams_per_kwh, request.cpu_watts_per_core],
            "harness": harness_version(),
            "runtime": runtime_version(runtime_kind(request.checkpoint.path)),
            "machine": [device, cpu_model(), threads],
        }
    )


def read_evaluation(root: str, key: str) -> Evaluation | None:
    """The stored result; None when there is none or the file is damaged, so that it is measured again."""
    path = confined(Path(root), f"{key}.json")
    try:
        return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def store_evaluation(root: str, key: str, evaluation: Evaluation) -> None:
    """Write a result, whole or not at all."""
    write_record(confined(Path(root), f"{key}.json"), evaluation)
