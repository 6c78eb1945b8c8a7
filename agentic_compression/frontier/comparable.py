"""Which measured episodes may be ranked together: finite numbers, taken in the baseline's environment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agentic_compression.records import EpisodeRecord, Excluded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentic_compression.records import Environment

__all__ = ["comparable", "compared_versions", "differences", "excluded"]

_LIBRARIES = ("torch", "transformers", "tokenizers", "lm-eval")
_ENGINES = {"llama.cpp": "xllamacpp", "vllm": "vllm"}


def compared_versions(environment: Environment) -> dict[str, str]:
    """Versions that a number depends on: the harness, the tensor library, and the engine that ran this model.

    Which engine runs a candidate is part of its strategy, so the engine's name is not compared; its version is, with
    the one that was installed when the baseline was measured.
    """
    names = (*_LIBRARIES, *(engine for name, engine in _ENGINES.items() if name == environment.runtime))
    return {name: environment.packages[name] for name in names if name in environment.packages}


def differences(environment: Environment, reference: Environment) -> tuple[str, ...]:
    """In words, what of an environment changes numbers and is not as in the reference."""
    found = [
        f"{name} is {ours or 'unknown'}, the baseline's {theirs or 'unknown'}"
        for name, ours, theirs in (
            ("device", environment.device, reference.device),
            ("cpu", environment.cpu, reference.cpu),
            ("threads", environment.threads, reference.threads),
        )
        if ours != theirs
    ]
    versions = compared_versions(environment)
    return (
        *found,
        *(
            f"{name} is {version}, the baseline's {reference.packages[name]}"
            for name, version in versions.items()
            if reference.packages.get(name, version) != version
        ),
    )


def excluded(records: Sequence[EpisodeRecord]) -> tuple[Excluded, ...]:
    """The measured episodes that may not be ranked with the baseline, by number, each with every reason.

    Without a measured baseline the first measured episode takes its place. A record that does not say where it was
    measured is compared by its numbers alone.
    """
    points = sorted((r for r in records if r.status == "succeeded" and r.objectives), key=lambda r: r.episode)
    reference = next((record.environment for record in points if record.environment), None)
    found = []
    for record in points:
        assert record.objectives is not None
        reasons = [
            f"{name} is {value}, not a finite number"
            for name, value in record.objectives.model_dump().items()
            if not math.isfinite(value)
        ]
        if reference is not None and record.environment is not None:
            reasons += differences(record.environment, reference)
        if reasons:
            found.append(Excluded(episode=record.episode, reason="; ".join(reasons)))
    return tuple(found)


def comparable(records: Sequence[EpisodeRecord], left_out: Sequence[Excluded] = ()) -> list[EpisodeRecord]:
    """The same records, with the excluded ones shown as episodes that gave no result.

    Whatever ranks, learns from or counts records then passes over them and still sees that the episode took place.

    Args:
        records: of one study.
        left_out: more to exclude, found by other means; an episode may be in both.
    """
    reasons = {item.episode: item.reason for item in (*left_out, *excluded(records))}
    return [
        record.model_copy(update={"status": "failed", "objectives": None, "error": reasons[record.episode]})
        if record.episode in reasons and record.status == "succeeded"
        else record
        for record in records
    ]
