"""The results table of a study: one row a measured episode, with all that a promotion depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from agentic_compression.checkpoints.folders import GGUF_NAME
from agentic_compression.checkpoints.manifest import read_manifest
from agentic_compression.errors import ModelError
from agentic_compression.frontier import compared_versions
from agentic_compression.records import CheckpointRef, EpisodeRecord, Estimate, Evaluation, Record, content_digest
from agentic_compression.storage import folder_bytes

__all__ = ["ResultRow", "result_rows", "unexplained_bytes"]

_DESCRIPTION_BYTES = 65_536  # configuration, tokenizer configuration and manifest as transformers and we write them
_GROWING = {
    "adapted": "{} layers keep 16-bit adapters beside their weights",
    "low_rank": "{} layers are two factors, which take more than one matrix at a high rank",
    "bitmask": "{} layers store a bit an element beside the values that are left",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


class ResultRow(Record):
    """One measured episode."""

    episode: int = Field(ge=0)
    key: str = Field(description="digest of the record it was made from")
    strategy: str
    status: str
    rung: int = Field(description="3 when measured in full; otherwise the rung that it did not pass")
    checkpoint_digest: str = Field(description="of the stored checkpoint")
    measured_digest: str = Field(description="of the checkpoint that the evaluation names")
    checkpoint_bytes: int
    measured_bytes: int
    growth_explained: str = Field(default="", description="why it may take more bytes than the baseline")
    numbers: dict[str, tuple[float, float, float]] = Field(description="value, low and high by quantity")
    sameness: dict[str, str] = Field(description="what must be as in the baseline, by quantity")
    stable: bool = Field(default=True, description="whether the request times had settled")
    missing: str = Field(default="", description="what the record lacks")


def result_rows(
    records: Sequence[EpisodeRecord],
    evaluation_of: Callable[[int], Evaluation | None],
    kept: Sequence[ResultRow] = (),
) -> tuple[ResultRow, ...]:
    """The table, by rising episode number.

    Args:
        records: of one study; those that hold no result give no row.
        evaluation_of: reads the full evaluation of an episode, where the record does not hold it.
        kept: rows made earlier; those of unchanged records are taken as they are, unless something was out of reach
            when they were made.
    """
    known = {row.key: row for row in kept}
    rows: list[ResultRow] = []
    for record in sorted(records, key=lambda item: item.episode):
        if record.status != "succeeded" and record.objectives is None:
            continue
        key = _key(record)
        row = known.get(key)
        if row is None or row.missing or unexplained_bytes(row, (rows or [row])[0].checkpoint_bytes):
            row = _row(record, key, record.evaluation or evaluation_of(record.episode))
        rows.append(row)
    return tuple(rows)


def unexplained_bytes(row: ResultRow, baseline_bytes: int) -> int:
    """Bytes beyond the baseline's that nothing accounts for, at least 0."""
    growth = row.checkpoint_bytes - baseline_bytes
    return growth if growth > _DESCRIPTION_BYTES and not row.growth_explained else 0


def _key(record: EpisodeRecord) -> str:
    """Evaluations are left out: a history gives them with some records only."""
    text = record.model_copy(update={"evaluation": None}).model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(record: EpisodeRecord, key: str, evaluation: Evaluation | None) -> ResultRow:
    checkpoint = record.checkpoint
    failed = [reading.rung for reading in record.screening if not reading.passed]
    lacks = [
        name
        for name, value in (
            ("evaluation", evaluation),
            ("checkpoint", checkpoint),
            ("objectives", record.objectives),
        )
        if value is None
    ]
    return ResultRow(
        episode=record.episode,
        key=key,
        strategy=record.strategy.label,
        status=record.status,
        rung=min(failed) if failed else 3,
        checkpoint_digest=checkpoint.digest if checkpoint else "",
        measured_digest=evaluation.checkpoint_digest if evaluation else "",
        checkpoint_bytes=checkpoint.size_bytes if checkpoint else 0,
        measured_bytes=evaluation.size_bytes if evaluation else 0,
        growth_explained=_explanation(checkpoint) if checkpoint else "",
        numbers=_numbers(record, evaluation),
        sameness=_sameness(evaluation) | _report_sameness(record) if evaluation else {},
        stable=evaluation.latency.stable if evaluation else True,
        missing=", ".join(lacks),
    )


def _numbers(record: EpisodeRecord, evaluation: Evaluation | None) -> dict[str, tuple[float, float, float]]:
    found: dict[str, tuple[float, float, float]] = {}
    if record.objectives is not None:
        for name, value in record.objectives.model_dump().items():
            low, high = record.intervals.get(name, (value, value))
            found[name] = (value, low, high)
    estimates: dict[str, Estimate] = {}
    if evaluation is not None:
        estimates |= {f"score of {score.task}": score.score for score in evaluation.benchmarks}
        estimates["ttft_ms"] = evaluation.latency.ttft_ms
        estimates["decode_ms_per_token"] = evaluation.latency.decode_ms_per_token
        estimates["joules_per_request"] = evaluation.energy.joules_per_request
        if evaluation.perplexity is not None:
            estimates["perplexity"] = evaluation.perplexity.perplexity
    if record.report is not None:
        estimates["reported accuracy"] = record.report.accuracy
        estimates |= {f"reported score of {score.task}": score.score for score in record.report.benchmarks}
    return found | {name: (item.value, item.low, item.high) for name, item in estimates.items()}


def _sameness(evaluation: Evaluation) -> dict[str, str]:
    environment, energy = evaluation.environment, evaluation.energy
    found = {
        "device": environment.device,
        "cpu": environment.cpu,
        "threads": str(environment.threads),
        "energy source": energy.source,
        "grid factor": f"{energy.grid_grams_per_kwh:g} g/kWh",
        "items": evaluation.split,
        "settings": content_digest(evaluation.settings),
        "tasks": ", ".join(score.task for score in evaluation.benchmarks),
    }
    found |= {f"version of {name}": version for name, version in compared_versions(environment).items()}
    for score in evaluation.benchmarks:
        found |= {
            f"items of {score.task}": score.items_digest,
            f"number of items of {score.task}": str(score.score.n),
            f"metric of {score.task}": score.metric,
            f"harness of {score.task}": score.harness,
        }
    if evaluation.perplexity is not None:
        found["documents of perplexity"] = str(evaluation.perplexity.documents)
    return found


def _report_sameness(record: EpisodeRecord) -> dict[str, str]:
    """Only episodes that stood on the frontier have a report, so one that is missing is no difference."""
    if record.report is None:
        return {}
    scores = record.report.benchmarks
    found = {f"reported items of {score.task}": score.items_digest for score in scores}
    return found | {"reported tasks": ", ".join(score.task for score in scores)}


def _explanation(checkpoint: CheckpointRef) -> str:
    """What the stored folder itself says of formats that can take more bytes than what they replace."""
    folder = Path(checkpoint.path)
    if checkpoint.shared or not folder.is_dir():
        return ""
    try:
        manifest = read_manifest(folder)
    except ModelError:
        return ""
    kinds = [module.kind for module in manifest.modules.values()] if manifest else []
    found = [words.format(kinds.count(kind)) for kind, words in _GROWING.items() if kind in kinds]
    if (folder / GGUF_NAME).is_file() and any((folder / name).is_file() for name in _TOKENIZER_FILES):
        found.append(
            f"{GGUF_NAME} holds the tokenizer that also lies beside it ({folder_bytes(folder):,} bytes in all)"
        )
    return "; ".join(found)
