"""Accuracy: every task's score through lm-evaluation-harness or next-token prediction, and their weighted mean."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.intervals import weighted_mean
from agentic_compression.evaluation.item_scorer import ItemScorer, harness_version
from agentic_compression.evaluation.items import Item
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import BenchmarkScore, DatasetSpec, Estimate, EvaluationSettings
from agentic_compression.runtimes import Runtime

__all__ = ["Choose", "choose_by_limit", "choose_items", "combine", "harness_version", "score_chosen", "score_tasks"]

Choose = Callable[[str, Sequence[Item]], Sequence[int]]
"""Which items of a task to ask: its name and all of its items (their ids and texts) to positions among them."""


def score_tasks(
    runtime: Runtime,
    dataset: DatasetSpec,
    settings: EvaluationSettings,
    tasks_dir: str,
    progress: Progress = no_progress,
    *,
    choose: Choose | None = None,
) -> tuple[BenchmarkScore, ...]:
    """Score every task of a dataset, in its order.

    Args:
        runtime: the checkpoint.
        dataset: tasks with absolute paths.
        settings: item limit, seed and batch size.
        tasks_dir: folder of the two templates.
        progress: told after every batch.
        choose: which items of a task to ask; by default the limit's. A task none of whose items is chosen is left out.

    Raises:
        DatasetError: when a task cannot be read, or no item at all is chosen.
        CompressionError: when the model's likelihoods are not numbers.
        UnavailableError: when a task runs code and nothing here can confine that.
    """
    scorer = ItemScorer(runtime, dataset, settings, tasks_dir, progress)
    return score_chosen(scorer, settings, choose or choose_by_limit(settings))


def score_chosen(scorer: ItemScorer, settings: EvaluationSettings, choose: Choose) -> tuple[BenchmarkScore, ...]:
    """Score the chosen items of a scorer's tasks; of a text task whole documents up to ``perplexity_tokens`` tokens.

    Raises:
        DatasetError: when no item at all is chosen.
    """
    chosen = {
        task: _affordable(scorer, task, sorted(set(choose(task, scorer.items(task)))), settings.perplexity_tokens)
        for task in scorer.tasks
    }
    chosen = {task: positions for task, positions in chosen.items() if positions}
    if not chosen:
        raise DatasetError(f"an item of {', '.join(scorer.tasks)} must be chosen to be asked, got none; use more items")
    scorer.score_all(chosen)  # all at once, so that tasks share batches
    return tuple(scorer.benchmark_score(task, positions) for task, positions in chosen.items())


def combine(scores: Sequence[BenchmarkScore], dataset: DatasetSpec) -> Estimate:
    """The dataset's accuracy: the weighted mean over the scored tasks, with the propagated interval."""
    weights = {task.name: task.weight for task in dataset.tasks}
    return weighted_mean([score.score for score in scores], [weights[score.task] for score in scores])


def choose_by_limit(settings: EvaluationSettings) -> Choose:
    """All items, or the first ``limit`` of a seeded shuffle."""
    return lambda _, items: choose_items(len(items), settings.limit, settings.seed)


def choose_items(total: int, limit: int | None, seed: int) -> list[int]:
    """Positions to ask: all, or the first ``limit`` of a seeded shuffle; ascending."""
    positions = list(range(total))
    if limit is None or limit >= total:
        return positions
    random.Random(seed).shuffle(positions)  # noqa: S311
    return sorted(positions[:limit])


def _affordable(scorer: ItemScorer, task: str, positions: Sequence[int], tokens: int) -> list[int]:
    """Positions until their texts hold ``tokens`` scored tokens, at least one; all positions of questions."""
    chosen: list[int] = []
    total = 0
    for position in positions:
        if total >= tokens:
            break
        chosen.append(position)
        total += scorer.tokens(task, position)
    return chosen
