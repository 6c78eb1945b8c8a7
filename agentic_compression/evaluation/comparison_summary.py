"""A comparison in one sentence."""

from __future__ import annotations

import math

from agentic_compression.records import Comparison, Estimate

__all__ = ["rounded", "summary_of"]


def summary_of(comparison: Comparison) -> str:
    """The candidate less the baseline, in points of accuracy; better or worse is the verdict alone. For example::

    −0.4 points, 95 % CI [−0.9, +0.1], 2.1× faster, 38 % less energy: indistinguishable at n=600;
    about 4,200 items would settle it
    """
    parts = [_accuracy(comparison.accuracy), *_costs(comparison)]
    return f"{', '.join(parts)}: {_conclusion(comparison)}"


def rounded(count: int) -> str:
    """Two significant digits, rounded up, thousands apart: 4,137 is ``4,200``."""
    digits = max(0, len(str(count)) - 2)
    return f"{math.ceil(count / 10**digits) * 10**digits:,}"


def _accuracy(difference: Estimate) -> str:
    none = abs(difference.value) < 1e-12  # what is left of tasks that cancel out
    words = "no difference in accuracy" if none else f"{_points(difference.value, '+')} points"
    return f"{words}, 95 % CI [{_points(difference.low, '+')}, {_points(difference.high, '+')}]"


def _points(share: float, sign: str = "") -> str:
    text = format(100 * share, f"{sign}.1f" if abs(share) >= 0.0005 else f"{sign}.2f")
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _costs(comparison: Comparison) -> list[str]:
    words, ratios = [], comparison.ratios
    if (latency := ratios.get("latency_ms")) is not None:
        doubt = any("had not settled" in warning for warning in comparison.warnings)
        words.append(_times(latency, "faster", "slower", "as fast") + (" (times unsettled)" if doubt else ""))
    if (size := ratios.get("model_size_gb")) is not None and size.value != 1:
        words.append(_times(size, "smaller", "larger", "as large"))
    if (energy := ratios.get("joules_per_request")) is not None:
        words.append(_percent(energy))
    return words


def _times(ratio: Estimate, less: str, more: str, same: str) -> str:
    """``2.1× faster``; ``as fast`` where the interval holds 1."""
    if ratio.low <= 1 <= ratio.high:
        return same
    factor, direction = max(ratio.value, 1 / ratio.value), less if ratio.value < 1 else more
    return f"{factor:.1f}× {direction}" if factor >= 1.05 else f"{factor:.2f}× {direction}"


def _percent(ratio: Estimate) -> str:
    if ratio.low <= 1 <= ratio.high:
        return "as much energy"
    return f"{abs(1 - ratio.value):.0%}".replace("%", " %") + (" less energy" if ratio.value < 1 else " more energy")


def _conclusion(comparison: Comparison) -> str:
    words = f"{comparison.verdict} at n={comparison.accuracy.n:,}"
    if comparison.verdict != "indistinguishable":
        return f"{words} (p={comparison.p_value:.2g})"
    if comparison.items_needed is not None:
        return f"{words}; about {rounded(comparison.items_needed)} items would settle it"
    if comparison.detectable_drop is not None:
        return f"{words}; a drop of {_points(comparison.detectable_drop)} points would have shown with 80 % power"
    return words
