from __future__ import annotations

from typing import Any

import pytest

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.code_answers import require_sandbox, score_program
from agentic_compression.evaluation.harness_tasks import runs_code
from agentic_compression.sandbox import ProgramResult, isolation_unavailable_reason

ITEM = {
    "task_id": "Own/1",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "test": "def check(candidate):\n    assert candidate(4) == 8\n    assert candidate(0) == 0\n",
    "entry_point": "double",
}


def _result(**changes: Any) -> ProgramResult:
    values = {"passed": False, "status": "failed", "message": "", "seconds": 0.1, "output": "", "isolation": ()}
    return ProgramResult(**(values | changes))


def test_a_program_is_prompt_and_completion_judged_by_the_items_own_test() -> None:
    seen: dict[str, Any] = {}

    def check(program: str, test: str, entry_point: str, *, helpers: str) -> ProgramResult:
        seen.update(program=program, test=test, entry_point=entry_point, helpers=helpers)
        return _result(passed=True, status="passed")

    assert score_program(ITEM, "    return 2 * x\n", check) == 1.0
    assert seen == {
        "program": 'def double(x):\n    """Twice x."""\n    return 2 * x\n',
        "test": ITEM["test"],
        "entry_point": "double",
        "helpers": ITEM["prompt"],
    }
    assert score_program(ITEM, "", lambda *_, **__: _result(status="timed_out")) == 0.0


def test_a_test_that_cannot_run_is_no_wrong_answer() -> None:
    with pytest.raises(DatasetError, match="Own/1 cannot be run: no such thing"):
        score_program(ITEM, "", lambda *_, **__: _result(status="invalid", message="no such thing"))


@pytest.mark.skipif(isolation_unavailable_reason() is not None, reason="programs cannot be confined on this machine")
def test_the_sandbox_tells_right_from_wrong() -> None:
    require_sandbox()
    assert score_program(ITEM, "    return 2 * x\n") == 1.0
    assert score_program(ITEM, "    return x + 4\n") == 0.0
    assert score_program(ITEM, "    import os; os._exit(0)\n") == 0.0


def test_only_definitions_that_say_so_run_code() -> None:
    assert runs_code("humaneval")
    assert not runs_code("gsm8k")
    assert not runs_code(None)
