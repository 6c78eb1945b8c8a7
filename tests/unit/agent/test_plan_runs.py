"""Plans made, carried out, interrupted and gone on with; budgets kept; estimates held against what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentic_compression.agent.costs import EstimateMemory, Misjudged, estimate_item, read_estimates
from agentic_compression.agent.execute import Experiment, carry_out_plan, execute_experiment, resume_plan
from agentic_compression.agent.plan import CompressionPlan, PlanItem
from agentic_compression.agent.planner import design_plan, plan_file
from agentic_compression.agent.reflection import frontier_of, reflect_and_improve
from agentic_compression.errors import ConfigurationError
from agentic_compression.records import BASELINE, Evaluation, Strategy
from agentic_compression.testing.memory_history import MemoryHistory
from tests.unit.agent.desks import bench_of, by_bits, desk_for

WISH = "smallest model losing under 6 points"


def plan_of(objective: str = WISH, **study: Any) -> CompressionPlan:
    return design_plan(desk_for(objective, **study))


def test_a_plan_has_every_kind_of_item_with_its_agent(home: Path) -> None:
    plan = plan_of()
    kinds = [item.kind for item in plan.items]
    assert kinds[0] == "baseline"
    assert kinds[-1] == "evaluate"
    assert {"seed", "candidate", "lora", "distill"} <= set(kinds)
    assert len(kinds) - 2 == plan.study.episodes
    agents = {item.kind: item.agent for item in plan.items}
    assert (agents["lora"], agents["distill"], agents["evaluate"]) == ("lora", "distillation", "evaluation")
    for item in plan.items[1:-1]:
        assert item.estimate.seconds > 0
        assert item.estimate.grams > 0
        assert item.estimate.outlook is not None
    assert plan.grams == pytest.approx(sum(item.estimate.grams for item in plan.items))


def test_sub_agents_weigh_options_of_registered_methods(home: Path) -> None:
    by_kind: dict[str, PlanItem] = {item.kind: item for item in plan_of().items}
    for kind, methods in (("lora", {"lora"}), ("distill", {"distill", "qlora"})):
        item = by_kind[kind]
        assert len(item.options) > 1
        assert item.strategy == item.options[0].strategy
        assert all(methods & {stage.method for stage in option.strategy.stages} for option in item.options)
        assert all(option.trainable > 0 and option.recovery is not None for option in item.options)
        assert len({option.estimate.seconds for option in item.options}) > 1


def test_a_run_measures_everything_and_compares_it_with_the_estimates(home: Path) -> None:
    bench = bench_of()
    done, results = carry_out_plan(plan_of(), bench)
    assert [item.status for item in done.items] == ["done"] * len(done.items)
    assert results.termination_reason == "max_episodes"
    assert results.episodes_run == done.study.episodes + 1
    records = {record.episode: record for record in bench.history.records("agents")}
    for item in done.items[1:-1]:
        assert item.outcome is not None
        assert item.outcome.episode is not None
        record = records[item.outcome.episode]
        assert item.outcome.seconds == record.timings["total"] == 3.0
        assert item.outcome.errors["seconds"] == pytest.approx(3.0 / item.estimate.seconds - 1)
        assert item.estimate.outlook is not None
        drop = item.outcome.measured["accuracy_drop"]
        assert item.outcome.errors["accuracy_drop"] == pytest.approx(drop - item.estimate.outlook.accuracy_drop[0])
        assert item.outcome.within["size_ratio"] in {True, False}
    sources = {record.source for record in records.values()}
    assert {"baseline", "seed", "agent:search", "agent:lora", "agent:distillation"} == sources
    assert "episode" in (done.items[-1].outcome.verdict if done.items[-1].outcome else "")
    assert CompressionPlan.model_validate_json(plan_file(home / "data/experiments/agents").read_text()) == done


def test_healing_starts_from_the_best_that_was_measured(home: Path) -> None:
    done, _ = carry_out_plan(plan_of(), bench_of())
    item = next(item for item in done.items if item.kind == "distill")
    assert item.strategy is not None
    assert item.options[0].base.split(":")[0] == item.strategy.stages[0].method


def test_estimates_learn_from_what_was_measured(home: Path) -> None:
    desk = desk_for(WISH)
    before = estimate_item(desk, Strategy.parse("rtn:bits=8"), [])
    assert read_estimates(home).items == ()
    carry_out_plan(plan_of(), bench_of())
    kept = read_estimates(home)
    assert {"compress", "evaluate"} == {item.what for item in kept.items}
    after = estimate_item(desk, Strategy.parse("rtn:bits=8"), [])
    assert abs(after.evaluate_seconds - 2.0) < abs(before.evaluate_seconds - 2.0)


def test_the_correction_is_a_shrunk_geometric_mean() -> None:
    items = tuple(Misjudged(what="compress", of="rtn", estimated=1.0, measured=m) for m in (8.0, 8.0))
    assert EstimateMemory(items=items).factor("compress", "rtn") == pytest.approx(4.0)
    assert EstimateMemory(items=items).factor("compress", "gptq") == 1.0
    wild = tuple(Misjudged(what="compress", of="rtn", estimated=1e-6, measured=1e6) for _ in range(50))
    assert EstimateMemory(items=wild).factor("compress", "rtn") == pytest.approx(20.0)


def test_a_damaged_memory_of_estimates_corrects_nothing(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data/estimate_errors.json").write_text('{"items": [{"what": 3')
    assert estimate_item(desk_for(WISH), BASELINE, []).evaluate_seconds > 0


def test_a_study_ends_before_it_exceeds_its_carbon_budget(home: Path) -> None:
    whole, _ = carry_out_plan(plan_of(name="whole"), bench_of())
    spent = sum(item.outcome.grams for item in whole.items if item.outcome)
    bench = bench_of()
    budget = spent * 0.4
    plan = plan_of(carbon_budget_kg=budget / 1000)
    done, results = carry_out_plan(plan, bench)
    assert results.termination_reason == "carbon_budget"
    skipped = [item for item in done.items if item.status == "skipped"]
    assert skipped
    assert all(item.reason.startswith("carbon_budget") for item in skipped if item.kind != "evaluate")
    assert results.co2_grams <= budget


def test_a_budget_that_allows_nothing_measures_nothing(home: Path) -> None:
    bench = bench_of()
    done, results = carry_out_plan(plan_of(carbon_budget_kg=1e-12), bench)
    assert results.termination_reason == "carbon_budget"
    assert results.episodes_run == 0
    assert all(item.status == "skipped" for item in done.items)
    assert any("cut short" in text for text in plan_of(carbon_budget_kg=1e-12).warnings)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_an_interrupted_run_goes_on_where_it_stopped(at: int, home: Path) -> None:
    calls: list[str] = []

    def stops(strategy: Strategy) -> Evaluation | str:
        calls.append(strategy.label)
        if len(calls) == 2 * at:  # the second call of an episode measures it
            raise KeyboardInterrupt
        return by_bits(strategy)

    bench = bench_of(stops)
    made = plan_of()
    broken, results = carry_out_plan(made, bench)
    assert results.termination_reason == "interrupted"
    assert [item.status for item in broken.items].count("running") == 1
    known = {record.episode: record for record in bench.history.records("agents")}
    assert isinstance(bench.history, MemoryHistory)
    bench.history.abandon("agents")
    resumed = resume_plan(made, home / "data/experiments/agents")
    assert resumed == broken
    done, results = carry_out_plan(resumed, bench)
    assert all(item.status == "done" for item in done.items)
    assert results.episodes_run == done.study.episodes + 1
    after = {record.episode: record for record in bench.history.records("agents")}
    assert all(after[number] == record for number, record in known.items())
    assert len({record.strategy.key for record in after.values()}) == len(after)


def test_another_wish_is_another_plan(home: Path) -> None:
    folder = home / "data/experiments/agents"
    carry_out_plan(plan_of(carbon_budget_kg=1e-12), bench_of())
    other = plan_of("fastest model")
    assert resume_plan(other, folder) == other
    plan_file(folder).write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        resume_plan(other, folder)


def test_bounds_in_proportion_reach_the_study(home: Path) -> None:
    bench = bench_of()
    carry_out_plan(plan_of("at least 1.3x faster", episodes=3), bench)
    held = (home / "data/experiments/agents/study.json").read_text()
    assert '"latency_ms"' in held
    document = frontier_of(home / "data/experiments/agents")
    assert document.baseline is not None
    for solution in document.solutions:
        assert solution.meets_constraints == (
            solution.objectives.latency_ms <= document.baseline.latency_ms / 1.3 + 1e-9
        )


def test_a_failed_experiment_is_an_outcome(home: Path) -> None:
    def fails(strategy: Strategy) -> Evaluation | str:
        return "oom" if "lora" in strategy.label else by_bits(strategy)

    done, _ = carry_out_plan(plan_of(), bench_of(fails))
    item = next(item for item in done.items if item.kind == "lora")
    assert item.status == "failed"
    assert item.outcome is not None
    assert item.outcome.status == "oom"
    assert done.items[-1].status == "done"


def test_one_experiment_by_its_number(home: Path) -> None:
    bench = bench_of()
    plan = plan_of()
    bench.history.open_study(plan.study)
    done = execute_experiment(Experiment(plan, 1, bench))
    assert [item.status for item in done.items][:2] == ["done", "pending"]
    with pytest.raises(ConfigurationError, match="items 1 to"):
        execute_experiment(Experiment(done, 99, bench))


def test_every_change_is_told(home: Path) -> None:
    told: list[tuple[int, str]] = []

    def listen(_plan: CompressionPlan, item: PlanItem) -> None:
        told.append((item.number, item.status))

    done, _ = carry_out_plan(plan_of(episodes=1), bench_of(), listen)
    assert told == [(1, "running"), (1, "done"), (2, "running"), (2, "done"), (3, "done")]
    assert len(done.items) == 3


def test_reflection_says_what_was_learned_and_what_is_next(home: Path) -> None:
    bench = bench_of()
    done, _ = carry_out_plan(plan_of(), bench)
    folder = home / "data/experiments/agents"
    found = reflect_and_improve(frontier_of(folder), WISH, bench=bench)
    assert found.served
    assert found.best is not None
    document = frontier_of(folder)
    fitting = [item for item in document.solutions if item.episode and item.meets_constraints]
    assert found.best.objectives.model_size_gb == min(item.objectives.model_size_gb for item in fitting)
    assert any("seconds measured were" in lesson for lesson in found.lessons)
    assert found.findings
    assert (home / "workspace/knowledge/methods").is_dir()
    tried = {record.strategy.key for record in bench.history.records("agents")}
    assert found.next
    assert not tried & {item.strategy.key for item in found.next}
    assert (folder / "reflection.json").is_file()
    strict = reflect_and_improve(document, "losing under 0.001 points, 1000x smaller", bench=bench)
    assert not strict.served
    assert strict.best is None
    assert done.items
