"""The files of a study, derived from its history and rewritten atomically after each episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agentic_compression.frontier import comparable, hypervolume_by_episode, reported
from agentic_compression.frontier.plot import frontier_html
from agentic_compression.planning.llm import expectation_errors, planner_note, planner_usage, source_summaries
from agentic_compression.planning.reward import rewards
from agentic_compression.records import (
    EpisodePlan,
    EpisodeRecord,
    EpisodeResults,
    FinalResults,
    FrontierDocument,
    ModelSpec,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.storage import write_atomically, write_record

__all__ = [
    "endings",
    "episode_folder",
    "final_results",
    "keep_ending",
    "write_episode",
    "write_spec",
    "write_study_files",
]

_ENDINGS = "planner_endings.jsonl"


def episode_folder(folder: Path, episode: int) -> Path:
    """``episode_007``."""
    return folder / f"episode_{episode:03d}"


def write_episode(folder: Path, record: EpisodeRecord, is_pareto_optimal: bool) -> None:
    """Write ``strategy.json`` and ``results.json`` of one episode."""
    target = episode_folder(folder, record.episode)
    write_record(target / "strategy.json", record.strategy)
    write_record(target / "results.json", episode_results(record, is_pareto_optimal))


def episode_results(record: EpisodeRecord, is_pareto_optimal: bool) -> EpisodeResults:
    """The flat form of a record that ``results.json`` holds, without its reward, which depends on the others'."""
    evaluation = record.evaluation
    base = EpisodeResults(
        episode=record.episode,
        status=record.status,
        error=record.error,
        strategy=record.strategy.label,
        rationale=record.rationale,
        source=record.source,
        expected=record.expected,
        fallback=record.fallback,
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

    Episodes' own files, which must exist, are corrected where their membership or their reward changed. The reward is
    that of ``planning.reward``, of the episodes that are ranked together.
    """
    results = final_results(config, document, records, termination, endings(folder))
    write_record(folder / "study.json", config)
    write_record(folder / "pareto_frontier.json", document)
    write_record(folder / "final_results.json", results)
    shown = comparable(records, document.excluded)
    write_atomically(folder / "pareto_visualization.html", frontier_html(document, shown))
    members, earned = {solution.episode for solution in document.solutions}, rewards(shown, config.constraints)
    for record in records:
        _correct(folder, record.episode, record.episode in members, earned.get(record.episode))
    return results


def keep_ending(folder: Path, plan: EpisodePlan) -> None:
    """Keep a plan that ended the study: no episode records what asking for it took."""
    lines = [item.model_dump_json() for item in (*endings(folder), plan)]
    write_atomically(folder / _ENDINGS, "".join(f"{line}\n" for line in lines))


def endings(folder: Path) -> tuple[EpisodePlan, ...]:
    """The plans that ended the study, in their order; a study that was gone on with may have several."""
    path = folder / _ENDINGS
    if not path.exists():
        return ()
    return tuple(EpisodePlan.model_validate_json(line) for line in path.read_text().split("\n") if line)


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write ``model_spec.json``."""
    write_record(folder / "model_spec.json", spec)


def final_results(
    config: StudyConfig,
    document: FrontierDocument,
    records: Sequence[EpisodeRecord],
    termination: str | None,
    ended: Sequence[EpisodePlan] = (),
) -> FinalResults:
    """Totals over all episodes; energy counts as measured only when every episode's was.

    Args:
        config: the study.
        document: its frontier.
        records: everything recorded of it.
        termination: why it ended; None while it goes on.
        ended: plans of the language model that ended it.
    """
    statuses, shown = Counter(record.status for record in records), comparable(records, document.excluded)
    calls = [call for record in records for call in record.calls] + [call for plan in ended for call in plan.calls]
    usage = planner_usage(calls, sum(bool(record.fallback) for record in records))
    note = planner_note(shown, usage, config.seed, get_settings().planner_override_share)
    if ended and termination == "planner_end":
        note = f"{note}; {ended[-1].rationale}"
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
        hypervolume_by_episode=tuple(hypervolume_by_episode(reported(shown))),
        wall_seconds=sum(record.timings.get("total", 0.0) for record in records),
        energy_kwh=sum(record.joules for record in records) / 3.6e6,
        co2_grams=sum(record.co2_grams_spent for record in records),
        energy_source="measured" if measured else "estimated",
        planner_usage=usage,
        planner_note=note,
        planner_sources=source_summaries(shown),
        expectation_errors=expectation_errors(shown),
        environment=next((record.environment for record in records if record.environment), None),
    )


def _correct(folder: Path, episode: int, is_member: bool, reward: float | None) -> None:
    """What of an episode's file depends on the other episodes."""
    path = episode_folder(folder, episode) / "results.json"
    results = EpisodeResults.model_validate_json(path.read_text())
    corrected = results.model_copy(update={"is_pareto_optimal": is_member, "reward": reward})
    if corrected != results:
        write_record(path, corrected)
