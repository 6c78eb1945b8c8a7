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

__all__ = ["compression_device", "expected_cost", "feasibility", "smallest_size_gb"]

_BYTES_A_TOKEN = 4
_SIZE_MARGIN = 0.02  # a model's shipped bytes are not exactly its parameters'
_BITS: dict[str, int | None] = {"rtn": None, "gptq": None, "awq": None, "autoround": None, "int8": 8, "nf4": 4}


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
    reason = _too_large(config, spec, request.strategy) or infeasible_reason(expected)
    return expected, reason or _too_slow(config, request.strategy, expected, bench)


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


def smallest_size_gb(spec: ModelSpec, strategy: Strategy) -> float | None:
    """What a strategy's checkpoint cannot be smaller than, by arithmetic; None where arithmetic does not tell.

    Told of strategies that only store weights in fewer bits: every weight takes at least the bits of the last stage;
    embeddings that keep more, scales, zeros and the files beside the weights are not counted.
    """
    if not strategy.stages or any(stage.method not in _BITS for stage in strategy.stages):
        return None
    bits = _BITS[strategy.stages[-1].method]
    if bits is None:
        found = strategy.stages[-1].parameters.get("bits")
        if not isinstance(found, int):
            return None
        bits = found
    return spec.parameters * bits / 8 / 1e9


def _too_large(config: StudyConfig, spec: ModelSpec, strategy: Strategy) -> str | None:
    """Why no checkpoint of this strategy can satisfy the study's bounds on size, or None."""
    smallest = smallest_size_gb(spec, strategy)
    if smallest is None:
        return None
    whole = spec.parameters * spec.bytes_per_parameter / 1e9
    for constraint in config.constraints:
        unit = {"model_size_gb": 1.0, "size_ratio": whole}.get(constraint.quantity)
        if unit and constraint.operator == "<=" and smallest > constraint.bound * unit * (1 + _SIZE_MARGIN):
            return (
                f"the checkpoint would take {smallest:.4g} GB at least, {smallest / whole:.0%} of the model; "
                f"the study asks for {constraint}: use fewer bits, or remove parts before"
            )
    return None


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
