"""After a study: what came of the wish, what was learned, how far estimates were off, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydantic import Field

from agentic_compression.agent.desk import Desk, bench_for_planning, open_desk
from agentic_compression.agent.evaluation import best_solution
from agentic_compression.agent.healing import DistillationAgent, LoraAgent
from agentic_compression.agent.model_reader import read_objective
from agentic_compression.agent.outlook import expectations, outlook_of
from agentic_compression.agent.plan import CompressionPlan, Outlook, PlanItem
from agentic_compression.agent.planner import plan_file
from agentic_compression.errors import ConfigurationError
from agentic_compression.memory import (
    Finding,
    Recommendation,
    Workspace,
    findings,
    read_experiences,
    recommend,
    refresh_knowledge,
)
from agentic_compression.planning.greybox import GreyboxPlanner
from agentic_compression.planning.grid import canonical
from agentic_compression.records import EpisodeRecord, FrontierDocument, Record, Solution, Strategy, StudyConfig
from agentic_compression.spec import size_class
from agentic_compression.storage import write_record
from agentic_compression.study import Workbench

__all__ = ["NextExperiment", "Reflection", "frontier_of", "reflect_and_improve"]

_NEXT = 5
_FINDINGS = 12


class NextExperiment(Record):
    """A strategy that is worth trying next, and why."""

    strategy: Strategy
    proposed_by: str
    why: str
    outlook: Outlook | None = None


class Reflection(Record):
    """What a study has taught."""

    study: str
    objective: str
    served: bool = Field(description="whether something compressed satisfies every constraint")
    best: Solution | None = Field(default=None, description="what serves the wish best of what satisfies it")
    summary: str
    lessons: tuple[str, ...] = Field(default=(), description="of this study's estimates and failures")
    findings: tuple[Finding, ...] = Field(
        default=(), description="of all studies in memory, on the methods that this one used"
    )
    recommended: tuple[Recommendation, ...] = Field(default=(), description="by memory, for a study like this")
    next: tuple[NextExperiment, ...] = ()


def frontier_of(folder: Path) -> FrontierDocument:
    """The frontier that a study's folder holds.

    Raises:
        ConfigurationError: when there is none.
    """
    path = folder / "pareto_frontier.json"
    if not path.is_file():
        raise ConfigurationError(f"no frontier of study {folder.name!r} (looked for {path}); see: acf analyze")
    return FrontierDocument.model_validate_json(path.read_text(encoding="utf-8"))


def reflect_and_improve(
    solutions: FrontierDocument, objective: str, *, bench: Workbench | None = None, ask: bool = True
) -> Reflection:
    """Hold what a study found against the objective, write down what was learned, and propose what to try next.

    The findings in memory are derived anew from all experiences; the reflection is kept as ``reflection.json`` in the
    study's folder.

    Args:
        solutions: the study's frontier (``pareto_frontier.json``).
        objective: the wish in natural language; another one than the study's is allowed.
        bench: history and settings; those of this process when None.
        ask: whether a language model may read the objective where there is a key.

    Raises:
        ConfigurationError: when there is no such study.
    """
    bench = bench or bench_for_planning(solutions.study)
    folder = bench.folder(solutions.study)
    if not (folder / "study.json").is_file():
        raise ConfigurationError(f"no study {solutions.study!r} in {folder.parent}; see: acf analyze")
    config = StudyConfig.model_validate_json((folder / "study.json").read_text(encoding="utf-8"))
    wish = read_objective(objective, bench.settings, ask=ask)
    desk = open_desk(config.model_copy(update={"objective": objective}), wish, bench)
    desk = desk.settled(solutions.baseline)
    records = desk.records()
    workspace = Workspace(bench.settings.workspace)
    refresh_knowledge(workspace, size_class)
    document = _judged(solutions, desk)
    best = best_solution(desk, document)
    reflection = Reflection(
        study=config.name,
        objective=objective,
        served=best is not None,
        best=best,
        summary=_summary(document, best),
        lessons=tuple(_lessons(desk, records)),
        findings=_findings(workspace, records),
        recommended=recommend(desk.situation(document.baseline).recalled, desk.config.constraints),
        next=tuple(_next(desk, records)),
    )
    write_record(folder / "reflection.json", reflection)
    return reflection


def _judged(document: FrontierDocument, desk: Desk) -> FrontierDocument:
    """The same frontier with the constraints of this wish."""
    baseline = document.baseline
    if baseline is None:
        return document
    held = tuple(
        item.model_copy(
            update={"meets_constraints": all(c.holds(item.objectives, baseline) for c in desk.config.constraints)}
        )
        for item in document.solutions
    )
    return document.model_copy(update={"solutions": held})


def _summary(document: FrontierDocument, best: Solution | None) -> str:
    if best is None or document.baseline is None:
        return "nothing compressed satisfies every constraint yet"
    ratio = best.objectives.model_size_gb / document.baseline.model_size_gb
    points = 100 * (document.baseline.accuracy - best.objectives.accuracy)
    change = f"loses {points:.2f}" if points >= 0.005 else f"gains {max(0.0, -points):.2f}"
    told = f"{ratio:.1%} of the size, {change} points of accuracy"
    return f"episode {best.episode} ({best.strategy}) serves it best: {told}"


def _lessons(desk: Desk, records: Sequence[EpisodeRecord]) -> list[str]:
    """What the plan's estimates were worth, and what did not work."""
    found: list[str] = []
    path = plan_file(desk.bench.folder(desk.config.name))
    if path.is_file():
        plan = CompressionPlan.model_validate_json(path.read_text(encoding="utf-8"))
        done = [item for item in plan.items if item.outcome is not None]
        found += [text for name in ("seconds", "grams", "size_ratio", "accuracy_drop") if (text := _error(done, name))]
    found += [
        f"episode {record.episode} ({desk.space.brief(record.strategy)}) {record.status}: {record.error or 'no reason'}"
        for record in records
        if record.status not in {"succeeded", "rejected"}
    ]
    return found


def _error(items: Sequence[PlanItem], name: str) -> str:
    errors = [item.outcome.errors[name] for item in items if item.outcome and name in item.outcome.errors]
    if not errors:
        return ""
    if name == "accuracy_drop":
        return (
            f"accuracy's drop was {100 * median(errors):+.2f} points from what was expected (median of {len(errors)})"
        )
    factor = math.exp(median(math.log(max(1e-6, 1 + error)) for error in errors))
    what = {"seconds": "seconds", "grams": "CO2e", "size_ratio": "size"}[name]
    return f"{what} measured were {factor:.2f} times what was estimated (median of {len(errors)})"


def _findings(workspace: Workspace, records: Sequence[EpisodeRecord]) -> tuple[Finding, ...]:
    """Of all that is remembered, what concerns this study's methods, the best founded first."""
    used = {tuple(stage.method for stage in record.strategy.stages) for record in records}
    used |= {(name,) for names in used for name in names}
    told = [item for item in findings(read_experiences(workspace).values(), size_class) if item.scope == "all"]
    return tuple(sorted((item for item in told if item.methods in used), key=lambda item: -item.confidence)[:_FINDINGS])


def _next(desk: Desk, records: Sequence[EpisodeRecord]) -> list[NextExperiment]:
    """The sub-agents' best options and the optimizer's candidates."""
    baseline = desk.baseline(records)
    found = []
    for agent in (LoraAgent(), DistillationAgent()):
        for option in agent.options(desk, records)[:1]:
            why = f"heals {option.base}"
            if option.recovery is not None:
                why += f", expected to bring back {100 * option.recovery:.2f} points"
            found.append(
                NextExperiment(
                    strategy=option.strategy, proposed_by=agent.name, why=why, outlook=option.estimate.outlook
                )
            )
    situation = desk.situation(baseline)
    for candidate in GreyboxPlanner().candidates(desk.space, records, desk.config.seed, situation, limit=_NEXT):
        expected = expectations(desk, [candidate.strategy], records)
        said = expected.get(canonical(desk.healing_space, candidate.strategy).key)
        outlook = outlook_of(desk, said, baseline) if said else None
        why = f"expected to add {candidate.gain:.2%} of the reference box"
        found.append(NextExperiment(strategy=candidate.strategy, proposed_by="search", why=why, outlook=outlook))
    return sorted(found, key=lambda item: -(item.outlook.merit if item.outlook else 0.0))[:_NEXT]
