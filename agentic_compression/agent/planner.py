"""From a wish to a plan: the baseline, seeds and candidates, healing of what they break, and the judgement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentic_compression.agent.costs import estimate_item
from agentic_compression.agent.desk import Desk, bench_for_planning, open_desk
from agentic_compression.agent.healing import DistillationAgent, HealingAgent, LoraAgent
from agentic_compression.agent.model_reader import read_objective
from agentic_compression.agent.outlook import expectations, outlook_of
from agentic_compression.agent.plan import CompressionPlan, ItemEstimate, PlanItem
from agentic_compression.errors import ConfigurationError
from agentic_compression.planning.greybox import GreyboxPlanner
from agentic_compression.planning.seeds import seed_strategies
from agentic_compression.records import BASELINE, EpisodeRecord, Strategy, StudyConfig
from agentic_compression.settings import get_settings
from agentic_compression.study.naming import with_name

__all__ = ["best_candidates", "design_plan", "healer", "plan_compression", "plan_file"]

_EPISODES = 6
_LEAST_FOR = {"lora": 3, "distill": 4}
_HEALERS: tuple[HealingAgent, ...] = (LoraAgent(), DistillationAgent())
_KINDS = {"lora": "lora", "distillation": "distill"}


def plan_compression(
    model: str,
    objective: str,
    carbon_budget: float | None = None,
    *,
    dataset: str = "demo",
    episodes: int | None = None,
    base: StudyConfig | None = None,
    ask: bool = True,
) -> CompressionPlan:
    """Read an objective and plan the experiments that serve it; nothing is compressed or measured.

    Args:
        model: Hub id, local folder, ``models:/NAME@ALIAS`` or ``demo``.
        objective: the wish in natural language, English or Chinese.
        carbon_budget: grams CO2e for the whole study; the smaller of this and what the objective says counts.
        dataset: benchmark, file or ``demo``.
        episodes: compressed episodes; what the objective says, or 6, when None.
        base: a study whose other settings are taken; its constraints count besides the objective's.
        ask: whether a language model may read the objective where there is a key.

    Raises:
        ConfigurationError: the objective is empty or too long, or a budget is not above 0.
        ModelError, DatasetError: the model or dataset cannot be used.
    """
    wish = read_objective(objective, get_settings(), ask=ask)
    budgets = [grams for grams in (carbon_budget, wish.carbon_budget_grams) if grams is not None]
    if any(not grams > 0 for grams in budgets):
        raise ConfigurationError(f"a carbon budget is more than 0 grams, got {min(budgets):g}")
    values = base.model_dump() if base else {}
    values |= {"model": model, "dataset": dataset, "objective": objective}
    values["episodes"] = episodes or wish.episodes or _EPISODES
    if budgets:
        values["carbon_budget_kg"] = min(budgets) / 1000
    if wish.budget_hours is not None:
        values["budget_hours"] = min(wish.budget_hours, values.get("budget_hours") or wish.budget_hours)
    config = with_name(StudyConfig.model_validate(values))
    return design_plan(open_desk(config, wish, bench_for_planning(config.name)))


def design_plan(desk: Desk) -> CompressionPlan:
    """The items of a study, each with its estimate; what the study has measured is taken into account."""
    records = desk.records()
    baseline = desk.baseline(records)
    asked = [agent for agent in _HEALERS if desk.config.episodes >= _LEAST_FOR[_KINDS[agent.name]]]
    healing = [item for agent in asked if (item := _healing(desk, records, agent)) is not None]
    items = [*_searches(desk, records, max(1, desk.config.episodes - len(healing))), *healing]
    judging = ItemEstimate(compress_seconds=0, evaluate_seconds=0, grams=0, basis="reads what was measured")
    items.append(
        PlanItem(
            number=1,
            kind="evaluate",
            agent="evaluation",
            title="judge the finalists beside the baseline",
            estimate=judging,
        )
    )
    size = baseline.model_size_gb if baseline else desk.spec.parameters * desk.spec.bytes_per_parameter / 1e9
    plan = CompressionPlan(
        wish=desk.wish,
        study=desk.config,
        parameters=desk.spec.parameters,
        size_gb=size,
        items=tuple(item.model_copy(update={"number": at}) for at, item in enumerate(items, start=1)),
    )
    return plan.model_copy(update={"warnings": tuple(_warnings(desk, plan))})


def best_candidates(desk: Desk, records: Sequence[EpisodeRecord], taken: set[str], count: int) -> list[Strategy]:
    """The optimizer's best untried strategies that are not among those taken, the best first.

    Args:
        desk: of the study.
        records: of the study.
        taken: keys of strategies that are planned elsewhere.
        count: at most so many.
    """
    if count < 1:
        return []
    situation = desk.situation(desk.baseline(records))
    found = GreyboxPlanner().candidates(desk.space, records, desk.config.seed, situation, limit=len(taken) + count)
    return [item.strategy for item in found if item.strategy.key not in taken][:count]


def healer(kind: str) -> HealingAgent:
    """The sub-agent of items of this kind."""
    return next(agent for agent in _HEALERS if _KINDS[agent.name] == kind)


def plan_file(folder: Path) -> Path:
    """Where a study's plan is kept."""
    return folder / "agent_plan.json"


def _seeds(desk: Desk, records: Sequence[EpisodeRecord], count: int) -> list[tuple[Strategy, str]]:
    """The seeds that are expected to serve the wish best, in the order in which every study tries them."""
    seeds = [pair for pair in seed_strategies(desk.space) if desk.record_of(pair[0]) is None]
    expected = expectations(desk, [strategy for strategy, _ in seeds], records)
    baseline = desk.baseline(records)
    merits = {
        strategy.key: outlook_of(desk, expected[strategy.key], baseline).merit if strategy.key in expected else 0.0
        for strategy, _ in seeds
    }
    chosen = {strategy.key for strategy, _ in sorted(seeds, key=lambda pair: -merits[pair[0].key])[:count]}
    return [pair for pair in seeds if pair[0].key in chosen]


def _searches(desk: Desk, records: Sequence[EpisodeRecord], count: int) -> list[PlanItem]:
    """The baseline and so many strategies: half of them seeds, the others the optimizer's candidates."""
    seeds = _seeds(desk, records, (count + 1) // 2)
    candidates = best_candidates(desk, records, {strategy.key for strategy, _ in seeds}, count - len(seeds))
    expected = expectations(desk, [*(strategy for strategy, _ in seeds), *candidates], records)
    why = "expected to add most; chosen anew from what is measured when its turn comes"
    rows = [
        ("baseline", BASELINE, "measure the uncompressed model", "everything is told beside it"),
        *(("seed", strategy, "seed strategy", reason) for strategy, reason in seeds),
        *(
            ("candidate", strategy, f"the optimizer's candidate {at}", why)
            for at, strategy in enumerate(candidates, start=1)
        ),
    ]
    items = []
    for kind, strategy, title, reason in rows:
        estimate = estimate_item(desk, strategy, records)
        if said := expected.get(strategy.key):
            estimate = estimate.model_copy(update={"outlook": outlook_of(desk, said, desk.baseline(records))})
        values = {"number": 1, "kind": kind, "agent": "search", "title": title, "why": reason}
        items.append(PlanItem.model_validate({**values, "strategy": strategy, "estimate": estimate}))
    return items


def _healing(desk: Desk, records: Sequence[EpisodeRecord], agent: HealingAgent) -> PlanItem | None:
    """An item of a sub-agent with what it would do now; None where it can do nothing here."""
    options = agent.options(desk, records)
    if not options:
        return None
    why = f"heals {agent.target}, whichever that is when its turn comes"
    values = {"number": 1, "kind": _KINDS[agent.name], "agent": agent.name, "title": f"heal {agent.target}", "why": why}
    estimate = options[0].estimate
    return PlanItem.model_validate(
        {**values, "strategy": options[0].strategy, "estimate": estimate, "options": options}
    )


def _warnings(desk: Desk, plan: CompressionPlan) -> list[str]:
    found = [f"not understood, so it changes nothing: {part!r}" for part in desk.wish.not_understood]
    if not desk.wish.understood:
        found.append("no constraint and no goal was understood: all objectives count the same")
    left, time_left = desk.grams_left, desk.seconds_left
    if left is not None and plan.grams > left:
        found.append(f"the plan needs about {plan.grams:.3g} g CO2e, {left:.3g} g are left: it will be cut short")
    if time_left is not None and plan.seconds > time_left:
        found.append(f"the plan needs about {plan.seconds:.0f} s, {time_left:.0f} s are left: it will be cut short")
    return found
