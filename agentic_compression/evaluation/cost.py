"""CO2e and money of an amount of electricity.

Both count what the building draws: the machine's energy times its power usage effectiveness (PUE; 1.0 unless set,
which is a machine on a desk; data centres state 1.1 to 1.6). They are as measured, or as estimated, as the joules.
"""

from __future__ import annotations

__all__ = ["JOULES_PER_KWH", "co2_grams", "electricity_cost"]

JOULES_PER_KWH = 3.6e6


def co2_grams(joules: float, grams_per_kwh: float, pue: float = 1.0) -> float:
    """Grams of CO2e of ``joules`` at the machine, with the grid's factor."""
    return joules * pue / JOULES_PER_KWH * grams_per_kwh


def electricity_cost(joules: float, price_per_kwh: float, pue: float = 1.0) -> float:
    """What ``joules`` at the machine cost, in the price's currency."""
    return joules * pue / JOULES_PER_KWH * price_per_kwh
