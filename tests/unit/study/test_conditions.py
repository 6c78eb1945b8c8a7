"""Stages with a condition are carried out exactly when what came before is that much worse than the baseline."""

from __future__ import annotations

import pytest

from agentic_compression.records import CheckpointRef, CompressionOutcome, QualityOutcome, Strategy
from agentic_compression.study.conditions import settle_conditions


def checkpoint(name: str) -> CheckpointRef:
    return CheckpointRef(path=f"/{name}", digest=name, size_bytes=1, strategy_key=name, loads_with=("acf",))


class Bench:
    """Accuracy by the label of the strategy that made a checkpoint; counts what was asked."""

    def __init__(self, accuracies: dict[str, float]) -> None:
        self.accuracies, self.made = accuracies, list[str]()

    def carry_out(self, strategy: Strategy) -> CompressionOutcome:
        self.made.append(strategy.label)
        return CompressionOutcome(status="succeeded", checkpoint=checkpoint(strategy.label), seconds=1.0, joules=2.0)

    def measure(self, reference: CheckpointRef) -> QualityOutcome:
        accuracy = self.accuracies[reference.digest]
        return QualityOutcome(status="succeeded", accuracy=accuracy, perplexity=1 / accuracy, seconds=0.5, joules=0.25)


@pytest.mark.parametrize(
    ("pruned", "expected"),
    [
        (0.90, "wanda | distill | rtn"),
        (0.99, "wanda | rtn"),
        (0.9801, "wanda | rtn"),
    ],
)
def test_stage_runs_only_beyond_the_limit(pruned: float, expected: str) -> None:
    bench = Bench({"baseline": 1.0, "wanda": pruned})
    strategy = Strategy.parse("wanda | distill if accuracy_drop>0.02 | rtn")
    settled = settle_conditions(strategy, checkpoint("baseline"), bench.carry_out, bench.measure)
    assert settled.strategy.label == expected
    assert settled.failure is None
    assert len(settled.decisions) == 1
    assert ("carried out" in settled.decisions[0]) == ("distill" in expected)
    assert bench.made == ["wanda"]
    assert (settled.seconds, settled.joules) == (2.0, 2.5)


def test_second_condition_sees_what_the_first_decided() -> None:
    bench = Bench({"baseline": 0.9, "a": 0.5, "a | b | c": 0.85})
    strategy = Strategy.parse("a | b if accuracy_drop>0.1 | c | d if perplexity_increase>0.05 | e")
    settled = settle_conditions(strategy, checkpoint("baseline"), bench.carry_out, bench.measure)
    assert settled.strategy.label == "a | b | c | d | e"  # 0.9 / 0.85 - 1 is 0.0588
    assert bench.made == ["a", "a | b | c"]


def test_failure_before_a_condition_ends_it() -> None:
    bench = Bench({})

    def fail(strategy: Strategy) -> CompressionOutcome:
        return CompressionOutcome(status="oom", error="no memory", seconds=3.0)

    strategy = Strategy.parse("a | b if accuracy_drop>0.1")
    settled = settle_conditions(strategy, checkpoint("baseline"), fail, bench.measure)
    assert settled.failure is not None
    assert settled.failure.status == "oom"


def test_measurement_that_fails_or_is_missing_ends_it() -> None:
    bench = Bench({})
    strategy = Strategy.parse("a | b if perplexity_increase>0.1")
    for quality in (QualityOutcome(status="timed_out", error="late"), QualityOutcome(status="succeeded", accuracy=1.0)):
        answer = settle_conditions(strategy, checkpoint("baseline"), bench.carry_out, lambda _, q=quality: q)
        assert answer.failure is not None
        assert answer.failure.checkpoint is None
        assert answer.failure.error


def test_condition_text_round_trips() -> None:
    text = "wanda:sparsity=0.5 | distill:steps=200 if accuracy_drop>0.01 | gptq:bits=4"
    assert Strategy.parse(text).label == text
    assert Strategy.parse("prune:wanda,sparsity=0.3 | quantize:gptq,bits=4").label == "wanda:sparsity=0.3 | gptq:bits=4"
    for bad in (
        "a if speed>1",
        "a if accuracy_drop>x",
        "a if accuracy_drop>-1",
        "a if accuracy_drop<1",
        "a if accuracy_drop>1e999",
    ):
        with pytest.raises(ValueError, match=r"condition|begins with|stage is"):
            Strategy.parse(bad)
