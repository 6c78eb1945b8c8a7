"""Builders of plausible records for tests; the numbers are made up and never leave the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentic_compression.records import (
    BenchmarkScore,
    CheckpointRef,
    EnergyMeasurement,
    Environment,
    EpisodePlan,
    EpisodeRecord,
    Estimate,
    Evaluation,
    EvaluationSettings,
    LatencyMeasurement,
    MemoryMeasurement,
    Objectives,
    Strategy,
)

__all__ = ["make_checkpoint", "make_evaluation", "make_plan", "make_record"]


def make_estimate(value: float, half_width: float = 0.0, n: int = 10) -> Estimate:
    """An estimate with a symmetric interval."""
    return Estimate(value=value, low=value - half_width, high=value + half_width, n=n, spread=half_width / 2)


def make_evaluation(
    accuracy: float = 0.9, latency_ms: float = 10.0, memory_gb: float = 0.05, size_bytes: int = 10_000_000
) -> Evaluation:
    """An evaluation with these objectives and CO2 in proportion to latency."""
    correct = round(accuracy * 100)
    return Evaluation(
        checkpoint_digest="d" * 16,
        accuracy=make_estimate(accuracy, 0.03, 100),
        benchmarks=(
            BenchmarkScore(
                task="demo_mc",
                metric="acc",
                score=make_estimate(accuracy, 0.03, 100),
                harness="test",
                outcomes=(1,) * correct + (0,) * (100 - correct),
            ),
        ),
        latency=LatencyMeasurement(
            request_ms=make_estimate(latency_ms, 0.2),
            request_p95_ms=latency_ms * 1.1,
            ttft_ms=make_estimate(latency_ms / 4),
            decode_ms_per_token=make_estimate(latency_ms / 20),
            throughput_tokens_per_s=16 / latency_ms * 1000,
            prompt_tokens=64,
            new_tokens=16,
            runs=10,
            warmup_runs=3,
            clock="perf_counter",
        ),
        memory=MemoryMeasurement(
            peak_growth_bytes=make_estimate(memory_gb * 1e9, 1e5, 3), peak_rss_bytes=5 * 10**8, weights_bytes=size_bytes
        ),
        energy=EnergyMeasurement(
            joules_per_request=make_estimate(latency_ms / 100, 0.001),
            co2_grams_per_1000_requests=make_estimate(latency_ms / 1000, 0.0001),
            source="estimated",
            method="test",
            grid_grams_per_kwh=400,
            grid_region="USA",
            total_joules=10,
        ),
        size_bytes=size_bytes,
        environment=Environment(device="cpu"),
        settings=EvaluationSettings(),
        wall_seconds=1.0,
    )


def make_checkpoint(folder: Path, strategy: Strategy, size_bytes: int = 10_000_000) -> CheckpointRef:
    """A reference to a folder that exists."""
    folder.mkdir(parents=True, exist_ok=True)
    return CheckpointRef(
        path=str(folder), digest=f"digest-{strategy.key}"[:16], size_bytes=size_bytes, strategy_key=strategy.key
    )


def make_plan(study: str, episode: int, strategy: str = "") -> EpisodePlan:
    """A plan as the random planner would make it."""
    return EpisodePlan(
        study=study, episode=episode, strategy=Strategy.parse(strategy), planner="random", source="random", seed=0
    )


def make_record(plan: EpisodePlan, folder: Path, evaluation: Evaluation | None = None, **changes: Any) -> EpisodeRecord:
    """The record of that plan with that evaluation."""
    strategy = plan.strategy or Strategy()
    evaluation = evaluation or make_evaluation()
    values: dict[str, Any] = {
        "study": plan.study,
        "episode": plan.episode,
        "strategy": strategy,
        "status": "succeeded",
        "objectives": evaluation.objectives,
        "intervals": evaluation.intervals,
        "evaluation": evaluation,
        "checkpoint": make_checkpoint(folder, strategy, evaluation.size_bytes),
        "run_id": plan.run_id,
        "planner": plan.planner,
        "source": plan.source,
        "timings": {"total": 2.0},
        "joules": 30.0,
    }
    return EpisodeRecord(**{**values, **changes})


def objectives(
    accuracy: float, latency_ms: float, memory_gb: float, model_size_gb: float, co2_grams: float
) -> Objectives:
    """Objectives by position."""
    return Objectives(
        accuracy=accuracy, latency_ms=latency_ms, memory_gb=memory_gb, model_size_gb=model_size_gb, co2_grams=co2_grams
    )
