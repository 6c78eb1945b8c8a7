"""The Muon optimizer for the demo model's matrices, batched over matrices of one shape.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, found by a quintic Newton-Schulz iteration. ``torch.optim.Muon`` does the same one matrix
at a time on transposed views, which costs more than the whole training step on a CPU; here it is a quarter of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz coefficients of the reference, which maximise the slope at zero."""


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Moves the singular values of each matrix close to one.

    Args:
        matrices: Shape (count, rows, columns).
        steps: Iterations; five bring singular values into about 0.7..1.2.

    Returns:
        The orthogonalised matrices, same shape.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT.contiguous(), steps).mT
    a, b, c = COEFFICIENTS
    current = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = torch.bmm(current, current.mT)
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        current = torch.baddbmm(current, update, current, beta=a)
    return current


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    The step of a matrix is scaled by 0.2 sqrt(max(rows, columns)), so that its size matches AdamW's and both can
    share a learning rate (Liu et al., 2025, "Muon is scalable for LLM training").
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        """Groups the parameters by shape.

        Args:
            parameters: Matrices.
            lr: Learning rate.
            weight_decay: Decoupled weight decay.
            momentum: Decay of the gradient's moving sum.
        """
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([{"params": members} for members in by_shape.values()], defaults)
        self._low = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates every matrix that has a gradient.

        Args:
            closure: Unused; there for the optimizer interface.
        """
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            if not members:
                continue
            directions = []
            for parameter in members:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                moving: torch.Tensor = state["momentum"]
                moving.lerp_(parameter.grad, 1.0 - group["momentum"])
                directions.append(parameter.grad.lerp(moving, group["momentum"]))
            steps = orthogonalise(torch.stack(directions).to(self._low)).float()
            size = group["lr"] * 0.2 * math.sqrt(max(members[0].shape))
            for parameter, direction in zip(members, steps, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=size)
