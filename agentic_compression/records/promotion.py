"""Promotion: the policy, what is known of a version, the gate's verdict, and the journal of alias moves."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from agentic_compression.records.comparison import Comparison
from agentic_compression.records.evaluation import Evaluation, Objectives
from agentic_compression.records.record import Record
from agentic_compression.records.study import Constraint

__all__ = [
    "ALIASES",
    "AliasRule",
    "Contenders",
    "GateCheck",
    "GateVerdict",
    "JournalEntry",
    "Promoted",
    "PromotionAction",
    "PromotionPolicy",
    "PromotionRequest",
    "SmokeResult",
    "VersionEvidence",
]

ALIASES = ("champion", "most-accurate", "fastest", "smallest", "leanest", "greenest")

PromotionAction = Literal["follow", "promote", "approve", "rollback"]
"""``follow``: the frontier moved; the others were done by hand."""


class AliasRule(Record):
    """What an alias stands for."""

    by: Literal["knee", "weights", "accuracy", "latency_ms", "memory_gb", "model_size_gb", "co2_grams"] = Field(
        description="the best compromise, the least weighted loss, or the best of one objective"
    )
    weights: dict[str, float] = Field(default_factory=dict, description="by objective; exactly for 'by: weights'")
    guard_accuracy: bool = Field(
        default=True, description="refuse a challenger that is significantly less accurate than the incumbent"
    )

    @model_validator(mode="after")
    def _check_weights(self) -> AliasRule:
        allowed = tuple(Objectives.model_fields)
        if (self.by == "weights") != bool(self.weights):
            raise ValueError(f"weights go with 'by: weights', got by: {self.by} and weights {self.weights}")
        if unknown := sorted(set(self.weights) - set(allowed)):
            raise ValueError(f"weights are of {', '.join(allowed)}, got {', '.join(unknown)}")
        if self.weights and (min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0):
            raise ValueError(f"weights must not be negative and not all be 0, got {self.weights}")
        return self


def _default_rules() -> dict[str, AliasRule]:
    return {
        "champion": AliasRule(by="knee"),
        "most-accurate": AliasRule(by="accuracy"),
        "fastest": AliasRule(by="latency_ms"),
        "smallest": AliasRule(by="model_size_gb"),
        "leanest": AliasRule(by="memory_gb"),
        "greenest": AliasRule(by="co2_grams"),
    }


class PromotionPolicy(Record):
    """Who may hold an alias (``configs/promotion.yaml``, or ``promotion.yaml`` in the state root)."""

    aliases: dict[str, AliasRule] = Field(default_factory=_default_rules, min_length=1)
    constraints: tuple[Constraint, ...] = Field(default=(), description="beside those of the study")
    significance: float = Field(
        default=0.05, gt=0, le=0.05, description="largest p at which a lower accuracy counts as worse"
    )
    least_items: int = Field(
        default=25, ge=1, description="with fewer items in common, not worse would only mean not known"
    )
    require_approval: bool = Field(default=False, description="moves wait for 'acf registry approve'")

    @field_validator("constraints", mode="before")
    @classmethod
    def _read_constraints(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(Constraint.parse(item) if isinstance(item, str) else item for item in value)
        return value

    @field_validator("aliases")
    @classmethod
    def _check_names(cls, value: dict[str, AliasRule]) -> dict[str, AliasRule]:
        if unknown := sorted(set(value) - set(ALIASES)):
            raise ValueError(f"aliases are {', '.join(ALIASES)}, got {', '.join(unknown)}")
        return value


class VersionEvidence(Record):
    """What is known of a registered version when an alias is to move to it or away from it."""

    model: str
    version: str
    study: str
    episode: int
    strategy: str = ""
    state: str = Field(description="frontier, superseded, withheld, or removed with its study")
    objectives: Objectives | None = Field(default=None, description="accuracy on the report items where there are any")
    baseline: Objectives | None = Field(default=None, description="of its study, for constraints that are relative")
    constraints: tuple[Constraint, ...] = Field(default=(), description="of its study")
    evaluation: Evaluation | None = Field(default=None, description="the full one, its answers to the report items")
    missing: str = Field(default="", description="why there is no evaluation, or not the full one")

    @property
    def name(self) -> str:
        """``demo--demo/3``."""
        return f"{self.model}/{self.version}"


class GateCheck(Record):
    """One condition of the gate, with the numbers that decided it."""

    name: str
    passed: bool
    detail: str


class GateVerdict(Record):
    """Whether a version may take an alias."""

    model: str
    alias: str
    version: str
    incumbent: str | None = Field(default=None, description="version that holds the alias now")
    checks: tuple[GateCheck, ...]
    comparison: Comparison | None = Field(default=None, description="with the incumbent, on the items in common")

    @property
    def passed(self) -> bool:
        """All conditions hold."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """The conditions that do not hold, in one line."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)


class JournalEntry(Record):
    """One line of the journal of alias moves: an intention, its end, a request, or a refusal of one."""

    id: str = Field(description="shared by an intention and its end")
    kind: Literal["intended", "done", "requested", "rejected"]
    model: str
    action: PromotionAction
    before: dict[str, str] = Field(default_factory=dict, description="holders of the moved aliases; empty: none")
    after: dict[str, str] = Field(default_factory=dict, description="versions they move to; empty: none")
    who: str = ""
    at: str = Field(default="", description="UTC, ISO 8601")
    why: str = ""
    study: str = ""
    forced: bool = False
    undoes: str = Field(default="", description="the move that a rollback takes back")
    automatic: bool = Field(default=False, description="no person chose it: a failed smoke test took the move back")
    request: str = Field(default="", description="the request that an approval completes")
    recovered: bool = Field(default=False, description="carried out by a later process than the one that intended it")
    born: int = Field(default=0, description="when the registered model was made, ms since 1970 UTC; 0: not noted")

    @property
    def withdrawn(self) -> bool:
        """The study that asked for it took the request back; no person refused it."""
        return self.kind == "rejected" and bool(self.study)

    def is_of(self, made: int | None) -> bool:
        """Whether it speaks of the registered model that was made then, and not of a former one of that name.

        Args:
            made: ms since 1970 UTC; None: there is none.
        """
        if made is None:
            return False
        if self.born:
            return self.born == made
        return not self.at or datetime.fromisoformat(self.at).timestamp() * 1000 >= made


class PromotionRequest(Record):
    """What the promotion pipeline is asked to do."""

    model: str = Field(min_length=1)
    version: str = Field(pattern=r"^\d+$")
    alias: str
    reason: str = ""
    force: bool = Field(default=False, description="promote although the gate refuses; needs a reason")
    require_approval: bool = False
    policy: PromotionPolicy | None = Field(default=None, description="the state root's own when left out")

    @model_validator(mode="after")
    def _forced_for_a_reason(self) -> PromotionRequest:
        if self.force and not self.reason.strip():
            raise ValueError("a forced promotion needs a reason")
        return self


class Contenders(Record):
    """Challenger and incumbent, as they were measured for a promotion."""

    challenger: VersionEvidence
    incumbent: VersionEvidence | None = None


class SmokeResult(Record):
    """What a promoted model answered through MLflow, beside its own greedy answer."""

    uri: str
    prompt: str
    answer: str = ""
    expected: str = ""
    passed: bool
    error: str = ""


class Promoted(Record):
    """What became of a promotion."""

    status: Literal["promoted", "unchanged", "requested", "refused", "rolled back"]
    verdict: GateVerdict
    entry: JournalEntry | None = None
    smoke: SmokeResult | None = None
