"""What a strategy will take in memory and time, told from the model's shape before anything is loaded.

Every method says what one stage needs (``Method.needs``). A strategy takes the seconds of its stages together and the
memory of the largest. The formulas count seconds of one reference core, 2·10¹⁰ float32 operations a second; where this
machine's own rate was measured once and stored in the state root, seconds are scaled by it. Reading an estimate imports
no torch and takes less than a millisecond.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from agentic_compression.errors import StrategyError
from agentic_compression.methods.interface import Needs, Workload
from agentic_compression.methods.registry import get_method
from agentic_compression.records import CompressionOutcome, ModelSpec, Record, Strategy
from agentic_compression.resident_memory import free_bytes
from agentic_compression.storage import write_record

__all__ = [
    "Estimate",
    "EstimateErrors",
    "MachineRates",
    "estimate",
    "estimate_errors",
    "infeasible_reason",
    "measure_rates",
    "stored_rates",
    "workload_of",
]

_RATES = Path("data") / "machine_rates.json"
_REFERENCE_FLOPS = 2e10
_RUNTIME_BYTES = 40_000_000  # thread pools, the loader, the tokenizer and kernels of torch, whatever the model
_RUNTIME_SECONDS = 0.25
_COPIES = 4  # reading, checking, writing and hashing pass over the weights
_SMALLEST_SHARE = 0.05


class MachineRates(Record):
    """How fast this machine is, with one thread."""

    flops_per_second: float = Field(default=_REFERENCE_FLOPS, gt=0, description="of float32 matrix products")
    copy_bytes_per_second: float = Field(default=1e9, gt=0, description="of large copies in memory")
    measured: bool = Field(default=False, description="else the conservative default")


@dataclass(frozen=True)
class Estimate:
    """What a strategy is expected to take.

    Attributes:
        peak_bytes: largest growth of the process, the loaded model included.
        seconds: wall time, loading and saving included.
        stages: the same by stage, without loading and saving; None where a method says nothing.
    """

    peak_bytes: int
    seconds: float
    stages: tuple[Needs | None, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every stage's method said what it needs."""
        return None not in self.stages


class EstimateErrors(Record):
    """How far estimates were from what was measured, as medians of ``|estimated - measured| / measured``."""

    outcomes: int = Field(ge=1, description="how many compressions had both")
    peak_bytes: float | None = None
    seconds: float | None = None


def workload_of(
    spec: ModelSpec, *, calibration_tokens: int = 0, training_tokens: int = 0, threads: int = 1
) -> Workload:
    """What methods' costs depend on, from a model's specification.

    Parts of the shape that are unknown are filled in by Llama's proportions: ``N ≈ 12·L·h²``, ``h = 128·L``, an MLP of
    ``8h/3`` and 32,000 tokens.

    Args:
        spec: the model.
        calibration_tokens: of the calibration windows together.
        training_tokens: of the training windows together.
        threads: CPU threads.
    """
    blocks = spec.layers or max(1, round((spec.parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = spec.hidden_size or max(64, 64 * round(math.sqrt(spec.parameters / (12 * blocks)) / 64))
    vocabulary = spec.vocabulary or 32_000
    embeddings = vocabulary * hidden * (1 if spec.tied_embeddings else 2)
    attention = (spec.heads or 0) * (spec.head_dim or 0)
    return Workload(
        parameters=spec.parameters,
        linear_parameters=max(spec.parameters - embeddings, round(spec.parameters * _SMALLEST_SHARE)),
        blocks=blocks,
        widest_input=max(spec.intermediate_size or round(8 * hidden / 3), hidden, attention),
        vocabulary=vocabulary,
        hidden=hidden,
        weight_bytes=round(spec.parameters * spec.bytes_per_parameter),
        bytes_per_parameter=max(1, round(spec.bytes_per_parameter)),
        calibration_tokens=calibration_tokens,
        training_tokens=training_tokens,
        threads=threads,
    )


def estimate(
    strategy: Strategy, workload: Workload, rates: MachineRates | None = None, busy_threads: float = 0.0
) -> Estimate:
    """Bytes and seconds of a whole strategy: the largest stage, and all stages one after the other.

    That earlier stages may make the model smaller is not counted on. Conditional stages count as carried out.

    Args:
        strategy: parameters left out take their defaults.
        workload: the model's shape, text and threads.
        rates: of this machine; conservative defaults when None.
        busy_threads: what else runs on it, for example ``os.getloadavg()[0]``: cores are shared with those.

    Raises:
        StrategyError: a method is unknown or its parameters are not valid.
    """
    if strategy.is_baseline:
        return Estimate(peak_bytes=0, seconds=0.0)
    rates = rates or MachineRates()
    stages = []
    for stage in strategy.stages:
        method = get_method(stage.method)
        try:
            config = method.config.model_validate(stage.parameters)
        except ValidationError as error:
            raise StrategyError(f"{stage.label}: {error.errors()[0]['msg']} (see: acf methods)") from error
        stages.append(method.needs(workload, config) if method.needs else None)
    known = [needs for needs in stages if needs is not None]
    copies = _COPIES * workload.weight_bytes / rates.copy_bytes_per_second
    slower = _REFERENCE_FLOPS / rates.flops_per_second
    shared = max(1.0, (workload.threads + busy_threads) / (os.cpu_count() or 1))
    return Estimate(
        peak_bytes=_RUNTIME_BYTES + max([workload.weight_bytes, *(needs.peak_bytes for needs in known)]),
        seconds=shared * (_RUNTIME_SECONDS + copies + slower * sum(needs.seconds for needs in known)),
        stages=tuple(stages),
    )


def infeasible_reason(expected: Estimate, device: str = "cpu", free: int | None = None) -> str | None:
    """Why a strategy cannot be carried out here for lack of memory; None when it fits.

    Args:
        expected: see :func:`estimate`.
        device: where it is to run.
        free: bytes there are; asked of the system when None: what is available, what the control groups leave, or
            the GPU's free memory.
    """
    available = free_bytes(device) if free is None else free
    if expected.peak_bytes <= available:
        return None
    where = f"on {device}" if device.startswith("cuda") else "in memory"
    return (
        f"it would need about {expected.peak_bytes / 1e9:.2f} GB {where}, {available / 1e9:.2f} GB are free; use a "
        "smaller model, a method that needs less (rtn), or free memory"
    )


def estimate_errors(outcomes: Iterable[CompressionOutcome]) -> EstimateErrors | None:
    """Median relative errors over compressions that were carried out, with estimates; None when there are none."""
    used = [
        outcome
        for outcome in outcomes
        if outcome.status == "succeeded" and not outcome.cached and not any(stage.cached for stage in outcome.stages)
    ]
    peaks = [
        abs(outcome.estimated_peak_bytes - outcome.peak_bytes) / outcome.peak_bytes
        for outcome in used
        if outcome.estimated_peak_bytes is not None and outcome.peak_bytes > 0
    ]
    times = [
        abs(outcome.estimated_seconds - outcome.seconds) / outcome.seconds
        for outcome in used
        if outcome.estimated_seconds is not None and outcome.seconds > 0
    ]
    if not peaks and not times:
        return None
    return EstimateErrors(
        outcomes=max(len(peaks), len(times)),
        peak_bytes=statistics.median(peaks) if peaks else None,
        seconds=statistics.median(times) if times else None,
    )


def stored_rates(root: Path) -> MachineRates:
    """The rates measured for this state root, or conservative defaults."""
    try:
        return MachineRates.model_validate_json((root / _RATES).read_text())
    except (OSError, ValueError):
        return MachineRates()


def measure_rates(root: Path) -> MachineRates:
    """Measure this machine with one thread, in about a second, and store the result in the state root."""
    import torch

    from agentic_compression.runtimes.machine_speed import matrix_flops, quickest, with_threads

    with with_threads(1):
        flops = matrix_flops("float32")
        source, target = torch.zeros(1 << 24), torch.zeros(1 << 24)
        copied = source.nbytes / quickest(lambda: target.copy_(source))
    rates = MachineRates(flops_per_second=flops, copy_bytes_per_second=copied, measured=True)
    write_record(root / _RATES, rates)
    return rates
