"""Carries a plan out, one item after the other, within its budgets; the plan on disk always says where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentic_compression.agent.costs import estimate_item, remember_estimate
from agentic_compression.agent.desk import Desk, open_desk
from agentic_compression.agent.episodes import run_strategy
from agentic_compression.agent.evaluation import EvaluationAgent
from agentic_compression.agent.outlook import expectations, outlook_of, proportions
from agentic_compression.agent.plan import CompressionPlan, ItemOutcome, Outlook, PlanItem
from agentic_compression.agent.planner import best_candidates, healer, plan_file
from agentic_compression.errors import ConfigurationError
from agentic_compression.frontier import comparable, termination
from agentic_compression.planning.grid import canonical
from agentic_compression.records import EpisodeRecord, Expected, FinalResults
from agentic_compression.storage import write_record
from agentic_compression.study import Workbench, validate_data
from agentic_compression.study.episode import rebuild_frontier
from agentic_compression.study.loop import read_results

__all__ = ["Experiment", "carry_out_plan", "execute_experiment", "finish", "resume_plan"]

Told = Callable[[CompressionPlan, PlanItem], None]
"""Called whenever an item changes."""

_NO_CARBON, _NO_TIME = "carbon_budget", "time_budget"


@dataclass(frozen=True)
class Experiment:
    """One item of a plan.

    Args:
        plan: as it stands.
        number: of the item.
        bench: of this process.
    """

    plan: CompressionPlan
    number: int
    bench: Workbench


def resume_plan(plan: CompressionPlan, folder: Path) -> CompressionPlan:
    """The plan of the same study and wish that an interrupted run left behind, else this one.

    Args:
        plan: a new one.
        folder: of the study.

    Raises:
        ConfigurationError: when what is on disk is no plan.
    """
    path = plan_file(folder)
    if not path.is_file():
        return plan
    try:
        held = CompressionPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged ({str(error)[:120]}); move it away to plan anew") from error
    same = held.wish.text == plan.wish.text and held.study.model_copy(update=_budgets(plan)) == plan.study
    if not same or not any(item.is_open for item in held.items):
        return plan
    return held.model_copy(update={"study": plan.study})


def _budgets(plan: CompressionPlan) -> dict[str, object]:
    """What may change between two runs of one plan."""
    return {"carbon_budget_kg": plan.study.carbon_budget_kg, "budget_hours": plan.study.budget_hours}


def execute_experiment(config: Experiment) -> CompressionPlan:
    """Carry one item out: delegated to its sub-agent, measured, compared with what was expected of it, remembered.

    Args:
        config: which item of which plan.

    Returns:
        The plan with the item's outcome; skipped with the reason where a budget does not allow it.

    Raises:
        ConfigurationError: when the plan has no such item.
        KeyboardInterrupt: the item stays open.
    """
    plan, number, bench = config.plan, config.number, config.bench
    item = next((item for item in plan.items if item.number == number), None)
    if item is None:
        raise ConfigurationError(f"the plan has items 1 to {len(plan.items)}, got {number}")
    desk = open_desk(plan.study, plan.wish, bench)
    return _Run(plan, desk, lambda _plan, _item: None).one(item)


def carry_out_plan(
    plan: CompressionPlan, bench: Workbench, told: Told = lambda _plan, _item: None
) -> tuple[CompressionPlan, FinalResults]:
    """Carry out everything that is open; after an interruption the same call goes on where it stopped.

    Before each item its estimate is held against what is left of the budgets. What does not fit is skipped, and the
    study ends with ``carbon_budget`` or ``time_budget``.

    Args:
        plan: of this or an earlier process.
        bench: history, registry, child processes.
        told: of every change.

    Returns:
        The plan with all outcomes, and the study's final results.
    """
    bench.history.open_study(plan.study)
    desk = open_desk(plan.study, plan.wish, bench)
    validate_data(plan.study, bench)
    run = _Run(plan, desk, told)
    reason: str | None = None
    try:
        for item in plan.items:
            if item.is_open:
                run.plan = run.one(item)
    except KeyboardInterrupt:
        reason = "interrupted"
    return run.plan, finish(run.plan, bench, reason)


def finish(plan: CompressionPlan, bench: Workbench, reason: str | None = None) -> FinalResults:
    """Write the study's files with the reason for which it ended.

    Args:
        plan: as it stands.
        bench: history and registry.
        reason: told from the plan and the budgets when None.
    """
    desk = open_desk(plan.study, plan.wish, bench)
    settled = desk.settled(desk.baseline(desk.records())).config
    with bench.lock(plan.study.name):
        document = rebuild_frontier(settled, bench, termination=reason or _ending(plan, desk))
    bench.announce("frontier", document=document)
    return read_results(settled, bench)


def _ending(plan: CompressionPlan, desk: Desk) -> str:
    """Why the study ends, now that nothing is open."""
    skipped = [item.reason for item in plan.items if item.status == "skipped"]
    for reason in (_NO_CARBON, _NO_TIME):
        if any(text.startswith(reason) for text in skipped):
            return reason
    spent = desk.seconds_spent(), desk.grams_spent() / 1000
    return termination(desk.config, comparable(desk.records()), *spent) or "planner_end"


class _Run:
    """One process's work on a plan."""

    def __init__(self, plan: CompressionPlan, desk: Desk, told: Told) -> None:
        self.plan, self._desk, self._told = plan, desk, told

    def one(self, item: PlanItem) -> CompressionPlan:
        """Do an item, or skip it; the plan on disk is rewritten before and after."""
        records = self._desk.records()
        desk = self._desk.settled(self._desk.baseline(records))
        if item.kind == "evaluate":
            return self._keep(self._judged(item, desk))
        prepared, expected = self._prepared(item, self._desk, records)
        if prepared.strategy is None:
            return self._keep(prepared)
        if problem := _over_budget(prepared, self._desk, known=desk.record_of(prepared.strategy) is not None):
            return self._keep(prepared.model_copy(update={"status": "skipped", "reason": problem}))
        self._keep(prepared.model_copy(update={"status": "running"}))
        record = self._delegate(prepared, desk, expected)
        remember_estimate(desk, record, records)
        done = prepared.model_copy(
            update={
                "status": "done" if record.status in {"succeeded", "rejected"} else "failed",
                "reason": record.error or "",
                "outcome": _outcome(prepared, record, self._desk),
            }
        )
        return self._keep(done)

    def _keep(self, item: PlanItem) -> CompressionPlan:
        self.plan = self.plan.with_item(item)
        write_record(plan_file(self._desk.bench.folder(self.plan.study.name)), self.plan)
        self._told(self.plan, item)
        return self.plan

    def _prepared(self, item: PlanItem, desk: Desk, records: Sequence[EpisodeRecord]) -> tuple[PlanItem, Expected]:
        """The item with the strategy that is best now and its estimate; an interrupted one keeps what it began."""
        strategy, options = item.strategy, item.options
        if item.status == "pending" and item.kind == "candidate":
            planned = {canonical(desk.space, other.strategy).key for other in self.plan.items
                       if other.kind == "seed" and other.is_open and other.strategy}  # fmt: skip
            strategy = next(iter(best_candidates(desk, records, planned, 1)), None)
        elif item.status == "pending" and item.kind in {"lora", "distill"}:
            options = healer(item.kind).options(desk, records)
            strategy = options[0].strategy if options else None
        if strategy is None:
            reason = "nothing is left that could be tried within the budgets"
            return item.model_copy(update={"status": "skipped", "reason": reason, "strategy": None}), {}
        key = canonical(desk.healing_space, strategy).key
        expected = {} if strategy.is_baseline else expectations(desk, [strategy], records).get(key, {})
        estimate = estimate_item(desk, strategy, records)
        if expected:
            estimate = estimate.model_copy(update={"outlook": outlook_of(desk, expected, desk.baseline(records))})
        changes = {"strategy": strategy, "options": options, "estimate": estimate}
        # Before the baseline is known the optimizer speaks of proportions, which a record must not hold as units.
        return item.model_copy(update=changes), expected if desk.baseline(records) is not None else {}

    def _delegate(self, item: PlanItem, desk: Desk, expected: Expected) -> EpisodeRecord:
        assert item.strategy is not None
        if item.kind in {"lora", "distill"} and item.options and item.options[0].strategy == item.strategy:
            return healer(item.kind).run(desk, item.options[0], expected)
        source = {"baseline": "baseline", "seed": "seed"}.get(item.kind, f"agent:{item.agent}")
        return run_strategy(
            desk, item.strategy, source=source, rationale=f"{item.title}: {item.why}", expected=expected
        )

    def _judged(self, item: PlanItem, desk: Desk) -> PlanItem:
        with desk.bench.lock(desk.config.name):
            document = rebuild_frontier(desk.config, desk.bench, termination=None)
        judgements = EvaluationAgent().judge(desk, document)
        if not judgements:
            return item.model_copy(update={"status": "skipped", "reason": "nothing compressed is on the frontier"})
        best = judgements[0]
        verdict = "; ".join(f"episode {one.episode} ({one.strategy}): {one.verdict}" for one in judgements)
        outcome = ItemOutcome(
            episode=best.episode, strategy=best.strategy, status="succeeded", measured=best.measured, verdict=verdict
        )
        return item.model_copy(update={"status": "done", "outcome": outcome})


def _over_budget(item: PlanItem, desk: Desk, *, known: bool) -> str:
    """Why an item does not fit what is left, or nothing; what is recorded already costs nothing."""
    left, time_left, estimate = desk.grams_left, desk.seconds_left, item.estimate
    if known:
        return ""
    if left is not None and estimate.grams > left:
        return f"{_NO_CARBON}: it would emit about {estimate.grams:.3g} g CO2e, {max(0.0, left):.3g} g are left"
    if time_left is not None and estimate.seconds > time_left:
        return f"{_NO_TIME}: it would take about {estimate.seconds:.0f} s, {max(0.0, time_left):.0f} s are left"
    return ""


def _outcome(item: PlanItem, record: EpisodeRecord, desk: Desk) -> ItemOutcome:
    """What was measured beside what was expected."""
    baseline = desk.baseline(desk.records())
    seconds = record.timings.get("total", 0.0)
    found = ItemOutcome(
        episode=record.episode,
        strategy=record.strategy.label,
        status=record.status,
        error=record.error or "",
        seconds=seconds,
        grams=max(0.0, record.co2_grams_spent),
        reused=record.reused,
    )
    errors: dict[str, float] = {}
    if not record.reused and record.status == "succeeded":
        pairs = (("seconds", seconds, item.estimate.seconds), ("grams", found.grams, item.estimate.grams))
        errors = {name: measured / said - 1 for name, measured, said in pairs if said > 0}
    if record.objectives is None or baseline is None or record.episode == 0:
        return found.model_copy(update={"errors": errors})
    measured = proportions(record.objectives, baseline)
    outlook, within = item.estimate.outlook, {}
    if outlook is not None:
        for name, value in measured.items():
            said, low, high = _of(outlook, name)
            errors[name] = value - said if name == "accuracy_drop" else value / said - 1
            within[name] = low <= value <= high
    return found.model_copy(update={"measured": measured, "errors": errors, "within": within})


def _of(outlook: Outlook, name: str) -> tuple[float, float, float]:
    value: tuple[float, float, float] = getattr(outlook, name)
    return value
