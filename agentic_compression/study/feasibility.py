"""Whether a strategy can be carried out here, told before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from agentic_compression.methods.estimates import Estimate, estimate, stored_rates, workload_of
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.records import DatasetSpec, ModelSpec, Strategy, StudyConfig
from agentic_compression.study.workbench import Workbench

__all__ = ["compression_device", "expected_cost", "too_slow"]

_BYTES_A_TOKEN = 4


def expected_cost(
    config: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, strategy: Strategy, bench: Workbench
) -> Estimate:
    """Memory and time a strategy is expected to take here; told in milliseconds, before anything is loaded."""
    defaults = CompressionRequest.model_fields
    calibration = defaults["calibration_samples"].default * defaults["calibration_tokens"].default
    path = Path(dataset.calibration_path) if dataset.calibration_path else None
    text_bytes = path.stat().st_size if path is not None and path.is_file() else 0
    workload = workload_of(
        spec,
        calibration_tokens=calibration if path else 0,
        training_tokens=text_bytes // _BYTES_A_TOKEN,
        threads=config.evaluation.threads or os.cpu_count() or 1,
    )
    return estimate(strategy, workload, stored_rates(bench.settings.root))


def compression_device(config: StudyConfig) -> str:
    """Where methods compute; ``auto`` is the CPU, which every method can use."""
    return "cpu" if config.evaluation.device == "auto" else config.evaluation.device


def too_slow(config: StudyConfig, strategy: Strategy, expected: Estimate) -> str | None:
    """Why a strategy would not end in time, or None.

    Estimates are rough, so it takes twice the limit; stages with a condition may be left out.
    """
    if expected.seconds <= 2 * config.episode_timeout_s or any(stage.when for stage in strategy.stages):
        return None
    return (
        f"it would take about {expected.seconds:.0f} s, an episode may take {config.episode_timeout_s:.0f}; raise "
        "episode_timeout_s in the study file, or use fewer steps"
    )
