"""One chosen strategy as one episode of a study: claimed, compressed, measured, recorded like every other."""

from __future__ import annotations

from agentic_compression.agent.desk import Desk
from agentic_compression.errors import AcfError
from agentic_compression.records import EpisodePlan, EpisodeRecord, Expected, Strategy
from agentic_compression.study import compress, evaluate, update_frontier

__all__ = ["PLANNER", "run_strategy"]

PLANNER = "agent"


def run_strategy(
    desk: Desk, strategy: Strategy, *, source: str, rationale: str, expected: Expected | None = None
) -> EpisodeRecord:
    """Measure a strategy in the study; one that is recorded already is not measured again.

    Episodes that a process left behind when it died are carried out first, as they were planned.

    Args:
        desk: of the study.
        strategy: legal; the baseline too.
        source: who chose it.
        rationale: why.
        expected: what is expected of it, in the objectives' units.

    Returns:
        The record, whatever came of it.

    Raises:
        StrategyError: when the strategy is not legal here.
        AcfError: when nothing was recorded.
    """
    wanted = desk.healing_space.complete(strategy)
    while (known := desk.record_of(wanted)) is None:
        _carry_out(desk, _claim(desk, wanted, source, rationale, expected or {}))
    return known


def _claim(desk: Desk, strategy: Strategy, source: str, rationale: str, expected: Expected) -> EpisodePlan:
    bench, config = desk.bench, desk.config
    with bench.lock(config.name):
        bench.history.open_study(config, f"model {desk.spec.digest or 'unknown'}, data {desk.dataset.digest}")
        plan = bench.history.adopt(config.name)
        if plan is None:
            plan = bench.history.claim(
                EpisodePlan(
                    study=config.name,
                    episode=bench.history.next_episode(config.name),
                    strategy=strategy,
                    rationale=rationale,
                    planner=PLANNER,
                    source=source,
                    seed=config.seed,
                    expected=expected,
                )
            )
    bench.announce("planned", plan=plan)
    return plan


def _carry_out(desk: Desk, plan: EpisodePlan) -> None:
    compressed = compress(desk.config, desk.spec, desk.dataset, plan, desk.bench)
    evaluated = evaluate(desk.config, desk.dataset, compressed, desk.bench, plan)
    update_frontier(desk.config, plan, compressed, evaluated, desk.bench)
    recorded = desk.bench.history.records(desk.config.name)
    if not any(record.episode == plan.episode for record in recorded):
        raise AcfError(
            f"episode {plan.episode} of {desk.config.name} was not recorded (see {desk.bench.settings.logs})"
        )
    desk.bench.announce("progress", records=recorded, reason=None)
