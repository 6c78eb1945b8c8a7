"""``README.md`` of an export: what it is, what was done and measured, how to load it, what is not known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agentic_compression.export.card_text import code, line, prose, quoted
from agentic_compression.export.loading import loading_code, runtime_of
from agentic_compression.export.origin import Licence, Origin
from agentic_compression.export.plan import foreign_quantizer
from agentic_compression.records import EpisodeRecord, ExportRecord, Objectives, Stage

__all__ = ["model_card"]

_LIBRARIES = {"hf": "transformers", "compressed-tensors": "transformers", "gguf": "gguf", "onnx": "onnx"}
_ROWS: tuple[tuple[str, str, str, float], ...] = (
    ("accuracy", "accuracy", "fraction correct", 1),
    ("latency_ms", "latency of one request", "ms", 1),
    ("memory_gb", "memory a process grows by", "MB", 1000),
    ("model_size_gb", "size on disk", "MB", 1000),
    ("co2_grams", "CO2e of 1,000 requests", "g", 1),
)


def model_card(record: ExportRecord, origin: Origin) -> str:
    """The card of an export; whatever comes from outside is escaped.

    Args:
        record: of the export, with its check.
        origin: of the checkpoint.
    """
    base = _base_name(origin)
    parts = [
        f"---\n{_front_matter(record, origin)}---",
        f"# {prose(base or 'A model', 100)}, {_title(record)}",
        "\n".join(_introduction(record, origin, base)),
        "## What was done\n\n" + "\n".join(_stages(origin)),
        "## What was measured\n\n" + "\n".join(_measured(record, origin)),
        "## This export\n\n" + "\n".join(_export(record)),
        "## How to load it\n\n"
        + loading_code(record, origin.manifest, foreign_quantizer(origin.folder, origin.manifest)),
        "## Hardware and runtime\n\n" + "\n".join(_hardware(record, origin)),
        "## Limits\n\n" + "\n".join(_limits(record, origin)),
        "## Licence\n\n" + _licence(origin, base),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: ExportRecord, origin: Origin) -> str:
    methods = [stage.method for stage in origin.strategy.stages]
    values: dict[str, Any] = {
        **_licence_values(origin.licence),
        "library_name": _LIBRARIES.get(record.format, "agentic-compression"),
        "pipeline_tag": "text-generation",
        "tags": sorted({"agentic-compression", "compressed", record.format, *methods}),
    }
    if origin.on_hub and origin.base_model is not None:
        values["base_model"] = origin.base_model
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000)


def _licence_values(found: Licence) -> dict[str, Any]:
    values: dict[str, Any] = {"license": "unknown"}
    if found.names:
        values["license"] = found.names[0] if len(found.names) == 1 else list(found.names)
    if found.title:
        values["license_name"] = found.title
    if found.link:
        values["license_link"] = found.link
    return values


def _base_name(origin: Origin) -> str | None:
    """Of the source model; of a local folder its name alone, which says nothing of the machine."""
    if origin.base_model is None:
        return None
    if origin.on_hub:
        return line(origin.base_model)
    return line(Path(origin.base_model).name or origin.base_model)


def _title(record: ExportRecord) -> str:
    return {
        "hf": "compressed, for transformers",
        "compressed-tensors": "compressed, for compressed-tensors",
        "gguf": "compressed, for llama.cpp",
        "onnx": "compressed, as ONNX",
        "recipe": "a recipe of compression",
    }[record.format]


def _introduction(record: ExportRecord, origin: Origin, base: str | None) -> Iterator[str]:
    stated = ", as stated by the user" if origin.stated else ""
    of = f"Source model: {code(base)}{stated}." if base else "Source model: unknown."
    yield f"{of} Strategy: {code(origin.strategy.label)}."
    yield (
        f"Made by agentic-compression {prose(record.code_version)} from the checkpoint with digest "
        f"`{record.source_digest}`, exported {record.created_at[:10]}."
    )


def _stages(origin: Origin) -> Iterator[str]:
    strategy = origin.strategy
    if strategy.is_baseline:
        yield "Nothing: these are the weights of the source model."
        return
    applied = origin.manifest.stages if origin.manifest else ()
    for number, stage in enumerate(strategy.stages, start=1):
        yield f"{number}. {code(stage.method)}: {_parameters(stage)}"
        done = applied[number - 1] if len(applied) == len(strategy.stages) else None
        for note in done.notes if done else ():
            yield f"   - {prose(note)}"
    if origin.manifest is not None:
        yield f"\nSeed {origin.manifest.seed}."
    if not applied:
        yield "\nHow the stages were carried out layer by layer is not recorded."


def _parameters(stage: Stage) -> str:
    values = ", ".join(f"{prose(name)} {prose(str(value))}" for name, value in sorted(stage.parameters.items()))
    condition = f"; only if {prose(stage.when.label)}" if stage.when else ""
    return (values or "defaults") + condition


def _measured(record: ExportRecord, origin: Origin) -> Iterator[str]:
    mine, baseline = origin.measured, origin.baseline
    if mine is None or mine.objectives is None:
        yield "Unknown: no study on this machine has measured this checkpoint. Measure it with `acf evaluate`."
        return
    same_items = baseline is None or (mine.report is None) == (baseline.report is None)
    yield "| | this checkpoint (95 % interval) | source model (95 % interval) | unit |"
    yield "|---|---|---|---|"
    for key, name, unit, factor in _ROWS:
        other = _value(baseline, key, factor) if same_items or key != "accuracy" else "not comparable"
        yield f"| {name} | {_value(mine, key, factor)} | {other} | {unit} |"
    dataset = f"study {code(origin.study)}, episode {mine.episode}"
    items = "items that the search never saw" if mine.report is not None else "all items of the dataset"
    if not same_items:
        used = "items that the search never saw" if mine.report is not None else "the items the search used"
        items = f"{used}, not comparable with the baseline's"
    yield (
        f"\nMeasured on the checkpoint in its own runtime, before this export ({dataset}). Accuracy is on {items}. "
        f"A request has 64 prompt tokens and 16 new ones unless the study says otherwise; energy is "
        f"{mine.energy_source}."
    )
    if record.form != "as stored":
        yield "This export stores the weights in another form: its size, speed and memory were not measured."


def _value(record: EpisodeRecord | None, key: str, factor: float) -> str:
    objectives: Objectives | None = record.objectives if record else None
    if record is None or objectives is None:
        return "unknown"
    value = f"{float(getattr(objectives, key)) * factor:.4g}"
    if key == "model_size_gb" or key not in record.intervals:
        return value
    low, high = record.intervals[key]
    return f"{value} ({low * factor:.4g} – {high * factor:.4g})"


def _export(record: ExportRecord) -> Iterator[str]:
    sizes = f"{record.size_bytes / 1e6:.2f} MB in {len(record.files)} files"
    if record.format == "recipe":
        yield f"- {sizes}; it holds no weights"
    else:
        own = f"{record.checkpoint_bytes / 1e6:.2f} MB"
        yield f"- weights: {prose(record.form)}; {sizes}, the checkpoint itself has {own}"
    for note in record.notes:
        yield f"- {prose(note)}"
    check = record.check
    if check is None:
        yield "- not verified by running it: there is nothing to run"
        return
    yield (
        f"- loaded in {prose(check.runtime)} and compared with the checkpoint in {prose(check.reference)} on "
        f"{len(check.prompts)} prompts and {check.tokens} tokens: the most likely next token agrees on "
        f"{check.top1_agreement:.1%}, KL divergence {check.mean_kl:.2g} nats a token on average and {check.max_kl:.2g} "
        f"at most (allowed: {check.tolerance.mean_kl:g} on average)"
    )
    same = sum(item.same for item in check.prompts)
    yield f"- greedy answers are the same for {same} of {len(check.prompts)} prompts"
    for item in check.prompts:
        if not item.same:
            yield f"   - {quoted(item.prompt)}: {quoted(item.answer)} instead of {quoted(item.expected)}"


def _hardware(record: ExportRecord, origin: Origin) -> Iterator[str]:
    yield f"- meant for: {runtime_of(record)}"
    place = origin.measured.environment if origin.measured else None
    if place is None:
        yield "- measured on: unknown"
    else:
        yield (
            f"- measured on: {prose(place.device)}, {prose(place.cpu or 'processor unknown')}, "
            f"{place.threads} threads, {place.memory_total_gb:.0f} GB, {prose(place.platform or 'platform unknown')}, "
            f"Python {prose(place.python or 'unknown')}, runtime {prose(place.runtime)}"
        )
    yield "- on other hardware: unknown"
    versions = ", ".join(f"{prose(name)} {prose(version)}" for name, version in sorted(record.packages.items()))
    yield f"- exported with: {versions}"


def _limits(record: ExportRecord, origin: Origin) -> Iterator[str]:
    yield "- What the source model cannot do, this one cannot do either; its own card says more."
    yield "- Accuracy holds for the measured dataset alone. Safety, bias and other languages were not tested."
    if record.format != "recipe":
        yield "- The comparison above is on a few short prompts: it finds a broken export, it does not measure quality."
    if origin.strategy.is_baseline:
        return
    kinds = sorted({module.kind for module in origin.manifest.modules.values()}) if origin.manifest else []
    if kinds == ["bitmask"] or any(stage.method in {"magnitude", "wanda", "sparsegpt"} for stage in _all(origin)):
        yield "- Zeros make no dense kernel faster."


def _all(origin: Origin) -> tuple[Stage, ...]:
    return origin.strategy.stages


def _licence(origin: Origin, base: str | None) -> str:
    found = origin.licence
    of = f"the source model {code(base)}" if base else "the source model"
    if not found.names:
        return f"Unknown: {prose(found.why)}. The licence of {of} applies; look it up before you use or share this."
    names = ", ".join(prose(name) for name in found.names)
    title = f" ({prose(found.title)})" if found.title else ""
    link = f" Its text: <{found.link}>." if found.link.startswith("https://") else ""
    if len(found.names) > 1:
        return f"{names}, the licences of {of}, which apply to these weights too.{link}"
    return f"{names}{title}, the licence of {of}, which applies to these weights too.{link}"
