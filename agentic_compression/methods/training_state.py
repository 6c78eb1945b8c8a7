"""The state of a training run on disk: enough to go on exactly where a killed process stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from agentic_compression.checkpoints.tensor_files import save_tensors

__all__ = ["Position", "digest_of", "read_state", "write_state"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: updates done.
        best_loss: smallest held-out loss so far.
        best_step: the step it was measured after.
        lowest: smallest held-out loss since training began, larger than ``best_loss`` while it repairs what its first
            large steps broke.
        waited: evaluations since ``lowest``.
        finished: whether training has ended.
        curve: ``(step, held-out loss)`` of every evaluation.
    """

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    lowest: float = float("inf")
    waited: int = 0
    finished: bool = False
    curve: tuple[tuple[int, float], ...] = ()


def digest_of(facts: object, tensors: Sequence[torch.Tensor]) -> str:
    """SHA-256 (first 16 hex digits) of what decides a run: another run's state is never taken up."""
    digest = hashlib.sha256(repr(facts).encode())
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_state(
    path: Path,
    position: Position,
    parameters: Mapping[str, torch.Tensor],
    best: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write parameters, best parameters, the optimizer's moments, the random state and the position, atomically.

    Args:
        path: the safetensors file; the position is JSON in its header.
        position: where the run is.
        parameters: as they are now, by name.
        best: as they were when the held-out loss was smallest.
        optimizer: Adam with these parameters.
    """
    tensors = {f"parameter.{name}": tensor.detach() for name, tensor in parameters.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in (*_MOMENTS, "step") if moment in state}
    tensors["random"] = torch.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_tensors(contiguous, temporary, {"position": json.dumps(asdict(position))})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_state(
    path: Path, parameters: Mapping[str, torch.Tensor], best: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> Position | None:
    """Put a stored state back into parameters, best parameters and optimizer; None when there is none to read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            position = _position(json.loads(file.metadata()["position"]))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None  # a damaged file costs the work since the start, nothing else
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[f"parameter.{name}"])
            best[name] = stored[f"best.{name}"]
            moments = {key: stored[f"{key}.{name}"] for key in (*_MOMENTS, "step") if f"{key}.{name}" in stored}
            if moments:
                moved = {key: value.to(parameter.device) for key, value in moments.items() if key != "step"}
                optimizer.state[parameter] = moved | {"step": moments["step"]}
    torch.set_rng_state(stored["random"])
    return position


def _position(values: dict[str, Any]) -> Position:
    curve = tuple((int(step), float(loss)) for step, loss in values.pop("curve"))
    return Position(curve=curve, **values)
