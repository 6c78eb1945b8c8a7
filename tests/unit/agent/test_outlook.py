"""What the optimizer expects of given strategies, beside what it says of its own candidates."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import pytest

from agentic_compression.agent.outlook import expectations, loss_of, outlook_of
from agentic_compression.planning.greybox import GreyboxPlanner
from agentic_compression.planning.grid import canonical
from agentic_compression.records import Expected, Strategy
from tests.unit.agent.desks import desk_for

EXPECTED: Expected = {
    "accuracy": (0.97, 0.95, 0.99),
    "latency_ms": (0.5, 0.25, 1.0),
    "memory_gb": (0.5, 0.4, 0.6),
    "model_size_gb": (0.3, 0.29, 0.31),
    "co2_grams": (0.5, 0.3, 0.8),
}


def test_they_are_the_optimizers_own(home: Path) -> None:
    desk = desk_for("balanced", max_stages=1)
    own = GreyboxPlanner().candidates(desk.space, [], 0, desk.situation(None), 3000)
    strategies = [candidate.strategy for candidate in own[:: max(1, len(own) // 25)]]
    found = expectations(desk, strategies, [])
    by_key = {candidate.strategy.key: candidate.expected for candidate in own}
    assert len(found) == len(strategies)
    for key, expected in found.items():
        for objective, triple in expected.items():
            assert triple == pytest.approx(by_key[key][objective], rel=0.05), (key, objective)


def test_healing_between_two_stages_can_be_told(home: Path) -> None:
    desk = desk_for("balanced")
    healed = Strategy.parse("drop_channels:share=0.2 | lora:rank=8,steps=100 | gguf:type=Q4_K_M")
    plain = Strategy.parse("drop_channels:share=0.2 | gguf:type=Q4_K_M")
    found = expectations(desk, [healed, plain], [])
    assert len(found) == 2
    better, worse = (found[canonical(desk.healing_space, item).key]["accuracy"][0] for item in (healed, plain))
    assert better > worse


def test_the_chance_is_that_of_the_intervals(home: Path) -> None:
    outlook = outlook_of(desk_for("losing under 4 points"), EXPECTED, None)
    assert outlook.accuracy_drop == pytest.approx((0.03, 0.01, 0.05))
    assert outlook.chance == pytest.approx(NormalDist(0.97, 0.04 / 3.92).cdf(0.97 + 0.01), abs=1e-6)


@pytest.mark.parametrize(("text", "low", "high"), [("2x faster", 0.49, 0.51), ("10x faster", 0, 0.01),
                                                    ("half the size", 0.999, 1), ("10x smaller", 0, 1e-6)])  # fmt: skip
def test_bounds_in_proportion_have_a_chance_before_the_baseline(text: str, low: float, high: float, home: Path) -> None:
    assert low <= outlook_of(desk_for(text), EXPECTED, None).chance <= high


def test_weights_decide_which_is_better(home: Path) -> None:
    small = {"accuracy_drop": 0.1, "size_ratio": 0.1, "latency_ratio": 1.0, "memory_ratio": 0.2, "co2_ratio": 1.0}
    quick = {"accuracy_drop": 0.0, "size_ratio": 1.0, "latency_ratio": 0.2, "memory_ratio": 0.9, "co2_ratio": 0.2}
    smallest, fastest = desk_for("smallest model").wish.weights, desk_for("fastest model").wish.weights
    assert loss_of(small, smallest) < loss_of(quick, smallest)
    assert loss_of(quick, fastest) < loss_of(small, fastest)
