"""The loop of ``acf run``: one episode after another until a budget, convergence or the user ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentic_compression.errors import AcfError
from agentic_compression.frontier import comparable, termination
from agentic_compression.records import EpisodeRecord, FinalResults, StudyConfig
from agentic_compression.study.episode import rebuild_frontier
from agentic_compression.study.workbench import Workbench

__all__ = ["read_results", "run_study"]


def run_study(
    config: StudyConfig, bench: Workbench, run_one: Callable[[StudyConfig], None], *, when_converged: bool = True
) -> FinalResults:
    """Run episodes until the study ends; the same call on an interrupted study goes on where it stopped.

    Args:
        config: the study, with its name filled in.
        bench: history, registry and child processes.
        run_one: advances the study by one episode, for example one run of the ZenML pipeline.
        when_converged: end when the study has converged; not where a number of further episodes was asked for.

    Returns:
        The final results, also in ``final_results.json``; ``termination_reason`` is ``interrupted`` after Ctrl-C.

    Raises:
        AcfError: when ``run_one`` neither recorded an episode nor ended the study.
    """
    bench.history.open_study(config)
    reason: str | None
    while True:
        records = bench.history.records(config.name)
        reason = _end(config, records, when_converged=when_converged)
        bench.announce("progress", records=records, reason=reason)
        if reason is not None:
            break
        try:
            run_one(config)
        except KeyboardInterrupt:
            reason = "interrupted"
            break
        if len(bench.history.records(config.name)) == len(records):
            reason = read_results(config, bench).termination_reason
            if reason is None:
                raise AcfError(f"study {config.name}: the last run recorded no episode (see {bench.settings.logs})")
            break
    with bench.lock(config.name):
        document = rebuild_frontier(config, bench, termination=reason)
    bench.announce("frontier", document=document)
    return read_results(config, bench)


def read_results(config: StudyConfig, bench: Workbench) -> FinalResults:
    """``final_results.json`` of the study."""
    return FinalResults.model_validate_json((bench.folder(config.name) / "final_results.json").read_text())


def _end(config: StudyConfig, records: Sequence[EpisodeRecord], *, when_converged: bool) -> str | None:
    seconds = sum(record.timings.get("total", 0.0) for record in records)
    kilograms = sum(record.co2_grams_spent for record in records) / 1000
    return termination(config, comparable(records), seconds, kilograms, when_converged=when_converged)
