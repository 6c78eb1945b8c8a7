"""Carry out and measure every strategy of the replay space on one model and task, and keep what came of it.

    python -m benchmarks.planners.record demo
    python -m benchmarks.planners.record stories260k --model ../shared/models/stories260K --dataset tinystories.jsonl

Every row is one strategy compressed and measured in fresh processes exactly as an episode is, with nothing rejected:
costs, divergence from the baseline, the answer to every item, seconds by phase. Rows are kept as they are measured, so
run again it goes on where it stopped; ``--again`` replaces rows. The order is a fixed random one: a table cut short is
a fair sample. Methods that train are not in the space: they take minutes each. Leave the machine idle: latencies are
wall times.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.data import resolve_dataset
from agentic_compression.data.calibration_text import with_calibration_text
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.execution import Supervisor
from agentic_compression.methods import describe_methods
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.planning.grid import StrategyGrid
from agentic_compression.records import (
    BASELINE,
    CheckpointRef,
    CompressionOutcome,
    DatasetSpec,
    Evaluation,
    EvaluationOutcome,
    EvaluationSettings,
    Objectives,
    Rival,
    ScreeningPlan,
    Strategy,
)
from agentic_compression.records.screening import NEARLY, OPTIMISM
from agentic_compression.resources import configs_dir
from agentic_compression.settings import Settings, get_settings
from agentic_compression.spec import infer_spec
from agentic_compression.study.model_source import fetch_model
from benchmarks.planners.spaces import replay_space
from benchmarks.planners.table import DATA, Header, Row, Table, pack_answers

COMPRESS = "agentic_compression.methods.compress:compress"
EVALUATE = "agentic_compression.evaluation.evaluate:evaluate"
TIMEOUT_S = 900.0
_HOPELESS = Objectives(accuracy=0.0, latency_ms=1e9, memory_gb=1e9, model_size_gb=1e9, co2_grams=1e9)
_NOTHING_REJECTED = ScreeningPlan(rivals=(Rival(episode=1, objectives=_HOPELESS),), least_gain=0.0)
"""Every candidate beats this rival, so all rungs are read and none rejects."""


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the table: benchmarks/data/NAME.json")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--limit", type=int, help="items a task; all when left out")
    parser.add_argument("--benchmark-dir", type=Path, help="local copies of benchmarks")
    parser.add_argument("--calibration", default="train", help="text to calibrate on; see acf run --help")
    parser.add_argument("--held-out", type=Path, help="text for perplexity and divergence instead of the data set's")
    parser.add_argument(
        "--again", help="places of rows to measure again, such as 0:128, where other work disturbed them"
    )
    options = parser.parse_args()
    recorder = Recorder(options)
    path = DATA / f"{options.name}.json"
    rows = list(Table.read(path).rows) if path.exists() else []
    header = Table.read(path).header if rows else None
    known, began = {row.strategy for row in rows}, time.monotonic()
    todo = [strategy for strategy in [BASELINE, *recorder.strategies()] if strategy.label not in known]
    if options.again:
        todo = [Strategy.parse(row.strategy) for row in rows[slice(*map(int, options.again.split(":")))]]
    for done, strategy in enumerate(todo, start=1):
        row, evaluation = recorder.row(strategy)
        if header is None:
            if evaluation is None:
                raise SystemExit(f"the uncompressed model could not be measured: {row.error}")
            header = recorder.header(evaluation)
        place = next((n for n, held in enumerate(rows) if held.strategy == row.strategy), len(rows))
        rows[place : place + 1] = [row]
        Table(header=header, rows=tuple(rows)).write(path)
        left = (time.monotonic() - began) / done * (len(todo) - done)
        print(f"{done}/{len(todo)}, {left / 60:.0f} min left: {row.strategy} {row.error or row.values}", flush=True)


class Recorder:
    """Compresses and measures one model below a scratch folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        settings = get_settings()
        self._scratch = Path(tempfile.mkdtemp(prefix="acf-table-"))
        self._space, self._options = replay_space(), options
        spec = infer_spec(options.model, settings=settings, methods=describe_methods())
        self._model, self._digest = fetch_model(spec, settings)
        self._dataset = _dataset(options, settings)
        self._teacher: CheckpointRef = checkpoint_ref(self._model, BASELINE.key, shared=True)
        self._supervisor = Supervisor()
        self._spec = spec.model_copy(update={"path": None, "model": Path(options.model).name})
        self._settings = EvaluationSettings(limit=options.limit)

    def strategies(self) -> list[Strategy]:
        """The whole space in a fixed random order."""
        found = list(StrategyGrid(self._space))
        random.Random(0).shuffle(found)
        return found

    def header(self, evaluation: Evaluation) -> Header:
        """From the baseline's evaluation."""
        return Header(
            model=Path(self._options.model).name,
            dataset=Path(self._options.dataset).name,
            digest=self._digest,
            command=f"python -m benchmarks.planners.record {' '.join(sys.argv[1:])}",
            code_version=_commit(),
            environment=evaluation.environment.model_dump(mode="json"),
            settings=self._settings.model_dump(mode="json"),
            vocabulary=self._spec.vocabulary or 0,
            spec=self._spec,
            items={score.task: list(score.items) for score in evaluation.benchmarks},
        )

    def row(self, strategy: Strategy) -> tuple[Row, Evaluation | None]:
        """One strategy measured; an error in place of figures where it cannot be done."""
        row, reference = Row(strategy=strategy.label), self._teacher
        seconds = {"compress": 0.0}
        if not strategy.is_baseline:
            made = self._supervisor.run(COMPRESS, self._compression(strategy), timeout_s=TIMEOUT_S)
            outcome = CompressionOutcome.model_validate(made.result or {"status": made.status, "error": made.error})
            seconds["compress"] = made.wall_seconds
            row = row.model_copy(update={"peak_bytes": outcome.peak_bytes})
            if outcome.checkpoint is None:
                return row.model_copy(
                    update={"error": outcome.error or outcome.status, "seconds": _rounded(seconds)}
                ), None
            reference = outcome.checkpoint
        done = self._supervisor.run(EVALUATE, self._evaluation(reference), timeout_s=TIMEOUT_S)
        result = EvaluationOutcome.model_validate(done.result or {"status": done.status, "error": done.error})
        if not strategy.is_baseline:
            shutil.rmtree(reference.path)
        seconds["evaluate"] = done.wall_seconds
        seconds["load"] = done.wall_seconds - result.seconds + result.load_seconds
        seconds |= {
            f"{reading.quantity}@{reading.n}": reading.seconds for reading in result.screening if reading.seconds
        }
        row = row.model_copy(update={"seconds": _rounded(seconds)})
        if result.evaluation is None:
            return row.model_copy(update={"error": result.error or result.status}), None
        return row.model_copy(update=_figures(result)), result.evaluation

    def _compression(self, strategy: Strategy) -> CompressionRequest:
        dataset = self._dataset
        return CompressionRequest(
            model_path=str(self._model),
            base_digest=self._digest,
            strategy=strategy,
            calibration_path=dataset.calibration_path,
            calibration_digest=dataset.calibration_digest,
            checkpoints_root=str(self._scratch / "checkpoints"),
            device="cpu",
        )

    def _evaluation(self, checkpoint: CheckpointRef) -> EvaluationRequest:
        return EvaluationRequest(
            checkpoint=checkpoint,
            dataset=self._dataset,
            settings=self._settings,
            store_root=str(self._scratch / "evaluations"),
            tasks_dir=str(configs_dir() / "tasks"),
            teacher=None if checkpoint is self._teacher else self._teacher,
            screening=_NOTHING_REJECTED,
        )


def _dataset(options: argparse.Namespace, settings: Settings) -> DatasetSpec:
    folder = options.benchmark_dir
    dataset = resolve_dataset(options.dataset, settings=settings, benchmark_dir=folder)
    if options.calibration != "train":
        dataset = with_calibration_text(dataset, options.calibration, settings=settings, benchmark_dir=folder)
    if options.held_out:
        dataset = dataset.model_copy(update={"perplexity_path": str(options.held_out.resolve())})
    return dataset


def _figures(outcome: EvaluationOutcome) -> dict[str, Any]:
    evaluation = outcome.evaluation
    assert evaluation is not None
    read = {reading.quantity: reading.value for reading in outcome.screening}
    return {
        "values": {
            name: (value, *evaluation.intervals[name]) for name, value in evaluation.objectives.model_dump().items()
        },
        "perplexity": evaluation.perplexity.perplexity.value if evaluation.perplexity else None,
        "kl": evaluation.divergence.kl if evaluation.divergence else None,
        "weights_bytes": evaluation.memory.weights_bytes,
        "glance": (
            read["latency_floor_ms"] / OPTIMISM,
            read["co2_floor_grams"] / OPTIMISM,
            read["memory_floor_gb"] / NEARLY,
        ),
        "answers": pack_answers({score.task: score.outcomes for score in evaluation.benchmarks}),
    }


def _commit() -> str:
    command = ["git", "-C", str(DATA), "describe", "--always", "--dirty"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
