"""What walking a model's blocks with calibration text takes, for methods to add their own work to."""

from __future__ import annotations

from agentic_compression.methods.interface import Needs, Workload

__all__ = ["walking_needs"]

_FLOPS_PER_SECOND = 2e10  # of the reference core that estimates count in
_WINDOW_TOKENS = 256
_WINDOW_SECONDS = 1e-2  # to run a block on a window, however small the model
_PASSES = 2  # a block runs once to see its inputs and once more, changed, for those of the next


def walking_needs(workload: Workload, *, matrices: bool) -> Needs:
    """Bytes and seconds of ``walk_blocks``, the model included.

    Args:
        workload: the model's shape and the calibration text.
        matrices: whether the second moments of the inputs are kept as matrices: four a block, three of the width of the
            residual stream and one of the MLP's.
    """
    moments = 3 * workload.hidden**2 + workload.widest_input**2 if matrices else workload.widest_input
    # Inputs of a block, and the activations of the windows that run at once.
    states = 3 * workload.calibration_tokens * workload.hidden * workload.bytes_per_parameter
    operations = 2 * workload.calibration_tokens * (_PASSES * workload.linear_parameters + workload.blocks * moments)
    runs = _PASSES * workload.blocks * workload.calibration_tokens / _WINDOW_TOKENS
    return Needs(
        peak_bytes=workload.weight_bytes + 4 * moments + states,
        seconds=operations / (_FLOPS_PER_SECOND * max(workload.threads, 1)) + runs * _WINDOW_SECONDS,
    )
