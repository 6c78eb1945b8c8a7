from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.evaluation.cost import JOULES_PER_KWH, co2_grams, electricity_cost

ENERGY = st.floats(0, 1e9)


def test_a_kilowatt_hour_is_the_factor_and_the_price() -> None:
    assert co2_grams(1000 * 3600, 369.473) == pytest.approx(369.473)
    assert electricity_cost(1000 * 3600, 0.25) == pytest.approx(0.25)
    assert electricity_cost(JOULES_PER_KWH, 0.25, pue=1.5) == pytest.approx(0.375)


@given(first=ENERGY, second=ENERGY, rate=st.floats(0, 2000), pue=st.floats(1, 3))
def test_parts_add_up_to_the_whole(first: float, second: float, rate: float, pue: float) -> None:
    for price in (co2_grams, electricity_cost):
        parts = price(first, rate, pue) + price(second, rate, pue)
        assert price(first + second, rate, pue) == pytest.approx(parts)
        assert price(first, rate, pue) >= price(first, rate)
