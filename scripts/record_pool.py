"""Measure a pool of candidates of the demo model completely, for replaying how they would have been screened.

    python scripts/record_pool.py [benchmarks/data/demo_pool.json]

Every row is one strategy compressed and measured in fresh processes exactly as an episode is, with nothing rejected:
costs, divergence from the baseline, the answer to every item, seconds by phase. Rows are kept as they are measured, so
run again it goes on where it stopped. Methods that train are left out: they take minutes each.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.data import resolve_dataset
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.execution import Supervisor
from agentic_compression.methods import describe_methods, search_space
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.records import (
    BASELINE,
    CheckpointRef,
    CompressionOutcome,
    DatasetSpec,
    EvaluationOutcome,
    Objectives,
    Rival,
    ScreeningPlan,
    Strategy,
)
from agentic_compression.resources import configs_dir
from agentic_compression.settings import get_settings
from agentic_compression.spec import infer_spec
from agentic_compression.storage import write_atomically
from agentic_compression.study.model_source import fetch_model

DEFAULT = Path(__file__).resolve().parent.parent / "benchmarks" / "data" / "demo_pool.json"
COMPRESS = "agentic_compression.methods.compress:compress"
EVALUATE = "agentic_compression.evaluation.evaluate:evaluate"
TIMEOUT_S = 900.0
_BITS = (8, 4, 3, 2)
_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


def strategies() -> list[str]:
    """The pool's strategies in a fixed random order, so that a pool cut short is a fair sample of the whole."""
    found = [
        *(f"rtn:bits={bits},group_size={group}" for bits in _BITS for group in (32, 64, 128)),
        *(f"gptq:bits={bits},group_size={group}" for bits in _BITS for group in (32, 128)),
        *(f"awq:bits={bits},group_size={group}" for bits in (4, 3) for group in (32, 128)),
        "int8",
        "nf4",
        *(f"gguf:type={kind}" for kind in ("F16", *_TYPES)),
        *(f"{how}:sparsity={share}" for how in ("magnitude", "wanda", "sparsegpt") for share in (0.3, 0.5, 0.7)),
        *(f"drop_layers:share={share}" for share in (0.2, 0.4)),
        *(f"drop_heads:share={share}" for share in (0.2, 0.3, 0.5)),
        *(f"drop_channels:share={share}" for share in (0.1, 0.2, 0.3, 0.4, 0.5)),
        *(f"{how}:rank_ratio={share}" for how in ("asvd", "svd_llm") for share in (0.9, 0.7, 0.5)),
        *(f"drop_channels:share={share} | gguf:type={kind}" for share in (0.1, 0.2, 0.3, 0.4) for kind in _TYPES[2:]),
        *(f"drop_heads:share={share} | gguf:type=Q4_K_M" for share in (0.2, 0.3)),
        *(f"drop_layers:share={share} | gguf:type=Q4_K_M" for share in (0.2, 0.4)),
        *(f"drop_channels:share={share} | gptq:bits=4,group_size=64" for share in (0.1, 0.2, 0.3)),
        *(f"drop_channels:share={share} | gptq:bits=3,group_size=64" for share in (0.1, 0.2, 0.3)),
        *(f"wanda:sparsity={share} | gptq:bits=4,group_size=128" for share in (0.3, 0.5)),
        *(f"sparsegpt:sparsity={share} | gptq:bits=4,group_size=128" for share in (0.3, 0.5)),
        *(f"wanda:sparsity={share} | gguf:type=Q4_K_M" for share in (0.3, 0.5)),
        *(f"svd_llm:rank_ratio={share} | gptq:bits=4,group_size=64" for share in (0.9, 0.7)),
        *(f"drop_channels:share={share} | drop_heads:share=0.2 | gguf:type=Q4_K_M" for share in (0.1, 0.2)),
    ]  # fmt: skip
    random.Random(0).shuffle(found)
    return found


def main() -> None:
    """Measure what is not in the file yet."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    pool: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"items": {}, "rows": []}
    with tempfile.TemporaryDirectory(prefix="acf-pool-") as name:
        recorder = Recorder(Path(name))
        known = {row["strategy"] for row in pool["rows"]}
        for label in ["", *strategies()]:
            if recorder.canonical(label) in known:
                continue
            row, items = recorder.row(label)
            pool["items"] = items or pool["items"]
            pool["rows"].append(row)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _compact(pool))
            print(row["strategy"] or "baseline", row.get("error") or row["seconds"], flush=True)


class Recorder:
    """Compresses and measures the demo model below a scratch folder."""

    def __init__(self, scratch: Path) -> None:
        settings = get_settings()
        self._scratch, self._space = scratch, search_space(3)
        spec = infer_spec("demo", settings=settings, methods=describe_methods())
        self._model, self._digest = fetch_model(spec, settings)
        self._dataset: DatasetSpec = resolve_dataset("demo", settings=settings)
        self._teacher: CheckpointRef = checkpoint_ref(self._model, BASELINE.key, shared=True)
        self._supervisor = Supervisor()

    def canonical(self, label: str) -> str:
        """A strategy as rows name it; empty for the baseline."""
        return self._space.complete(Strategy.parse(label)).label if label else ""

    def row(self, label: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """One measured strategy and the ids of its items; an error in place of figures where it cannot be done."""
        row: dict[str, Any] = {"strategy": self.canonical(label)}
        reference, seconds = self._teacher, 0.0
        if label:
            made = self._supervisor.run(COMPRESS, self._compression(label), timeout_s=TIMEOUT_S)
            outcome = CompressionOutcome.model_validate(made.result or {"status": made.status, "error": made.error})
            if outcome.checkpoint is None:
                return row | {"error": outcome.error}, {}
            reference, seconds = outcome.checkpoint, made.wall_seconds
        done = self._supervisor.run(EVALUATE, self._evaluation(reference), timeout_s=TIMEOUT_S)
        result = EvaluationOutcome.model_validate(done.result or {"status": done.status, "error": done.error})
        if label:
            shutil.rmtree(reference.path)
        if result.evaluation is None:
            return row | {"error": result.error}, {}
        row["seconds"] = {"compress": round(seconds, 2), "evaluate": round(done.wall_seconds, 2)}
        return row | _figures(result), {score.task: list(score.items) for score in result.evaluation.benchmarks}

    def _compression(self, label: str) -> CompressionRequest:
        dataset = self._dataset
        return CompressionRequest(
            model_path=str(self._model),
            base_digest=self._digest,
            strategy=self._space.complete(Strategy.parse(label)),
            calibration_path=dataset.calibration_path,
            calibration_digest=dataset.calibration_digest,
            checkpoints_root=str(self._scratch / "checkpoints"),
            device="cpu",
        )

    def _evaluation(self, checkpoint: CheckpointRef) -> EvaluationRequest:
        baseline = checkpoint is self._teacher
        unknown = Objectives(accuracy=0, latency_ms=0, memory_gb=0, model_size_gb=0, co2_grams=0)
        return EvaluationRequest(
            checkpoint=checkpoint,
            dataset=self._dataset,
            store_root=str(self._scratch / "evaluations"),
            tasks_dir=str(configs_dir() / "tasks"),
            teacher=None if baseline else self._teacher,
            screening=ScreeningPlan(rivals=() if baseline else (Rival(episode=0, objectives=unknown),), reject=False),
        )


def _figures(outcome: EvaluationOutcome) -> dict[str, Any]:
    evaluation = outcome.evaluation
    assert evaluation is not None
    phases = {reading.quantity: round(reading.seconds, 3) for reading in outcome.screening}
    return {
        "intervals": {
            name: [value, *evaluation.intervals[name]] for name, value in evaluation.objectives.model_dump().items()
        },
        "kl": evaluation.divergence.kl.model_dump() if evaluation.divergence else None,
        "weights_bytes": evaluation.memory.weights_bytes,
        "phases": phases,
        "answers": {score.task: "".join(str(outcome) for outcome in score.outcomes) for score in evaluation.benchmarks},
    }


def _compact(pool: dict[str, Any]) -> str:
    """One row a line."""
    rows = ",\n".join(json.dumps(row) for row in pool["rows"])
    return f'{{"items": {json.dumps(pool["items"])},\n"rows": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    main()
