"""Desks of the demo model with scripted work: everything is real but compressing and measuring."""

from __future__ import annotations

from collections.abc import Callable

from agentic_compression.agent.desk import Desk, open_desk
from agentic_compression.agent.rules import read_by_rules
from agentic_compression.records import Evaluation, Strategy, StudyConfig
from agentic_compression.settings import get_settings
from agentic_compression.study import Workbench
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_evaluation
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor

__all__ = ["bench_of", "by_bits", "desk_for"]


def by_bits(strategy: Strategy) -> Evaluation | str:
    """The fewer bits, the smaller and the less accurate; healing brings half of the loss back."""
    text = strategy.label
    bits = next((b for b in (2, 3, 4, 8) if f"bits={b}" in text or f"Q{b}" in text), 16)
    accuracy = {16: 0.95, 8: 0.95, 4: 0.94, 3: 0.85, 2: 0.4}[bits]
    if any(name in text for name in ("lora", "distill")):
        accuracy = (accuracy + 0.95) / 2
    made = make_evaluation(accuracy=round(accuracy, 2), latency_ms=10 * (0.5 + bits / 32), size_bytes=bits * 500_000)
    names = tuple(f"item {number}" for number in range(100))
    scores = tuple(score.model_copy(update={"items": names}) for score in made.benchmarks)
    return made.model_copy(update={"benchmarks": scores})


def bench_of(script: Callable[[Strategy], Evaluation | str] = by_bits) -> Workbench:
    """History in memory, scripted children, no registry."""
    return Workbench(get_settings(), MemoryHistory(), ScriptedSupervisor(script))


def desk_for(objective: str, bench: Workbench | None = None, **study: object) -> Desk:
    """A desk in the current state root."""
    values = {"model": "demo", "dataset": "demo", "name": "agents", "objective": objective, "screening": False}
    config = StudyConfig.model_validate({**values, **study})
    return open_desk(config, read_by_rules(objective), bench or bench_of())
