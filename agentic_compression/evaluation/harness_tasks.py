"""Task objects of lm-evaluation-harness over local JSONL files.

Multiple choice and generation use one template each (``configs/tasks``). A named benchmark uses the harness's own
definition with only its data replaced, so that prompts, few-shot examples, filters and metrics are the harness's.
Rows are handed over in memory (``custom_dataset``): nothing is downloaded and no dataset cache is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError, DatasetError
from agentic_compression.records import DatasetTask
from agentic_compression.runtimes import Runtime
from agentic_compression.storage import read_json_lines

__all__ = ["benchmark_folder", "build_harness_task", "read_rows"]

_ANSWER_MARGIN = 4


def build_harness_task(task: DatasetTask, tasks_dir: str, runtime: Runtime) -> Any:
    """The harness's task object for one of our tasks, its few-shot sampler seeded as the harness seeds it.

    Raises:
        DatasetError: when a file cannot be read or does not have the fields the definition needs.
        ConfigurationError: when the definition is missing.
    """
    try:
        built = _benchmark_task(task) if task.kind == "benchmark" else _template_task(task, tasks_dir, runtime)
    except (DatasetError, ConfigurationError):
        raise
    except Exception as error:  # the harness and jinja raise whatever a wrong row makes them raise
        raise DatasetError(
            f"task {task.name!r} ({task.lm_eval_task or task.kind}) cannot be built from {task.path}: "
            f"{type(error).__name__}: {error}; check the file's fields"
        ) from error
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    built.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return built


def read_rows(path: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        DatasetError: when the file is missing, empty or malformed.
    """
    try:
        rows = read_json_lines(Path(path))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} must be a readable JSONL file, got {type(error).__name__}: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path} must hold one JSON object a line, at least one; got {len(rows)} lines")
    return rows


@cache
def benchmark_folder(name: str) -> Path:
    """The folder of the harness's own definition of a task, found without indexing its 14,000 files.

    Folders named as a beginning of the task's name are looked into first (``arc_easy`` is in ``arc``).

    Raises:
        ConfigurationError: when the installed harness has no such task.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    pattern = re.compile(rf"""^task:\s*["']?{re.escape(name)}["']?\s*(#.*)?$""", re.MULTILINE)
    parts = name.split("_")
    likely = [root / "_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for folder in (*filter(Path.is_dir, likely), root):
        if found := _defining_file(folder.rglob("*.yaml"), pattern):
            return found.parent
    raise ConfigurationError(f"the installed lm-eval has no task {name!r}; see lm_eval ls tasks")


def _defining_file(files: Iterable[Path], pattern: re.Pattern[str]) -> Path | None:
    for path in sorted(files):
        if pattern.search(path.read_text(encoding="utf-8", errors="replace")):
            return path
    return None


def _template_task(task: DatasetTask, tasks_dir: str, runtime: Runtime) -> Any:
    import yaml
    from lm_eval.tasks import TaskManager

    path = Path(tasks_dir) / f"{task.kind}.yaml"
    if not path.is_file():
        raise ConfigurationError(f"the template {path} is missing; tasks_dir must be the folder configs/tasks")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = sorted(read_rows(task.path), key=lambda row: str(row["id"]))
    if task.kind == "generation":
        rows = [{**row, "answer": str(row["answer"]).strip()} for row in rows]
        config["generation_kwargs"]["max_gen_toks"] = _longest_answer(rows, runtime) + _ANSWER_MARGIN
    config |= {"task": task.name, "dataset_kwargs": None, "custom_dataset": _dataset_of({"test": rows})}
    return TaskManager(include_defaults=False).load([config])["tasks"][task.name]


def _benchmark_task(task: DatasetTask) -> Any:
    from lm_eval.tasks import TaskManager

    name = task.lm_eval_task
    if name is None:
        raise ConfigurationError(f"benchmark task {task.name!r} must name its lm_eval_task, got none")
    splits = {split: read_rows(path) for split, path in (task.split_files or {"test": task.path}).items()}
    manager = TaskManager(include_path=benchmark_folder(name), include_defaults=False)
    # A definition is overridden as a member of a group: the harness merges it over the registered one.
    member = {"task": name, "dataset_name": None, "dataset_kwargs": None, "custom_dataset": _dataset_of(splits)}
    built = manager.load([{"group": "agentic_compression", "task": [member]}])["tasks"][name]
    if built.OUTPUT_TYPE == "loglikelihood_rolling":
        raise ConfigurationError(f"{name} measures perplexity, not accuracy; give its texts as a task of kind 'text'")
    return built


def _dataset_of(splits: dict[str, list[dict[str, Any]]]) -> Any:
    def load_splits(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})

    return load_splits


def _longest_answer(rows: list[dict[str, Any]], runtime: Runtime) -> int:
    answers = [f" {row['answer']}" for row in rows]
    return max(len(ids) for ids in runtime.tokenizer(answers, add_special_tokens=False)["input_ids"])
