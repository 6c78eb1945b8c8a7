"""Results on disk, one file a content key: an evaluation that was done before is read, not repeated."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from pydantic import ValidationError

from agentic_compression.evaluation.environment import cpu_model
from agentic_compression.evaluation.quality import harness_version
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.records import Evaluation, Report, content_digest
from agentic_compression.runtimes import runtime_kind, runtime_version
from agentic_compression.storage import confined, write_record

__all__ = ["METHOD_VERSION", "evaluation_key", "read_evaluation", "read_report", "store_evaluation", "store_report"]

METHOD_VERSION = 2
"""Raised whenever the way of measuring changes, so that older results are not mistaken for new ones."""

_LIBRARIES = ("torch", "transformers", "tokenizers")


def evaluation_key(request: EvaluationRequest, device: str, threads: int) -> str:
    """Digest of all that a result depends on: weights, items, settings, harness, engine, libraries, machine."""
    return content_digest(
        {
            "method": METHOD_VERSION,
            "checkpoint": request.checkpoint.digest,
            "size_bytes": request.checkpoint.size_bytes,
            "dataset": request.dataset.digest,
            "tasks": [task.model_dump(mode="json", exclude={"path", "split_files"}) for task in request.dataset.tasks],
            "settings": request.settings.model_dump(mode="json"),
            "split": [request.split, request.report_share] if request.split != "all" else None,
            "teacher": request.teacher.digest if request.teacher else None,
            "memory_repeats": request.memory_repeats,
            "grid": [request.grid_country, request.grid_region, request.grid_grams_per_kwh, request.pue],
            "power": [request.cpu_watts_per_core, request.gpu_watts, request.price_per_kwh, request.currency],
            "harness": harness_version(),
            "runtime": runtime_version(runtime_kind(request.checkpoint.path)),
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
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


def read_report(root: str, key: str) -> Report | None:
    """The stored quality on the report side that belongs to an evaluation; None when there is none."""
    try:
        return Report.model_validate_json(_report_file(root, key).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def store_report(root: str, key: str, report: Report) -> None:
    """Write it, whole or not at all."""
    write_record(_report_file(root, key), report)


def _report_file(root: str, key: str) -> Path:
    return confined(Path(root), f"{key}.report.json")
