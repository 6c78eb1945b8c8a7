"""Seconds, CO2e and memory of an item before it runs, and the memory of how far such estimates were off.

Compressing is estimated by the methods themselves (``methods.estimates``). Measuring takes about as long as measuring
the baseline did; before that, a forward pass over the text of the search items and the repeats of the fixed workload.
Both are then multiplied by how far earlier estimates in this state root were off.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from agentic_compression.agent.desk import Desk
from agentic_compression.agent.plan import ItemEstimate
from agentic_compression.evaluation.cost import co2_grams
from agentic_compression.evaluation.grid import grid_factor
from agentic_compression.methods.estimates import stored_rates
from agentic_compression.records import EpisodeRecord, Record, Strategy
from agentic_compression.storage import write_record
from agentic_compression.study.feasibility import expected_cost

__all__ = ["EstimateMemory", "Misjudged", "estimate_item", "read_estimates", "remember_estimate"]

_FILE = Path("data") / "estimate_errors.json"
_KEPT = 400
_BYTES_A_TOKEN = 4
_EVALUATION_OVERHEAD_S = 4.0  # fresh processes that load the model again, for latency and memory
_WORKLOAD_REPEATS = 40  # requests of the fixed workload: warm-up, timing, energy and serving several at once
_LARGEST_FACTOR = 20.0


class Misjudged(Record):
    """One estimate and what was measured."""

    what: str = Field(description="'compress' or 'evaluate'")
    of: str = Field(description="methods joined by '+', or the engine that was measured")
    estimated: float = Field(gt=0, description="seconds, as the formulas say, before any correction")
    measured: float = Field(gt=0)


class EstimateMemory(Record):
    """The latest estimates of this state root beside what was measured."""

    items: tuple[Misjudged, ...] = ()

    def factor(self, what: str, of: str) -> float:
        """What to multiply an estimate with: the geometric mean of measured over estimated, with one more of 1."""
        logs = [math.log(item.measured / item.estimated) for item in self.items if (item.what, item.of) == (what, of)]
        most = math.log(_LARGEST_FACTOR)
        return math.exp(min(most, max(-most, sum(logs) / (len(logs) + 1))))


def read_estimates(root: Path) -> EstimateMemory:
    """What is remembered in a state root; nothing where the file is missing or damaged."""
    try:
        return EstimateMemory.model_validate_json((root / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return EstimateMemory()


def remember_estimate(desk: Desk, record: EpisodeRecord, before: Sequence[EpisodeRecord]) -> None:
    """Keep how long an episode took beside what the formulas had said of it; nothing of what was known already.

    Args:
        desk: of the study.
        record: of the episode.
        before: what was recorded when it was estimated.
    """
    if record.reused or record.status != "succeeded":
        return
    pairs = (
        ("compress", _compressor(record.strategy), _compress_seconds(desk, record.strategy)),
        ("evaluate", _engine(record.strategy), _evaluate_seconds(desk, before)),
    )
    new = tuple(
        Misjudged(what=what, of=of, estimated=estimated, measured=record.timings[what])
        for what, of, estimated in pairs
        if estimated > 0 and record.timings.get(what, 0.0) > 0 and not (what == "compress" and record.episode == 0)
    )
    held = read_estimates(desk.bench.settings.root)
    write_record(desk.bench.settings.root / _FILE, EstimateMemory(items=(*held.items, *new)[-_KEPT:]))


def estimate_item(desk: Desk, strategy: Strategy, records: Sequence[EpisodeRecord]) -> ItemEstimate:
    """What compressing and measuring a strategy is expected to take here.

    Raises:
        StrategyError: when its methods or parameters are not known here.
    """
    memory = read_estimates(desk.bench.settings.root)
    compress = _compress_seconds(desk, strategy) * memory.factor("compress", _compressor(strategy))
    evaluate = _evaluate_seconds(desk, records) * memory.factor("evaluate", _engine(strategy))
    expected = expected_cost(desk.config, desk.spec, desk.dataset, strategy, desk.bench)
    settings = desk.bench.settings
    grid = grid_factor(settings.grid_country, settings.grid_grams_per_kwh, settings.grid_region)
    watts, basis = _watts(desk, records)
    known = sum(item.of in {_compressor(strategy), _engine(strategy)} for item in memory.items)
    return ItemEstimate(
        compress_seconds=0.0 if strategy.is_baseline else compress,
        evaluate_seconds=evaluate,
        grams=co2_grams(
            watts * ((0.0 if strategy.is_baseline else compress) + evaluate), grid.grams_per_kwh, settings.pue
        ),
        peak_bytes=expected.peak_bytes,
        basis=f"{basis}; corrected by {known} earlier measurements" if known else basis,
    )


def _compress_seconds(desk: Desk, strategy: Strategy) -> float:
    return expected_cost(desk.config, desk.spec, desk.dataset, strategy, desk.bench).seconds


def _evaluate_seconds(desk: Desk, records: Sequence[EpisodeRecord]) -> float:
    """The baseline's, where it is measured; else by counting operations."""
    first = next((record for record in records if record.episode == 0 and not record.reused), None)
    if first is not None and first.timings.get("evaluate", 0.0) > 0:
        return first.timings["evaluate"]
    measured = desk.config.evaluation
    text = sum(_item_bytes(Path(task.path)) for task in desk.dataset.tasks)
    tokens = text / _BYTES_A_TOKEN + _WORKLOAD_REPEATS * (measured.prompt_tokens + measured.new_tokens)
    rate = stored_rates(desk.bench.settings.root).flops_per_second * _threads(desk)
    return _EVALUATION_OVERHEAD_S + 2 * desk.spec.parameters * tokens / rate


def _item_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _watts(desk: Desk, records: Sequence[EpisodeRecord]) -> tuple[float, str]:
    """Power while working: as this study's episodes drew it, else busy threads times the watts of a core."""
    worked = [record for record in records if not record.reused and record.timings.get("total", 0.0) > 0]
    seconds = sum(record.timings["total"] for record in worked)
    if seconds > 0:
        return sum(record.joules for record in worked) / seconds, f"power of {len(worked)} episodes of this study"
    settings = desk.bench.settings
    if desk.config.evaluation.device.startswith("cuda") and settings.gpu_watts:
        return settings.gpu_watts, "ACF_GPU_WATTS"
    threads = _threads(desk)
    return settings.cpu_watts_per_core * threads, f"{threads} busy cores of {settings.cpu_watts_per_core:g} W"


def _threads(desk: Desk) -> int:
    return desk.config.evaluation.threads or max(1, (os.cpu_count() or 2) - 1)


def _compressor(strategy: Strategy) -> str:
    return "+".join(stage.method for stage in strategy.stages) or "baseline"


def _engine(strategy: Strategy) -> str:
    return "llama.cpp" if any(stage.method == "gguf" for stage in strategy.stages) else "transformers"
