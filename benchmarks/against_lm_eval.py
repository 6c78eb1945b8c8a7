"""Evaluating a model here against plain lm-evaluation-harness: seconds, and the answers item by item.

Both are given the same folder, the same items, the same definitions of tasks, the same batch size and threads, and a
fresh process each, timed from its start to its end (wall clock, and processor time, which other work on the machine
does not stretch); the harness runs its own Hugging Face model, finds its definitions
without indexing all of them and computes no standard errors. The order alternates from round to round. Printed are
the medians, the median ratio, and whether every answer is the same: the score of an item, the texts generated and, up
to rounding, the likelihoods of its choices.

Run: ``python -m benchmarks.against_lm_eval --benchmark-dir DIR --model DIR [--tasks arc,hellaswag,gsm8k] [--limit 50]``
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agentic_compression.data import resolve_dataset
from agentic_compression.records import DatasetSpec, DatasetTask, EvaluationSettings
from agentic_compression.resources import configs_dir
from agentic_compression.settings import Settings

_TOLERANCE = {"float32": 2e-3, "bfloat16": 2e-2, "float16": 1e-2}
"""Nats by which a choice's likelihood may differ, relative above 1: sums in another order, rounded to its type."""

_TIMES = {"whole process": "process", "its processor time": "processor", "after its start": "evaluation"}


def main() -> None:
    asked = _arguments()
    if asked.child:
        _child(asked)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACF_HOME"] = folder
        dataset = resolve_dataset(
            asked.tasks, settings=Settings(), benchmark_dir=Path(asked.benchmark_dir), limit=asked.limit
        )
        spec = Path(folder) / "dataset.json"
        spec.write_text(dataset.model_dump_json())
        rounds = []
        for number in range(asked.rounds):
            order = ("ours", "plain") if number % 2 == 0 else ("plain", "ours")
            rounds.append({child: _timed(asked, child, spec, Path(folder)) for child in order})
            print(f"round {number + 1}: " + _line(rounds[-1]), flush=True)
    _summary(dataset, rounds, _TOLERANCE[_dtype(asked.model)])


def _dtype(model: str) -> str:
    """The type that the folder's weights are stored in."""
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark-dir", default="", help="folder of local copies of the benchmarks")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--tasks", default="arc,hellaswag,gsm8k", help="benchmarks")
    parser.add_argument("--limit", type=int, default=50, help="items a task")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=["ours", "plain"], default="", help=argparse.SUPPRESS)
    parser.add_argument("--dataset", default="", help=argparse.SUPPRESS)
    parser.add_argument("--answers", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _timed(asked: argparse.Namespace, child: str, spec: Path, folder: Path) -> dict[str, Any]:
    """Seconds of the whole process and what it answered."""
    answers = folder / f"{child}.json"
    command = [sys.executable, "-m", "benchmarks.against_lm_eval", "--child", child, "--model", asked.model]
    command += ["--dataset", str(spec), "--answers", str(answers), "--batch-size", str(asked.batch_size)]
    command += ["--threads", str(asked.threads)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    before, start = _child_seconds(), time.perf_counter()
    ran = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if ran.returncode != 0:
        raise SystemExit(f"{child} ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
    return {"process": seconds, "processor": _child_seconds() - before, **json.loads(answers.read_text())}


def _child_seconds() -> float:
    """Processor seconds of all children that have ended: what a busy machine cannot stretch."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _child(asked: argparse.Namespace) -> None:
    start = time.perf_counter()
    dataset = DatasetSpec.model_validate_json(Path(asked.dataset).read_text())
    found = (_ours if asked.child == "ours" else _plain)(asked, dataset)
    Path(asked.answers).write_text(json.dumps({"evaluation": time.perf_counter() - start, "answers": found}))


def _ours(asked: argparse.Namespace, dataset: DatasetSpec) -> dict[str, Any]:
    from agentic_compression.evaluation.item_scorer import ItemScorer
    from agentic_compression.runtimes import open_runtime

    runtime = open_runtime(asked.model, "cpu", asked.threads)
    settings = EvaluationSettings(batch_size=asked.batch_size)
    scorer = ItemScorer(runtime, dataset, settings, str(configs_dir() / "tasks"))
    positions = {task: list(range(len(scorer.items(task)))) for task in scorer.tasks}
    found = scorer.score_all(positions)
    scores = {task: scorer.benchmark_score(task, chosen) for task, chosen in positions.items()}
    return {
        task: {
            "score": scores[task].score.value,
            "values": [answer.value for answer in answers],
            "said": [list(answer.said) for answer in answers],
            "truncated": scores[task].truncated,
        }
        for task, answers in found.items()
    }


def _plain(asked: argparse.Namespace, dataset: DatasetSpec) -> dict[str, Any]:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(asked.threads)
    tasks = [task for task in dataset.tasks if task.kind == "benchmark"]
    folders = sorted({str(_folder_of(str(task.lm_eval_task))) for task in tasks})
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": asked.model},
        tasks=[{"group": "compared", "task": [_member(task) for task in tasks]}],
        task_manager=TaskManager(include_path=folders, include_defaults=False),
        batch_size=asked.batch_size,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    return {task.name: _plain_answers(results["samples"][task.lm_eval_task]) for task in tasks}


def _folder_of(task: str) -> Path:
    from agentic_compression.evaluation.harness_tasks import benchmark_file

    return benchmark_file(task).parent


def _member(task: DatasetTask) -> dict[str, Any]:
    """The harness's own definition over our files."""

    def splits(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        read = {name: Path(path).read_text().split("\n") for name, path in task.split_files.items()}
        return DatasetDict(
            {name: Dataset.from_list([json.loads(line) for line in lines if line]) for name, lines in read.items()}
        )

    return {
        "task": task.lm_eval_task,
        "dataset_name": None,
        "dataset_kwargs": None,
        "custom_dataset": splits,
        "num_fewshot": task.few_shot,
        **({} if "train" in task.split_files else {"training_split": None}),
        **({} if "validation" in task.split_files else {"validation_split": None}),
    }


def _plain_answers(samples: list[dict[str, Any]]) -> dict[str, Any]:
    first = samples[0]["filter"]
    samples = sorted((item for item in samples if item["filter"] == first), key=lambda item: item["doc_id"])
    metric = "acc_norm" if "acc_norm" in samples[0]["metrics"] else samples[0]["metrics"][0]
    values = [float(item[metric]) for item in samples]
    said = [
        [answer if isinstance(answer, str) else float(answer[0]) for answers in item["resps"] for answer in answers]
        for item in samples
    ]
    return {"score": sum(values) / len(values), "values": values, "said": said}


def _line(timed: dict[str, dict[str, Any]]) -> str:
    ours, plain = timed["ours"], timed["plain"]
    return ", ".join(
        f"{name} ours {ours[key]:.2f} s, plain {plain[key]:.2f} s, ratio {ours[key] / plain[key]:.2f}"
        for name, key in _TIMES.items()
    )


def _summary(dataset: DatasetSpec, rounds: list[dict[str, Any]], tolerance: float) -> None:
    for name, key in _TIMES.items():
        ours = statistics.median(timed["ours"][key] for timed in rounds)
        plain = statistics.median(timed["plain"][key] for timed in rounds)
        ratio = statistics.median(timed["ours"][key] / timed["plain"][key] for timed in rounds)
        print(f"{name}: median ours {ours:.2f} s, plain lm-eval {plain:.2f} s, median ratio {ratio:.2f}")
    different = 0
    for task in dataset.tasks:
        ours, plain = (rounds[0][child]["answers"][task.name] for child in ("ours", "plain"))
        values = sum(a != b for a, b in zip(ours["values"], plain["values"], strict=True))
        apart = [_apart(a, b) for a, b in zip(ours["said"], plain["said"], strict=True)]
        said = sum(distance > tolerance for distance in apart)
        different += values + said
        print(
            f"{task.name}: {len(ours['values'])} items, {task.few_shot}-shot, ours {ours['score']:.4f}, "
            f"plain {plain['score']:.4f}; other scores {values}, other texts or likelihoods {said} "
            f"(furthest {max(apart):.2g}, allowed {tolerance:g}), truncated {ours['truncated']}"
        )
    print(f"identical per-item answers: {not different}")
    if different:
        raise SystemExit("some answers differ from plain lm-eval's")


def _apart(ours: list[Any], plain: list[Any]) -> float:
    """Largest difference of two answers' likelihoods, relative above 1 nat; infinite where texts differ."""
    return max(
        (0.0 if a == b else math.inf) if isinstance(a, str) else abs(a - b) / max(1.0, abs(b))
        for a, b in zip(ours, plain, strict=True)
    )


if __name__ == "__main__":
    main()
