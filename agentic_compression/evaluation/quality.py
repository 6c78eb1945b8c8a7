"""Accuracy: every task's score through lm-evaluation-harness or next-token prediction, and their weighted mean."""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Sequence
from typing import Any

from agentic_compression.errors import AcfError, DatasetError
from agentic_compression.evaluation.harness import harness_model, quiet_harness
from agentic_compression.evaluation.harness_tasks import build_harness_task
from agentic_compression.evaluation.intervals import bootstrap_ratio, proportion, weighted_mean
from agentic_compression.evaluation.language_modelling import (
    encode_documents,
    read_texts,
    score_documents,
    within_budget,
)
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import (
    BenchmarkScore,
    DatasetSpec,
    DatasetTask,
    Estimate,
    EvaluationSettings,
    content_digest,
)
from agentic_compression.runtimes import Runtime

__all__ = ["choose_items", "combine", "harness_version", "score_tasks"]


def harness_version() -> str:
    """``lm-eval 0.4.13``."""
    return f"lm-eval {importlib.metadata.version('lm-eval')}"


def score_tasks(
    runtime: Runtime,
    dataset: DatasetSpec,
    settings: EvaluationSettings,
    tasks_dir: str,
    progress: Progress = no_progress,
) -> tuple[BenchmarkScore, ...]:
    """Score every task of a dataset, in its order.

    Args:
        runtime: the checkpoint.
        dataset: tasks with absolute paths.
        settings: item limit, seed and batch size.
        tasks_dir: folder of the two templates.
        progress: told after every batch.

    Raises:
        DatasetError: when a task cannot be read.
        CompressionError: when the model's likelihoods are not numbers.
    """
    asked = [task for task in dataset.tasks if task.kind != "text"]
    scores = _score_with_harness(runtime, asked, settings, tasks_dir, progress) if asked else {}
    for task in dataset.tasks:
        if task.kind == "text":
            scores[task.name] = _score_text(runtime, task, settings, progress)
    return tuple(scores[task.name] for task in dataset.tasks)


def combine(scores: Sequence[BenchmarkScore], dataset: DatasetSpec) -> Estimate:
    """The dataset's accuracy: the weighted mean over its tasks, with the propagated interval."""
    return weighted_mean([score.score for score in scores], [task.weight for task in dataset.tasks])


def choose_items(total: int, limit: int | None, seed: int) -> list[int]:
    """Positions to ask: all, or the first ``limit`` of a seeded shuffle; ascending."""
    positions = list(range(total))
    if limit is None or limit >= total:
        return positions
    random.Random(seed).shuffle(positions)  # noqa: S311
    return sorted(positions[:limit])


def _score_with_harness(
    runtime: Runtime, tasks: list[DatasetTask], settings: EvaluationSettings, tasks_dir: str, progress: Progress
) -> dict[str, BenchmarkScore]:
    from lm_eval.evaluator import evaluate

    with quiet_harness():
        built = {task.name: build_harness_task(task, tasks_dir, runtime) for task in tasks}
        chosen = {
            name: choose_items(len(harness_task.eval_docs), settings.limit, settings.seed)
            for name, harness_task in built.items()
        }
        try:
            results = evaluate(
                harness_model(runtime, settings.batch_size, progress),
                {"tasks": built},
                samples=chosen,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (AcfError, MemoryError):
            raise
        except (KeyError, IndexError, ValueError, TypeError, AssertionError) as error:
            names = ", ".join(built)
            raise DatasetError(
                f"the harness could not ask {names}: {type(error).__name__}: {error}; check the items and the context"
            ) from error
    return {
        name: _score_of(name, harness_task, results["samples"][name], settings.seed)
        for name, harness_task in built.items()
    }


def _score_of(name: str, harness_task: Any, samples: list[dict[str, Any]], seed: int) -> BenchmarkScore:
    """Read one task's samples: first filter, and ``acc_norm`` where reported, else the first metric."""
    first_filter = samples[0]["filter"]
    samples = sorted((item for item in samples if item["filter"] == first_filter), key=lambda item: item["doc_id"])
    metrics = samples[0]["metrics"]
    metric = "acc_norm" if "acc_norm" in metrics else metrics[0]
    values = [float(item[metric]) for item in samples]
    binary = all(value in (0.0, 1.0) for value in values)
    if not binary and not all(0.0 <= value <= 1.0 for value in values):
        raise DatasetError(f"accuracy must lie in [0, 1], got {metric} of {name} outside it; choose another task")
    outcomes = tuple(int(value) for value in values) if binary else ()
    return BenchmarkScore(
        task=name,
        metric=f"{metric},{first_filter}",
        score=proportion(outcomes) if binary else bootstrap_ratio(values, [1.0] * len(values), seed),
        few_shot=int(harness_task.config.num_fewshot or 0),
        harness=harness_version(),
        items_digest=content_digest([_identity(item) for item in samples]),
        outcomes=outcomes,
    )


def _identity(sample: dict[str, Any]) -> str:
    """An item's own id, or its position and the hash of its content."""
    own = sample["doc"].get("id") if isinstance(sample["doc"], dict) else None
    return str(own) if own is not None else f"{sample['doc_id']}:{sample['doc_hash']}"


def _score_text(
    runtime: Runtime, task: DatasetTask, settings: EvaluationSettings, progress: Progress
) -> BenchmarkScore:
    """Next-token top-1 accuracy over whole documents, up to ``perplexity_tokens`` tokens; outcomes are tokens."""
    texts = read_texts(task.path, limit=settings.limit, seed=settings.seed)
    windows = within_budget(encode_documents(runtime, list(texts.values())), settings.perplexity_tokens)
    if not windows:
        raise DatasetError(f"task {task.name!r} must hold a text of two tokens or more, got none in {task.path}")
    scores = score_documents(runtime, windows, settings.batch_size, progress)
    return BenchmarkScore(
        task=task.name,
        metric="next_token_top1",
        score=bootstrap_ratio([sum(item.hits) for item in scores], [len(item.hits) for item in scores], settings.seed),
        harness="agentic_compression next-token prediction",
        items_digest=content_digest([list(texts)[: len(windows)], settings.perplexity_tokens]),
        outcomes=tuple(hit for item in scores for hit in item.hits),
    )
