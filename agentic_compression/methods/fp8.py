"""FP8: weights and activations in 8-bit floating point (E4M3).

Idea: numbers of 4 exponent and 3 mantissa bits keep the relative precision of small weights that evenly spaced levels
lose, and tensor cores of compute capability 8.9 (Ada, Hopper) and later multiply them twice as fast as 16-bit ones.
Each output row of a weight gets one scale from its largest magnitude, and so does, while the model runs, every row of
activations (Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv:2209.05433). No data is needed.

Changes: all linears except the output embedding. Scales are rounded up to bfloat16 before the weights are. The
checkpoint is in compressed-tensors' ``float-quantized`` format, which vLLM and transformers load. It is offered only
where a device has such tensor cores: elsewhere the same numbers can be computed and only memory is saved. Not covered:
embeddings, norms, the key-value cache and products inside attention stay in 16 bits.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from functools import cache
from typing import Any

from agentic_compression.methods.interface import (
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Workload,
)

__all__ = ["METHOD", "Fp8Config", "apply", "quantize"]

_CAPABILITY = (8, 9)


class Fp8Config(MethodConfig):
    """FP8 has no parameters."""


def apply(model: Any, config: Fp8Config, context: CompressionContext) -> Compressed:
    """Quantize every target linear, one after the other, in place.

    Args:
        model: a causal language model; weights ``(out_features, in_features)``.
        config: empty.
        context: progress; no calibration data is used.
    """
    from agentic_compression.checkpoints.fp8_linear import Fp8Linear
    from agentic_compression.methods.replacement import replace_linears

    def replacement(linear: Any) -> Any:
        codes, scale = quantize(linear.weight.detach())
        return Fp8Linear(codes, scale, linear.bias)

    replace_linears(model, "fp8", context, replacement)
    return Compressed(model=model)


def quantize(weight: Any) -> tuple[Any, Any]:
    """Round each row of a weight ``(out_features, in_features)`` to the nearest E4M3 numbers, halves to even.

    Returns:
        float8_e4m3fn ``(out_features, in_features)`` and scales ``(out_features, 1)``, float32 numbers that bfloat16
        holds; a row of zeros has scale 1.
    """
    import torch

    from agentic_compression.checkpoints.fp8_linear import LARGEST
    from agentic_compression.methods.rounding import round_up_to_bfloat16

    wide = weight.to(torch.float32)
    scale = round_up_to_bfloat16(wide.abs().amax(dim=1, keepdim=True) / LARGEST)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (wide / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def _needs(workload: Workload, config: Fp8Config) -> Needs:
    """The model, and of one layer the float32 copy, its magnitudes and quotients; the device's time does not count."""
    layer = workload.widest_input * workload.hidden
    return Needs(peak_bytes=workload.weight_bytes + 12 * layer, seconds=0.05 + workload.linear_parameters / 1.5e8)


@cache
def unavailable() -> str | None:
    """Why FP8 tensor cores cannot be used here, or None. Asks the driver and imports no torch."""
    needed = "needs an NVIDIA GPU of compute capability 8.9 or later (Ada, Hopper)"
    found = _capabilities()
    if not found:
        return f"{needed}; no NVIDIA driver with a GPU was found on this machine"
    if max(found) < _CAPABILITY:
        shown = ", ".join(f"{major}.{minor}" for major, minor in found)
        return f"{needed}; this machine's have {shown}"
    torch_version = importlib.metadata.version("torch")
    if torch_version.endswith("+cpu"):
        return f"needs a torch built for CUDA, got {torch_version}; install it from https://pytorch.org/get-started"
    return None


def _capabilities() -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs, from NVML, which unlike CUDA may be asked before a process forks."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
                continue
            if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) == 0:
                found.append((major.value, minor.value))
        return found
    finally:
        nvml.nvmlShutdown()


METHOD = Method(
    name="fp8",
    category="quantization",
    config=Fp8Config,
    apply=apply,
    summary="8-bit floating-point weights and activations for recent NVIDIA GPUs; nearly lossless, needs no data",
    paper="Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv:2209.05433",
    needs_gpu=True,
    may_follow=("pruning", "low_rank", "healing"),
    needs=_needs,
    unavailable=unavailable,
)
