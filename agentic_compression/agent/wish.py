"""What an objective in natural language asks for: statements, each with the words it was read from."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from agentic_compression.records import Constraint, Objectives, Record

__all__ = ["QUANTITIES", "Bound", "Goal", "Quantity", "Statement", "Wish"]

Goal = Literal["accuracy", "latency_ms", "memory_gb", "model_size_gb", "co2_grams"]
Relative = Literal["accuracy_ratio", "latency_ratio", "memory_ratio", "co2_ratio"]
Quantity = Literal[
    "accuracy",
    "latency_ms",
    "memory_gb",
    "model_size_gb",
    "co2_grams",
    "accuracy_drop",
    "size_ratio",
    "accuracy_ratio",
    "latency_ratio",
    "memory_ratio",
    "co2_ratio",
    "carbon_budget_grams",
    "budget_hours",
    "episodes",
]
QUANTITIES: tuple[str, ...] = get_args(Quantity)

_OBJECTIVE_OF: dict[str, str] = {
    "accuracy_ratio": "accuracy",
    "latency_ratio": "latency_ms",
    "memory_ratio": "memory_gb",
    "co2_ratio": "co2_grams",
}


class Statement(Record):
    """One thing that the text says: a bound on a quantity, or (``best``) an objective to go for."""

    quote: str = Field(min_length=1, max_length=300, description="the words of the objective that say it")
    quantity: Quantity
    operator: Literal["<=", ">=", "best"]
    value: float | None = Field(
        default=None, allow_inf_nan=False, description="None exactly where the operator is best"
    )


class Bound(Record):
    """A bound in proportion to the baseline; it becomes a constraint of a study once the baseline is measured."""

    quantity: Relative
    operator: Literal["<=", ">="]
    bound: float = Field(gt=0)

    def __str__(self) -> str:
        return f"{self.quantity}{self.operator}{self.bound:g}"

    def against(self, baseline: Objectives) -> Constraint:
        """The same in the objective's own unit."""
        name = _OBJECTIVE_OF[self.quantity]
        return Constraint(quantity=name, operator=self.operator, bound=self.bound * float(getattr(baseline, name)))

    def as_ratio(self) -> Constraint:
        """The same for a baseline of which every objective is 1."""
        return Constraint(quantity=_OBJECTIVE_OF[self.quantity], operator=self.operator, bound=self.bound)


class Wish(Record):
    """An objective, read: what is required, what is preferred, what may be spent, and what nobody understood."""

    text: str = Field(max_length=4000)
    constraints: tuple[Constraint, ...] = ()
    relative: tuple[Bound, ...] = ()
    weights: dict[Goal, float] = Field(description="of the objectives in choosing among what satisfies; their sum is 1")
    carbon_budget_grams: float | None = Field(default=None, gt=0)
    budget_hours: float | None = Field(default=None, gt=0)
    episodes: int | None = Field(default=None, ge=1)
    understood: tuple[tuple[str, str], ...] = Field(default=(), description="words of the text, and what they mean")
    not_understood: tuple[str, ...] = Field(default=(), description="parts of the text that change nothing")
    reader: Literal["rules", "language model"] = "rules"
    note: str = Field(default="", description="why the rules read it although a language model was asked; its cost")

    def constraints_for(self, baseline: Objectives | None) -> tuple[Constraint, ...]:
        """All constraints, those in proportion to the baseline once it is known."""
        known = tuple(bound.against(baseline) for bound in self.relative) if baseline is not None else ()
        return (*self.constraints, *known)
