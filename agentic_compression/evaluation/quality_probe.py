"""Accuracy and perplexity alone: what a stage's condition is decided on."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from pydantic import ValidationError

from agentic_compression.errors import AcfError
from agentic_compression.evaluation.evaluate import measure_perplexity, resolve, start_torch
from agentic_compression.evaluation.measuring import side_chooser
from agentic_compression.evaluation.quality import combine, score_tasks
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.store import evaluation_key, read_evaluation
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import QualityOutcome
from agentic_compression.runtimes import open_runtime
from agentic_compression.storage import confined, write_record

__all__ = ["measure_quality"]


def measure_quality(request: EvaluationRequest, progress: Progress = no_progress) -> QualityOutcome:
    """Score the tasks and the held-out text as an evaluation does, and nothing else.

    A stored evaluation of the same checkpoint under the same settings answers at once, and so does an earlier probe.

    Args:
        request: checkpoint, items and settings.
        progress: told about every batch.

    Returns:
        ``succeeded``, or ``failed`` with one line when the model or the data is at fault.
    """
    started = time.perf_counter()
    try:
        device, threads = resolve(request)
        key = evaluation_key(request, device, threads)
        known = _known(request.store_root, key)
        if known is not None:
            return known.model_copy(update={"seconds": time.perf_counter() - started})
        start_torch(threads, request.settings.seed)
        progress("load", 0, 1)
        with closing(open_runtime(request.checkpoint.path, device, threads)) as runtime:
            choose = side_chooser(request, request.split)
            scores = score_tasks(runtime, request.dataset, request.settings, request.tasks_dir, progress, choose=choose)
            perplexity = measure_perplexity(runtime, request, progress)
    except AcfError as error:
        return QualityOutcome(status="failed", error=str(error), seconds=time.perf_counter() - started)
    outcome = QualityOutcome(
        status="succeeded",
        accuracy=combine(scores, request.dataset).value,
        perplexity=perplexity.perplexity.value if perplexity else None,
        seconds=time.perf_counter() - started,
    )
    write_record(_probe_file(request.store_root, key), outcome)
    return outcome


def _known(root: str, key: str) -> QualityOutcome | None:
    evaluation = read_evaluation(root, key)
    if evaluation is not None:
        perplexity = evaluation.perplexity.perplexity.value if evaluation.perplexity else None
        return QualityOutcome(status="succeeded", accuracy=evaluation.accuracy.value, perplexity=perplexity)
    try:
        return QualityOutcome.model_validate_json(_probe_file(root, key).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _probe_file(root: str, key: str) -> Path:
    return confined(Path(root), f"{key}.quality.json")
