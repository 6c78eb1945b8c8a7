"""What ``acf registry`` says of a version, a move and a request, in words and units."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentic_compression.records import JournalEntry
    from agentic_compression.registry import RegisteredVersion

__all__ = ["asked_by", "facts", "moves", "notes", "waiting", "what_happened"]

_OBJECTIVES = {  # tag: name, factor, digits
    "accuracy": ("accuracy", 1.0, "{:.3f}"),
    "latency_ms": ("latency, ms", 1.0, "{:.1f}"),
    "memory_gb": ("memory, MB", 1000.0, "{:.1f}"),
    "model_size_gb": ("size, MB", 1000.0, "{:.2f}"),
    "co2_grams": ("CO2e, g per 1000 requests", 1.0, "{:.4g}"),
}
_RATIOS = {
    "latency_ms": "latency", "ttft_ms": "time to the first token", "memory_gb": "memory", "model_size_gb": "size",
    "joules_per_request": "energy",
}  # fmt: skip
_FOR_MACHINES = (
    "key",
    "state",
    "withheld",
    "study",
    "episode",
    "strategy",
    "environment_digest",
    "baseline.co2_grams_ratio",
)
_WHAT = {"follow": "followed the frontier", "promote": "promoted", "approve": "approved", "rollback": "rolled back"}


def facts(version: RegisteredVersion) -> list[tuple[str, str]]:
    """What is known of a version, the most wanted first; tags that have no words here follow as they are."""
    tags = {key.removeprefix("acf."): value for key, value in sorted(version.tags.items()) if value}
    reason = f": {tags['withheld']}" if "withheld" in tags else ""
    rows = [
        ("aliases", ", ".join(version.aliases) or "none"),
        ("state", version.state + reason),
        ("study, episode", f"{version.study}, {version.episode}"),
        ("strategy", version.strategy),
    ]
    for name in _FOR_MACHINES:
        tags.pop(name, None)
    rows += [*_objectives(tags), *_beside_baseline(tags)]
    rows += [(f"refused as {aliases}", f"not passed: {reason}") for aliases, reason in _refusals(version)]
    tags = {key: value for key, value in tags.items() if not key.startswith("refused.")}
    if "environment" in tags:
        rows.append(("measured with", _environment(tags.pop("environment"))))
    return [*rows, ("checkpoint", version.source), *((name.replace("_", " "), value) for name, value in tags.items())]


def _objectives(tags: dict[str, str]) -> Iterator[tuple[str, str]]:
    for tag, (name, factor, digits) in _OBJECTIVES.items():
        if tag not in tags:
            continue
        told = digits.format(float(tags.pop(tag)) * factor)
        if interval := tags.pop(f"{tag}.interval", ""):
            low, high = (digits.format(float(bound) * factor) for bound in interval.strip("[]").split(","))
            told += f" [{low}, {high}]" if low != high else ""
        if tag == "accuracy" and "search_accuracy" in tags:
            told += f" (on the items that plans were made on: {float(tags.pop('search_accuracy')):.3f})"
        yield name, told


def _beside_baseline(tags: dict[str, str]) -> Iterator[tuple[str, str]]:
    if "baseline.accuracy_delta" in tags:
        told = [tags.pop(f"baseline.{name}", "?") for name in ("accuracy_delta", "verdict", "items", "p_value")]
        yield "accuracy beside the baseline", f"{told[0]}: {told[1]} at n={told[2]}, p={told[3]}"
    for tag, name in _RATIOS.items():
        if ratio := tags.pop(f"baseline.{tag}_ratio", ""):
            yield f"{name}, share of the baseline's", ratio


def _environment(text: str) -> str:
    place = json.loads(text)
    head = f"{place.pop('runtime', '?')} on {place.pop('device', '?')} ({place.pop('cpu', '?')}), "
    threads = place.pop("threads", "?")
    return f"{head}threads: {threads}; " + ", ".join(f"{name} {version}" for name, version in place.items())


def notes(versions: Sequence[RegisteredVersion]) -> Iterator[str]:
    """What a table of versions does not show: how many were refused an alias, and aliases of versions that left."""
    refused = [version.name for version in versions if _refusals(version)]
    if refused:
        count = f"{len(refused)} versions were" if len(refused) > 1 else "1 version was"
        yield f"{count} refused aliases; see: acf registry show {refused[-1]}"
    for version in versions:
        if version.aliases and version.state != "frontier":
            yield f"{version.name} is {version.state} and holds {', '.join(version.aliases)} until another takes over"


def _refusals(version: RegisteredVersion) -> list[tuple[str, str]]:
    """Aliases that the gate refused it, and for what; those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in sorted(version.tags.items()):
        if key.startswith("acf.refused.") and reason:
            by_reason.setdefault(reason, []).append(key.removeprefix("acf.refused."))
    return [(", ".join(aliases), reason) for reason, aliases in by_reason.items()]


def moves(entry: JournalEntry) -> list[str]:
    """``champion 2 → 3`` for every alias of an entry."""
    return [f"{alias} {entry.before.get(alias) or 'none'} → {to or 'none'}" for alias, to in entry.after.items()]


def asked_by(entry: JournalEntry) -> str:
    """A person, or a study and whose process it ran in."""
    return f"study {entry.study} of {entry.who}" if entry.action == "follow" else entry.who


def waiting(entry: JournalEntry, versions: Sequence[RegisteredVersion]) -> str:
    """One line on a request: what it moves, what it takes away and from what, who asked, and whether it still can."""
    own = [item for item in versions if item.model == entry.model]
    told = ", ".join(
        f"{move}{_remark(entry, alias, own)}" for alias, move in zip(entry.after, moves(entry), strict=True)
    )
    return f"{entry.model}: {told} ({entry.why}; asked by {asked_by(entry)} at {entry.at[:19]})"


def _remark(entry: JournalEntry, alias: str, versions: Sequence[RegisteredVersion]) -> str:
    before = entry.before.get(alias, "")
    current = next((item.version for item in versions if alias in item.aliases), "")
    if current != before:
        return f" (out of date: at {current or 'none'} now)"
    if not entry.after[alias]:
        state = next((item.state for item in versions if item.version == before), "gone")
        return f" (taken away, version {before} is {state})"
    return ""


def what_happened(entry: JournalEntry, requests: Mapping[str, JournalEntry], *, recovered: bool, waits: bool) -> str:
    """An entry of the history in words; an approval also says who had asked."""
    if entry.kind == "requested":
        return f"asked{' (waits)' if waits else ''}"
    if entry.kind == "rejected":
        return "withdrawn" if entry.withdrawn else "refused"
    told = _WHAT[entry.action]
    if entry.forced:
        told += " by force"
    if asked := requests.get(entry.request):
        told += f" what {asked_by(asked)} asked"
    return f"{told} (completed later)" if recovered else told
