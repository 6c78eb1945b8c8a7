"""How much memory a compression takes, whole and stage by stage, measured while it runs."""

from __future__ import annotations

from agentic_compression.resident_memory import give_back_heap, peak_bytes, reset_peak, resident_bytes

__all__ = ["Growth"]


class Growth:
    """Growth of this process's resident set since this object was made; on a GPU, of the allocations there.

    The kernel keeps one peak. It is reset at the start of every stage, and what it was by then goes into the whole
    peak. Where it cannot be reset, a stage's peak is that of everything before it too.
    """

    def __init__(self, device: str) -> None:
        """Begin."""
        self._device = device if device.startswith("cuda") else None
        give_back_heap()
        self._before = self._now()
        self._largest = 0
        self._reset()

    def begin(self) -> None:
        """A stage begins."""
        self._largest = max(self._largest, self._read())
        self._reset()

    def end(self) -> int:
        """The stage's peak in bytes."""
        stage = max(0, self._read() - self._before)
        self._largest = max(self._largest, stage + self._before)
        return stage

    @property
    def peak(self) -> int:
        """The largest growth so far, in bytes."""
        return max(0, max(self._largest, self._read()) - self._before)

    def _now(self) -> int:
        if self._device is None:
            return resident_bytes()
        import torch

        return int(torch.cuda.memory_allocated(self._device))

    def _read(self) -> int:
        if self._device is None:
            return peak_bytes()
        import torch

        return int(torch.cuda.max_memory_allocated(self._device))

    def _reset(self) -> None:
        if self._device is None:
            reset_peak()
            return
        import torch

        torch.cuda.reset_peak_memory_stats(self._device)
