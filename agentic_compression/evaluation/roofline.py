"""How near a checkpoint comes to what its machine can do (Williams, Waterman & Patterson 2009, "Roofline").

Decoding one request reads all weights for every token, so that its floor is their bytes over the bandwidth of memory;
reading a prompt multiplies matrices, so that its floor is their operations over the rate of a large product.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from agentic_compression.evaluation.environment import cpu_model, usable_cores
from agentic_compression.records import LatencyMeasurement, Record, Roofline, content_digest
from agentic_compression.runtimes import Runtime
from agentic_compression.storage import confined, write_record

__all__ = ["MachineCeilings", "machine_ceilings", "roofline_of"]


@dataclass(frozen=True)
class MachineCeilings:
    """What this machine can do with so many threads: bytes a second of reading memory, operations a second of a large
    product of matrices in ``dtype``.
    """

    dtype: str
    bandwidth_bytes_per_s: float
    flops_per_s: float


class _Rate(Record):
    """One ceiling as it is kept."""

    of: str = Field(description="what was measured, for whoever opens the file")
    per_second: float = Field(gt=0, allow_inf_nan=False)


def machine_ceilings(device: str, threads: int, dtype: str, store: Path | None = None) -> MachineCeilings:
    """The ceilings, measured in about a second where they are not known yet.

    Args:
        device: ``cpu`` or ``cuda:n``.
        threads: of the CPU.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        store: folder that keeps them, one file a rate, machine, device and number of threads; None keeps them for
            this process alone. Delete the folder to measure again.

    Raises:
        ConfigurationError: when the type is none of these.
    """
    return MachineCeilings(
        dtype=dtype,
        bandwidth_bytes_per_s=_known(device, threads, "memory", store),
        flops_per_s=_known(device, threads, dtype, store),
    )


def roofline_of(runtime: Runtime, latency: LatencyMeasurement, ceilings: MachineCeilings) -> Roofline:
    """The achieved rates of a measured request over the ceilings; none is cut off at 1."""
    cost = runtime.token_cost()
    decode = cost.bytes_read / (latency.decode_ms_per_token.value / 1e3)
    prefill = cost.prefill_flops(latency.prompt_tokens) / (latency.ttft_ms.value / 1e3)
    return Roofline(
        bytes_per_token=cost.bytes_read,
        decode_bytes_per_s=decode,
        bandwidth_bytes_per_s=ceilings.bandwidth_bytes_per_s,
        of_bandwidth=decode / ceilings.bandwidth_bytes_per_s,
        flops_per_token=cost.flops,
        prefill_flops_per_s=prefill,
        peak_flops_per_s=ceilings.flops_per_s,
        of_peak=prefill / ceilings.flops_per_s,
        dtype=ceilings.dtype,
    )


def _known(device: str, threads: int, what: str, store: Path | None) -> float:
    """A rate from its file, or measured and kept there."""
    if store is None:
        return _measured(device, threads, what)
    file = confined(store, f"{_key(device, threads, what)}.json")
    try:
        return _Rate.model_validate_json(file.read_text(encoding="utf-8")).per_second
    except (OSError, ValidationError, UnicodeDecodeError):  # absent or damaged
        rate = _measured(device, threads, what)
    of = f"{what} on {device}, {threads} threads, {cpu_model()}"
    write_record(file, _Rate(of=of, per_second=rate))
    return rate


@cache
def _measured(device: str, threads: int, what: str) -> float:
    """Once a process: bytes a second of ``memory``, or operations a second in a type."""
    from agentic_compression.runtimes.machine_speed import matrix_flops, reading_bandwidth, with_threads

    with with_threads(threads):
        return reading_bandwidth(device) if what == "memory" else matrix_flops(what, device)


def _key(device: str, threads: int, what: str) -> str:
    """Of what the figure depends on; the host's name is no part, so that equal machines share it."""
    import torch

    name = "" if device == "cpu" else torch.cuda.get_device_name(device)
    machine = [platform.machine(), cpu_model(), usable_cores(), name, torch.__version__]
    return content_digest({"machine": machine, "device": device, "threads": threads, "what": what})
