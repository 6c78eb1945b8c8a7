"""Whether a strategy can be carried out here, told before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from agentic_compression.methods import content_key
from agentic_compression.methods.estimates import Estimate, estimate, infeasible_reason, stored_rates, workload_of
from agentic_compression.methods.prefixes import stored_prefix
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.records import DatasetSpec, ModelSpec, Strategy, StudyConfig
from agentic_compression.study.workbench import Workbench

__all__ = ["compression_device", "expected_cost", "feasibility"]

_BYTES_A_TOKEN = 4


def feasibility(
    config: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, request: CompressionRequest, bench: Workbench
) -> tuple[Estimate, str | None]:
    """What a strategy is expected to take, and why it cannot be carried out here, or None.

    What is stored already can be had, whatever it took. On a GPU nothing is refused: its rates and free memory are not
    known in this process, and the child that computes there finds out.

    Raises:
        StrategyError: when the strategy's methods or parameters are not known here.
    """
    expected = expected_cost(config, spec, dataset, request.strategy, bench)
    stored = stored_prefix(Path(request.checkpoints_root), content_key(request)) is not None
    if request.strategy.is_baseline or stored or request.device.startswith("cuda"):
        return expected, None
    return expected, infeasible_reason(expected) or _too_slow(config, request.strategy, expected, bench)


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


def _too_slow(config: StudyConfig, strategy: Strategy, expected: Estimate, bench: Workbench) -> str | None:
    """Why a strategy would not end in time, or None.

    Estimates are rough, and rougher where the machine's rates were not measured ('acf doctor' does), so only what is
    far beyond the limit is refused. Stages with a condition may be left out.
    """
    beyond = 4 if stored_rates(bench.settings.root).measured else 10
    if expected.seconds <= beyond * config.episode_timeout_s or any(stage.when for stage in strategy.stages):
        return None
    return (
        f"it would take about {expected.seconds:.0f} s, an episode may take {config.episode_timeout_s:.0f}; raise "
        "episode_timeout_s in the study file, or use fewer steps"
    )
