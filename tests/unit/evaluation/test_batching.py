from __future__ import annotations

import pytest

from agentic_compression.evaluation.batching import BatchLimit, Report, batch_limit, out_of_memory
from agentic_compression.evaluation.harness import harness_model, quiet_harness
from agentic_compression.evaluation.language_modelling import encode_documents, score_documents
from agentic_compression.progress import no_progress
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.evaluation.conftest import ids_of


class Machine:
    """Runs out of memory on batches of more rows than it has room for."""

    def __init__(self, room: int, error: BaseException) -> None:
        self.room, self.error, self.tried = room, error, list[int]()

    def work(self, rows: int, report: Report) -> list[int]:
        self.tried.append(rows)
        report(2)
        if rows > self.room:
            raise self.error
        for _ in range(4):
            report(2)
        return list(range(10))


def _errors() -> list[BaseException]:
    import torch

    return [MemoryError("out"), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 4 bytes")]  # fmt: skip


@pytest.mark.parametrize("kind", range(3))
def test_a_batch_that_does_not_fit_is_halved_and_remembered(kind: int) -> None:
    machine, limit, told = Machine(10, _errors()[kind]), BatchLimit(), list[int]()
    assert limit.run(64, machine.work, told.append) == list(range(10))
    assert machine.tried == [64, 32, 16, 8]
    assert sum(told) == 10
    assert limit.run(64, machine.work) == list(range(10))
    assert limit.run(4, machine.work) == list(range(10))
    assert machine.tried[4:] == [8, 4]


def test_one_row_that_does_not_fit_is_the_error_itself() -> None:
    machine, limit = Machine(0, MemoryError("nothing left")), BatchLimit()
    with pytest.raises(MemoryError, match="nothing left"):
        limit.run(5, machine.work)
    assert machine.tried == [5, 2, 1]


def test_other_errors_are_not_taken_for_it() -> None:
    machine, limit = Machine(1, RuntimeError("shapes do not match")), BatchLimit()
    with pytest.raises(RuntimeError, match="shapes"):
        limit.run(8, machine.work)
    assert machine.tried == [8]
    assert limit.rows is None
    assert not out_of_memory(ValueError("memory"))


def test_answers_are_the_same_after_running_out_of_memory(
    tiny: TransformersRuntime, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentic_compression.evaluation.batching._LIMITS", {})
    pairs = [(("", ""), ids_of(tiny, f"w{n} w{n + 1}"), ids_of(tiny, f"w{n + 2}")[1:]) for n in range(20)]
    windows = encode_documents(tiny, sentences)
    with quiet_harness():
        model = harness_model(tiny, 16, no_progress)
        expected, documents = model._loglikelihood_tokens(pairs), score_documents(tiny, windows, 16)
        score, score_windows = tiny.score, tiny.score_documents

        def small(*arguments: object) -> object:
            if int(str(arguments[1])) > 3:
                raise MemoryError("planted")
            return (score if isinstance(arguments[0][0], tuple) else score_windows)(*arguments)  # type: ignore[index,arg-type]

        monkeypatch.setattr(tiny, "score", small)
        monkeypatch.setattr(tiny, "score_documents", small)
        measured = model._loglikelihood_tokens(pairs)
        assert batch_limit(tiny).rows == 2
        again = score_documents(tiny, windows, 16)
    assert [value for value, _ in measured] == pytest.approx([value for value, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in measured] == [greedy for _, greedy in expected]
    assert [item.hits for item in again] == [item.hits for item in documents]
