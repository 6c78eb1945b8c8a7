"""Answers that are programs: run in the sandbox, never in this process.

A program is the item's prompt and the model's completion, cut at the task's stop strings; the item's own ``check``
judges it (Chen et al. 2021, arXiv 2107.03374). One greedy completion an item gives pass@1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentic_compression.errors import DatasetError, UnavailableError

__all__ = ["CODE_METRIC", "require_sandbox", "score_program"]

CODE_METRIC = "pass@1"


def require_sandbox() -> None:
    """Fail before anything is generated where programs cannot be confined.

    Raises:
        UnavailableError: with the reason.
    """
    from agentic_compression.sandbox import isolation_unavailable_reason

    reason = isolation_unavailable_reason()
    if reason is not None:
        raise UnavailableError(
            f"programs that a model writes must be confined to be run, and cannot be here: {reason}; "
            "choose a task that runs no code"
        )


def score_program(item: Mapping[str, Any], completion: str, check: Callable[..., Any] | None = None) -> float:
    """pass@1 of one completion: 1 when the item's tests pass, else 0.

    Args:
        item: ``task_id``, ``prompt``, ``test`` and ``entry_point``, as HumanEval has them.
        completion: what the model wrote after the prompt.
        check: ``sandbox.check_function``, or what stands for it in tests.

    Raises:
        DatasetError: when the item's test itself cannot be run, which says nothing about the program.
        UnavailableError: where programs cannot be confined.
    """
    from agentic_compression.sandbox import check_function, pass_at_k

    result = (check or check_function)(
        item["prompt"] + completion, item["test"], item["entry_point"], helpers=item["prompt"]
    )
    if result.status == "invalid":
        raise DatasetError(
            f"the test of {item.get('task_id', 'an item')} cannot be run: {result.message}; leave the item out"
        )
    return pass_at_k(1, int(result.passed), 1)
