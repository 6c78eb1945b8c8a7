"""The quick measurement that conditions are decided on gives an evaluation's own figures."""

from __future__ import annotations

import pytest

from agentic_compression.evaluation import quality_probe as probe_module
from agentic_compression.evaluation.evaluate import evaluate
from agentic_compression.evaluation.quality_probe import measure_quality
from agentic_compression.evaluation.request import EvaluationRequest
from tests.unit.evaluation.test_evaluate import request_of_tiny

__all__ = ["request_of_tiny"]

pytestmark = pytest.mark.usefixtures("memory_measured_elsewhere")


def test_probe_agrees_with_the_full_evaluation_and_is_kept(
    request_of_tiny: EvaluationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = measure_quality(request_of_tiny)
    assert quick.status == "succeeded"

    def refuse(*_: object) -> None:
        raise AssertionError("measured twice")

    with monkeypatch.context() as patched:
        patched.setattr(probe_module, "open_runtime", refuse)
        again = measure_quality(request_of_tiny)
        assert (again.accuracy, again.perplexity) == (quick.accuracy, quick.perplexity)
    full = evaluate(request_of_tiny).evaluation
    assert full is not None
    assert full.perplexity is not None
    assert quick.accuracy == full.accuracy.value
    assert quick.perplexity == full.perplexity.perplexity.value


def test_probe_reads_a_stored_evaluation(request_of_tiny: EvaluationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    full = evaluate(request_of_tiny).evaluation
    assert full is not None
    monkeypatch.delattr(probe_module, "open_runtime")
    assert measure_quality(request_of_tiny).accuracy == full.accuracy.value


def test_probe_says_why_it_cannot(request_of_tiny: EvaluationRequest) -> None:
    gone = request_of_tiny.checkpoint.model_copy(update={"path": "/no/such/folder"})
    outcome = measure_quality(request_of_tiny.model_copy(update={"checkpoint": gone}))
    assert outcome.status == "failed"
    assert outcome.error
    assert "no/such/folder" in outcome.error
