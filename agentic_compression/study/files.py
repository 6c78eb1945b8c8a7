"""The files of a study, derived from its history and rewritten atomically after each episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agentic_compression.frontier import comparable, hypervolume_by_episode, reported
from agentic_compression.frontier.plot import frontier_html
from agentic_compression.records import (
    EpisodeRecord,
    EpisodeResults,
    FinalResults,
    FrontierDocument,
    ModelSpec,
    StudyConfig,
)
from agentic_compression.storage import write_atomically, write_record

__all__ = ["episode_folder", "final_results", "write_episode", "write_spec", "write_study_files"]


def episode_folder(folder: Path, episode: int) -> Path:
    """``episode_007``."""
    return folder / f"episode_{episode:03d}"


def write_episode(folder: Path, record: EpisodeRecord, is_pareto_optimal: bool) -> None:
    """Write ``strategy.json`` and ``results.json`` of one episode."""
    target = episode_folder(folder, record.episode)
    write_record(target / "strategy.json", record.strategy)
    write_record(target / "results.json", episode_results(record, is_pareto_optimal))


def episode_results(record: EpisodeRecord, is_pareto_optimal: bool) -> EpisodeResults:
    """The flat form of a record that ``results.json`` holds."""
    evaluation = record.evaluation
    base = EpisodeResults(
        episode=record.episode,
        status=record.status,
        error=record.error,
        strategy=record.strategy.label,
        rationale=record.rationale,
        source=record.source,
        decisions=record.decisions,
        screening=record.screening,
        objectives=record.objectives,
        intervals=record.intervals,
        report_accuracy=record.report.accuracy if record.report else None,
        report_scores={s.task: s.score.value for s in record.report.benchmarks} if record.report else {},
        energy_source=record.energy_source,
        is_pareto_optimal=is_pareto_optimal,
        environment=record.environment,
        timings=record.timings,
    )
    if evaluation is None:
        return base
    return base.model_copy(
        update={
            "benchmark_scores": {score.task: score.score.value for score in evaluation.benchmarks},
            "perplexity": evaluation.perplexity.perplexity.value if evaluation.perplexity else None,
            "throughput_tokens_per_s": evaluation.latency.throughput_tokens_per_s,
            "ttft_ms": evaluation.latency.ttft_ms.value,
            "energy_joules": evaluation.energy.joules_per_request.value,
            "sample_count": sum(score.score.n for score in evaluation.benchmarks),
        }
    )


def write_study_files(
    folder: Path,
    config: StudyConfig,
    document: FrontierDocument,
    records: Sequence[EpisodeRecord],
    termination: str | None,
) -> FinalResults:
    """Rewrite ``study.json``, ``pareto_frontier.json``, ``final_results.json`` and ``pareto_visualization.html``.

    Episodes' own files, which must exist, are corrected where their membership changed.
    """
    results = final_results(config, document, records, termination)
    write_record(folder / "study.json", config)
    write_record(folder / "pareto_frontier.json", document)
    write_record(folder / "final_results.json", results)
    shown = comparable(records, document.excluded)
    write_atomically(folder / "pareto_visualization.html", frontier_html(document, shown))
    members = {solution.episode for solution in document.solutions}
    for record in records:
        _correct_membership(folder, record, record.episode in members)
    return results


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write ``model_spec.json``."""
    write_record(folder / "model_spec.json", spec)


def final_results(
    config: StudyConfig, document: FrontierDocument, records: Sequence[EpisodeRecord], termination: str | None
) -> FinalResults:
    """Totals over all episodes; energy counts as measured only when every episode's was."""
    statuses = Counter(record.status for record in records)
    measured = bool(records) and all(record.energy_source == "measured" for record in records)
    return FinalResults(
        study=config.name,
        model=config.model,
        dataset=config.dataset,
        planner=config.planner,
        seed=config.seed,
        episodes_run=len(records),
        episodes_by_status=dict(sorted(statuses.items())),
        termination_reason=termination,
        baseline=document.baseline,
        solutions=document.solutions,
        hypervolume_by_episode=tuple(hypervolume_by_episode(reported(comparable(records, document.excluded)))),
        wall_seconds=sum(record.timings.get("total", 0.0) for record in records),
        energy_kwh=sum(record.joules for record in records) / 3.6e6,
        co2_grams=sum(record.co2_grams_spent for record in records),
        energy_source="measured" if measured else "estimated",
        environment=next((record.environment for record in records if record.environment), None),
    )


def _correct_membership(folder: Path, record: EpisodeRecord, is_member: bool) -> None:
    path = episode_folder(folder, record.episode) / "results.json"
    results = EpisodeResults.model_validate_json(path.read_text())
    if results.is_pareto_optimal != is_member:
        write_record(path, results.model_copy(update={"is_pareto_optimal": is_member}))
