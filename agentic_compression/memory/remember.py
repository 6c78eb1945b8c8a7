"""From the records of a study to experiences that mean something elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentic_compression.memory.experiments import add_experiences, canonical_text
from agentic_compression.memory.quarantine import set_aside_text
from agentic_compression.memory.validation import COSTS, LONGEST, clean_text, problem_with
from agentic_compression.memory.workspace import Workspace
from agentic_compression.records import EpisodeRecord, Experience, ModelSpec, Objectives, StudyConfig

__all__ = ["experiences_of", "remember"]

_ERROR_CHARACTERS = 500


def remember(
    workspace: Workspace,
    records: Sequence[EpisodeRecord],
    spec: ModelSpec,
    config: StudyConfig,
    dataset: str,
    tasks: tuple[str, ...] = (),
) -> int:
    """Add what a study measured to the memory; what is remembered already is not added again.

    What cannot be true goes to quarantine with the reason.

    Args:
        workspace: where memory lies.
        records: finished episodes of one study, the baseline among them; without it nothing has a ratio.
        spec: of the uncompressed model.
        config: the study.
        dataset: its dataset's short name.
        tasks: what was asked; the tasks of the baseline's evaluation when empty.

    Returns:
        How many experiences are new.
    """
    believable = []
    for item in experiences_of(records, spec, config, dataset, tasks):
        if problem := problem_with(item):
            set_aside_text(workspace, f"episode {item.episode} of {item.study}", canonical_text(item).encode(), problem)
        else:
            believable.append(item)
    with workspace.lock():
        return len(add_experiences(workspace, believable))


def experiences_of(
    records: Iterable[EpisodeRecord],
    spec: ModelSpec,
    config: StudyConfig,
    dataset: str,
    tasks: tuple[str, ...] = (),
) -> list[Experience]:
    """One experience for every compressed episode, by its number; the baseline gives the proportions."""
    ordered = sorted(records, key=lambda record: record.episode)
    first = next((record for record in ordered if record.strategy.is_baseline and record.objectives), None)
    asked = first.evaluation.benchmarks if first and first.evaluation else ()
    place = {
        "study": config.name,
        "model": _model_name(spec, config),
        "digest": clean_text(spec.digest or "", 64),
        "family": clean_text(spec.family, LONGEST["family"]),
        "architecture": clean_text(spec.architecture, LONGEST["architecture"]),
        "parameters": spec.parameters,
        "dataset": clean_text(dataset, LONGEST["dataset"]),
        "tasks": tuple(clean_text(task, LONGEST["task"]) for task in tasks or (score.task for score in asked)),
        "objective": clean_text(config.objective, LONGEST["objective"], prose=True),
    }
    return [
        Experience.model_validate({**place, **_outcome(record, first)})
        for record in ordered
        if not record.strategy.is_baseline
    ]


def _outcome(record: EpisodeRecord, first: EpisodeRecord | None) -> dict[str, object]:
    environment = record.environment or (first.environment if first else None)
    goals = record.objectives if record.status == "succeeded" else None
    baseline = first.objectives if first else None
    return {
        "episode": record.episode,
        "strategy": record.strategy,
        "status": record.status,
        "error": clean_text(record.error or "", _ERROR_CHARACTERS, prose=True),
        "device": clean_text(environment.device if environment else "", LONGEST["device"]),
        "accuracy": goals.accuracy if goals else None,
        "baseline_accuracy": baseline.accuracy if baseline else None,
        "items": _items(record, first),
        "kl": _divergence(record),
        "ratios": _ratios(goals, baseline) if goals and baseline else {},
        "at": record.finished_at,
    }


def _model_name(spec: ModelSpec, config: StudyConfig) -> str:
    """As the user wrote it; of a local folder its name alone, which also means something on another machine."""
    name = clean_text(config.model, LONGEST["model"])
    return name.rstrip("/").rpartition("/")[2] or name if spec.path is not None else name


def _items(record: EpisodeRecord, first: EpisodeRecord | None) -> int:
    """Items behind an accuracy: all episodes of a study are asked the same, and the baseline's record says how many."""
    known = next((item.evaluation for item in (first, record) if item is not None and item.evaluation), None)
    return known.accuracy.n if known else 0


def _divergence(record: EpisodeRecord) -> float | None:
    """As the rungs read it last, which is what a study's history keeps."""
    readings = [reading.value for reading in record.screening if reading.quantity == "kl"]
    if readings:
        return max(0.0, readings[-1])
    divergence = record.evaluation.divergence if record.evaluation else None
    return max(0.0, divergence.kl.value) if divergence else None


def _ratios(goals: Objectives, baseline: Objectives) -> dict[str, float]:
    """Costs over the baseline's; a cost that the baseline does not have is left out."""
    pairs = ((name, getattr(goals, name), getattr(baseline, name)) for name in COSTS)
    return {name: float(value / whole) for name, value, whole in pairs if whole > 0 and value > 0}
