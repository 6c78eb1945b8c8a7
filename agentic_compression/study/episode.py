"""The five actions of an episode. Each takes records and returns a record; ZenML's steps only call them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.data import require_valid, resolve_dataset, validate_dataset, write_report
from agentic_compression.data.calibration_text import with_calibration_text
from agentic_compression.errors import StrategyError
from agentic_compression.evaluation.cost import co2_grams
from agentic_compression.evaluation.energy import EnergyMeter, select_counter
from agentic_compression.evaluation.grid import grid_factor
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.frontier import build_frontier
from agentic_compression.methods import describe_methods
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.records import (
    CheckpointRef,
    CompressionOutcome,
    DatasetSpec,
    EpisodePlan,
    EpisodeRecord,
    EvaluationOutcome,
    FrontierDocument,
    ModelSpec,
    QualityOutcome,
    Record,
    Split,
    Strategy,
    StudyConfig,
    ValidationReport,
)
from agentic_compression.registry import promote_frontier, registered_name
from agentic_compression.resources import configs_dir
from agentic_compression.settings import Settings
from agentic_compression.spec import infer_spec
from agentic_compression.storage import write_record
from agentic_compression.study.conditions import settle_conditions
from agentic_compression.study.feasibility import compression_device, feasibility
from agentic_compression.study.files import episode_folder, keep_ending, write_episode, write_spec, write_study_files
from agentic_compression.study.model_source import fetch_model, readable_model
from agentic_compression.study.naming import short_name
from agentic_compression.study.planning import offered_space, plan_episode
from agentic_compression.study.promotion import open_desk
from agentic_compression.study.results_validation import validate_results
from agentic_compression.study.retention import drop_dominated
from agentic_compression.study.screening import screening_plan, teacher_of
from agentic_compression.study.situation import remember_study
from agentic_compression.study.workbench import Workbench

__all__ = [
    "compress",
    "dataset_of",
    "evaluate",
    "evaluate_on",
    "infer_model_spec",
    "offered_space",
    "plan_episode",
    "update_frontier",
    "validate_data",
]

Outcome = TypeVar("Outcome", CompressionOutcome, EvaluationOutcome, QualityOutcome)
COMPRESS = "agentic_compression.methods.compress:compress"
QUALITY = "agentic_compression.evaluation.quality_probe:measure_quality"
EVALUATE = "agentic_compression.evaluation.evaluate:evaluate"


def infer_model_spec(config: StudyConfig, bench: Workbench) -> ModelSpec:
    """Infer the model's specification and keep it in ``model_spec.json``."""
    bench.announce("step", name="infer_spec")
    spec = infer_spec(
        readable_model(config, bench),
        settings=bench.settings,
        trust_remote_code=config.trust_remote_code,
        methods=describe_methods(),
    )
    write_spec(bench.folder(config.name), spec)
    return spec


def validate_data(config: StudyConfig, bench: Workbench) -> tuple[DatasetSpec, ValidationReport]:
    """Resolve the dataset and check it; a report of the same data is read back, not made again.

    Raises:
        DatasetError: when it cannot be resolved or does not pass.
    """
    bench.announce("step", name="validate_data")
    dataset = dataset_of(config, bench.settings)
    kept = bench.settings.artifacts / "datasets" / f"{dataset.digest}.validation.json"
    if kept.exists():
        report = ValidationReport.model_validate_json(kept.read_text())
    else:
        report = validate_dataset(dataset)
        write_report(report, kept.with_suffix(".html"))
        write_record(kept, report)
    require_valid(report)
    return dataset, report


def dataset_of(config: StudyConfig, settings: Settings) -> DatasetSpec:
    """The study's dataset in canonical form with its calibration text, not yet validated."""
    benchmark_dir = Path(config.benchmark_dir) if config.benchmark_dir else None
    dataset = resolve_dataset(
        config.dataset,
        settings=settings,
        benchmark_dir=benchmark_dir,
        limit=config.evaluation.limit,
        seed=config.seed,
        tasks=config.tasks or None,
    )
    if config.calibration == "train":
        return dataset
    return with_calibration_text(
        dataset, config.calibration, settings=settings, benchmark_dir=benchmark_dir, seed=config.seed
    )


def compress(
    config: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, plan: EpisodePlan, bench: Workbench
) -> CompressionOutcome:
    """Apply the plan's strategy in a child process; stages with a condition only where it holds."""
    if plan.strategy is None:
        return CompressionOutcome(status="infeasible", error="the study has ended; nothing was planned")
    bench.announce("step", name="compress")
    bench.lease.hold()
    request = compression_request(config, spec, dataset, plan.strategy, bench)
    try:
        expected, reason = feasibility(config, spec, dataset, request, bench)
    except StrategyError as error:  # a method of an earlier plan that is not there any more
        return CompressionOutcome(status="failed", error=str(error))
    told = {"estimated_peak_bytes": expected.peak_bytes, "estimated_seconds": expected.seconds}
    if reason is not None:
        return CompressionOutcome(status="infeasible", error=reason, **told)
    if all(stage.when is None for stage in plan.strategy.stages):
        return _work(COMPRESS, request, CompressionOutcome, config, bench).model_copy(update=told)

    def carry_out(strategy: Strategy, intermediate: bool = True) -> CompressionOutcome:
        changed = request.model_copy(update={"strategy": strategy, "intermediate": intermediate})
        return _work(COMPRESS, changed, CompressionOutcome, config, bench)

    def measure(checkpoint: CheckpointRef) -> QualityOutcome:
        request = _evaluation_request(config, dataset, checkpoint, bench)
        request = request.model_copy(update={"split": "search", "report_share": config.report_share})
        return _work(QUALITY, request, QualityOutcome, config, bench)

    baseline = checkpoint_ref(Path(request.model_path), Strategy().key, shared=True)
    settled = settle_conditions(plan.strategy, baseline, carry_out, measure)
    done = settled.failure or carry_out(settled.strategy, intermediate=False)
    both = settled.seconds + done.seconds, settled.joules + done.joules
    return done.model_copy(update={"seconds": both[0], "joules": both[1], "decisions": settled.decisions, **told})


def compression_request(
    config: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, strategy: Strategy, bench: Workbench
) -> CompressionRequest:
    """The work a strategy is, for the child process; downloads the model when it is on the Hub."""
    folder, digest = fetch_model(spec, bench.settings)
    return CompressionRequest(
        model_path=str(folder),
        base_digest=digest,
        strategy=strategy,
        seed=config.seed,
        calibration_path=dataset.calibration_path,
        calibration_digest=dataset.calibration_digest,
        calibration_packing=config.calibration_packing,
        checkpoints_root=str(bench.settings.checkpoints),
        device=compression_device(config),
        threads=config.evaluation.threads,
        trust_remote_code=config.trust_remote_code,
    )


def evaluate(
    config: StudyConfig,
    dataset: DatasetSpec,
    compressed: CompressionOutcome,
    bench: Workbench,
    plan: EpisodePlan | None = None,
) -> EvaluationOutcome:
    """Measure the checkpoint in a fresh child process; a strategy that gave none keeps its status and reason.

    With the episode's plan only the search items are asked, the rungs may reject it, and it is asked the report items
    when it stands among its rivals. Without one (by hand) all items are asked and nothing is rejected.
    """
    if compressed.checkpoint is None:
        return EvaluationOutcome(status=compressed.status, error=compressed.error)
    bench.announce("step", name="evaluate")
    bench.lease.hold()
    request = _evaluation_request(config, dataset, compressed.checkpoint, bench)
    if plan is not None:
        request = _of_study(request, config, plan, bench)
    return _work(EVALUATE, request, EvaluationOutcome, config, bench)


def evaluate_on(
    split: Split, config: StudyConfig, dataset: DatasetSpec, checkpoint: CheckpointRef, bench: Workbench
) -> EvaluationOutcome:
    """Measure a stored checkpoint in full on one side of the study's items, for a promotion."""
    bench.lease.hold()
    request = _evaluation_request(config, dataset, checkpoint, bench)
    request = request.model_copy(update={"split": split, "report_share": config.report_share})
    return _work(EVALUATE, request, EvaluationOutcome, config, bench)


def _of_study(
    request: EvaluationRequest, config: StudyConfig, plan: EpisodePlan, bench: Workbench
) -> EvaluationRequest:
    """The same on the search side, with the rivals and the teacher of this episode."""
    return request.model_copy(
        update={
            "split": "search",
            "report_share": config.report_share,
            "screening": screening_plan(config, plan, bench),
            "teacher": teacher_of(config, plan, bench),
        }
    )


def _evaluation_request(
    config: StudyConfig, dataset: DatasetSpec, checkpoint: CheckpointRef, bench: Workbench
) -> EvaluationRequest:
    settings = bench.settings
    return EvaluationRequest(
        checkpoint=checkpoint,
        dataset=dataset,
        settings=config.evaluation,
        grid_country=settings.grid_country,
        grid_region=settings.grid_region,
        grid_grams_per_kwh=settings.grid_grams_per_kwh,
        pue=settings.pue,
        price_per_kwh=settings.electricity_price,
        currency=settings.electricity_currency,
        gpu_watts=settings.gpu_watts,
        cpu_watts_per_core=settings.cpu_watts_per_core,
        store_root=str(settings.artifacts / "evaluations"),
        tasks_dir=str(configs_dir() / "tasks"),
    )


def update_frontier(
    config: StudyConfig,
    plan: EpisodePlan,
    compressed: CompressionOutcome,
    evaluated: EvaluationOutcome,
    bench: Workbench,
) -> FrontierDocument:
    """Record the episode, rebuild the frontier from all records, register its members, rewrite the study's files."""
    bench.announce("step", name="update_frontier")
    folder = bench.folder(config.name)
    with bench.lock(config.name):
        if plan.strategy is not None:
            record = episode_record(config, plan, compressed, evaluated, bench)
            bench.history.record(record)
            write_episode(folder, record, is_pareto_optimal=False)
            bench.announce("recorded", record=record)
        elif plan.calls:
            keep_ending(folder, plan)
        document = rebuild_frontier(config, bench, termination=plan.end)
    bench.announce("frontier", document=document)
    return document


def rebuild_frontier(config: StudyConfig, bench: Workbench, *, termination: str | None) -> FrontierDocument:
    """The frontier as a pure function of the history, with registry and files made to agree.

    The caller holds the study's lock.
    """
    folder = bench.folder(config.name)
    records = bench.history.records(config.name)
    for record in records:
        if not (episode_folder(folder, record.episode) / "results.json").exists():
            full = bench.history.evaluation(config.name, record.episode)
            write_episode(folder, record.model_copy(update={"evaluation": full}), is_pareto_optimal=False)
    checked = validate_results(config.name, records, bench)
    document = build_frontier(config.name, checked.ranked(records), config.constraints)
    document = document.model_copy(update={"excluded": checked.excluded})
    if bench.registry is not None:
        name = registered_name(short_name(config.model), short_name(config.dataset))
        document = promote_frontier(open_desk(bench, config), name, document, records, checked.withheld)
    bench.history.mark_frontier(config.name, frozenset(item.episode for item in document.solutions))
    write_study_files(folder, config, document, records, termination)
    drop_dominated(bench, document, records)
    remember_study(config, document, records, bench)
    return document


def episode_record(
    config: StudyConfig,
    plan: EpisodePlan,
    compressed: CompressionOutcome,
    evaluated: EvaluationOutcome,
    bench: Workbench,
) -> EpisodeRecord:
    """What the study remembers of this episode."""
    evaluation = evaluated.evaluation
    joules = compressed.joules + evaluated.joules
    asking = {"plan": sum(call.seconds for call in plan.calls)} if plan.calls else {}
    total = compressed.seconds + evaluated.seconds + sum(asking.values())
    now = datetime.now(UTC)
    settings = bench.settings
    grid = grid_factor(settings.grid_country, settings.grid_grams_per_kwh, settings.grid_region)
    both_measured = compressed.energy_source == evaluated.energy_source == "measured"
    return EpisodeRecord(
        study=config.name,
        episode=plan.episode,
        strategy=plan.strategy or Strategy(),
        status=evaluated.status,
        error=evaluated.error,
        objectives=evaluation.objectives if evaluation else None,
        intervals=evaluation.intervals if evaluation else {},
        checkpoint=compressed.checkpoint,
        evaluation=evaluation,
        screening=evaluated.screening,
        report=evaluated.report,
        rationale=plan.rationale,
        planner=plan.planner,
        source=plan.source,
        seed=plan.seed,
        run_id=plan.run_id,
        timings={**asking, "compress": compressed.seconds, "evaluate": evaluated.seconds, "total": total},
        joules=joules,
        decisions=compressed.decisions,
        expected=plan.expected,
        calls=plan.calls,
        fallback=plan.fallback,
        energy_source="measured" if both_measured else "estimated",
        co2_grams_spent=co2_grams(joules, grid.grams_per_kwh, settings.pue),
        environment=evaluation.environment if evaluation else None,
        started_at=datetime.fromtimestamp(time.time() - total, UTC).isoformat(timespec="seconds"),
        finished_at=now.isoformat(timespec="seconds"),
        reused=compressed.cached and evaluated.cached,
    )


def _work(entry: str, request: Record, kind: type[Outcome], config: StudyConfig, bench: Workbench) -> Outcome:
    """Run a task in a child and read its outcome; energy is the counter's, or CPU time where there is none."""
    watts = bench.settings.cpu_watts_per_core
    with EnergyMeter(select_counter(config.evaluation.device, watts)) as meter:
        done = bench.supervisor.run(entry, request, timeout_s=config.episode_timeout_s)
    measured = meter.reading.source == "measured"
    spent = {
        "seconds": done.wall_seconds,
        "joules": meter.reading.joules if measured else done.cpu_seconds * watts,
        "energy_source": meter.reading.source,
    }
    if done.result is None:
        return kind.model_validate({"status": done.status, "error": done.error, **spent})
    return kind.model_validate({**done.result, **spent})
