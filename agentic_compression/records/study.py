"""A study: one model, dataset, objectives, constraints and budget. What a user writes, validated."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from agentic_compression.records.evaluation import EvaluationSettings, Objectives
from agentic_compression.records.record import Record

__all__ = ["PLANNERS", "Constraint", "StudyConfig", "TerminationReason"]

STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
PLANNERS = ("auto", "greybox", "hybrid", "llm", "tpe", "gp", "nsga2", "bandit", "pbt", "random")

TerminationReason = Literal[
    "max_episodes",
    "time_budget",
    "carbon_budget",
    "converged",
    "target_met",
    "planner_end",
    "search_space_exhausted",
    "interrupted",
]

_CONSTRAINT = re.compile(r"^\s*([a-z][a-z0-9_]*)\s*(<=|>=)\s*([0-9.eE+-]+)\s*$")
_QUANTITIES = ("accuracy_drop", "size_ratio", *Objectives.model_fields)


class Constraint(Record):
    """``accuracy_drop<=0.02``: a bound on an objective, on accuracy's drop or on the size's ratio to the baseline."""

    quantity: str
    operator: Literal["<=", ">="]
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read ``quantity<=number`` or ``quantity>=number``.

        Raises:
            ValueError: with what is allowed.
        """
        match = _CONSTRAINT.match(text)
        if match is None or match[1] not in _QUANTITIES:
            allowed = ", ".join(_QUANTITIES)
            raise ValueError(
                f"a constraint is QUANTITY<=NUMBER or QUANTITY>=NUMBER, got {text!r}; quantities: {allowed}"
            )
        return cls(quantity=match[1], operator=match[2], bound=float(match[3]))

    def __str__(self) -> str:
        return f"{self.quantity}{self.operator}{self.bound:g}"

    def holds(self, objectives: Objectives, baseline: Objectives) -> bool:
        """Whether these objectives satisfy the bound. ``accuracy_drop`` is baseline minus candidate, in [−1, 1]."""
        if self.quantity == "accuracy_drop":
            value = baseline.accuracy - objectives.accuracy
        elif self.quantity == "size_ratio":
            value = objectives.model_size_gb / baseline.model_size_gb
        else:
            value = float(getattr(objectives, self.quantity))
        return value <= self.bound + 1e-12 if self.operator == "<=" else value >= self.bound - 1e-12


class StudyConfig(Record):
    """One user-facing study file (``configs/studies/*.yaml``), or the options of ``acf run``."""

    model: str = Field(min_length=1, max_length=512, description="Hub id, local folder, models:/name@alias, or 'demo'")
    dataset: str = Field(min_length=1, max_length=512, description="benchmark name(s), local file, or 'demo'")
    name: str = Field(
        default="",
        pattern=rf"{STUDY_NAME}|^$",
        description="derived from model and dataset when empty",
    )
    episodes: int = Field(
        default=6, ge=1, le=100_000, description="compressed episodes to reach; the baseline is extra"
    )
    planner: Literal["auto", "greybox", "hybrid", "llm", "tpe", "gp", "nsga2", "bandit", "pbt", "random"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**31)
    budget_hours: float | None = Field(default=None, gt=0)
    carbon_budget_kg: float | None = Field(default=None, gt=0)
    objective: str = Field(default="", max_length=4000, description="the user's wish in natural language")
    constraints: tuple[Constraint, ...] = ()
    benchmark_dir: str | None = Field(default=None, description="folder of local copies of named benchmarks")
    calibration: str = Field(
        default="train",
        min_length=1,
        max_length=512,
        description="text that methods calibrate and train on: 'train' (the dataset's own training split), 'wikitext', "
        "or a .jsonl or .txt file; evaluated items are left out of it",
    )
    calibration_packing: Literal["documents", "packed"] = Field(
        default="documents", description="one document a window, or documents joined into windows of equal length"
    )
    max_stages: int = Field(default=2, ge=1, le=8)
    episode_timeout_s: float = Field(default=3600.0, gt=0, description="for compressing and for evaluating, each")
    trust_remote_code: bool = False
    target_hypervolume: float | None = Field(default=None, gt=0, description="end with target_met when reached")
    disk_quota_gb: float = Field(default=50.0, gt=0)
    tasks: tuple[str, ...] = Field(default=(), description="only these of the dataset's tasks; all when empty")
    screening: bool = Field(
        default=True, description="reject on cheap evidence what cannot change the frontier; seeds are always measured"
    )
    report_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the items kept for the report; plans never see them"
    )
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)

    @field_validator("constraints", mode="before")
    @classmethod
    def _read_constraints(cls, value: object) -> object:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list | tuple):
            return tuple(Constraint.parse(item) if isinstance(item, str) else item for item in value)
        return value
