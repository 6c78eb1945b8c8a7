"""Task objects of lm-evaluation-harness over local JSONL files.

Multiple choice and generation use one template each (``configs/tasks``). A named benchmark uses the harness's own
definition with only its data replaced, so that prompts, few-shot examples, filters and metrics are the harness's.
Rows are handed over in memory (``custom_dataset``): nothing is downloaded and no dataset cache is written.

A definition that would run what the model writes inside this process (``unsafe_code``) keeps its prompts, stop strings
and few-shot examples; its own functions are never imported, and its answers are for the sandbox (``code_answers``).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError, DatasetError
from agentic_compression.records import DatasetTask
from agentic_compression.runtimes import Runtime
from agentic_compression.storage import read_json_lines

__all__ = ["benchmark_file", "build_harness_task", "read_rows", "runs_code"]

_ANSWER_MARGIN = 4
_TASK_LINE = re.compile(r"""^["']?task["']?:[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


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

    if task.few_shot is not None:
        built.set_config("num_fewshot", task.few_shot)
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
def benchmark_file(name: str) -> Path:
    """The file of the harness's own definition of a task, found without indexing its 14,000 files.

    Folders named as a beginning of the task's name are looked into first (``arc_easy`` is in ``arc``).

    Raises:
        ConfigurationError: when the installed harness has no such task.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    parts = name.split("_")
    likely = [root / "_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for folder in (*filter(Path.is_dir, likely), root):
        if found := _definitions(folder).get(name):
            return found
    raise ConfigurationError(f"the installed lm-eval has no task {name!r}; see lm_eval ls tasks")


@cache
def _definitions(folder: Path) -> dict[str, Path]:
    """Task name to the first file, in alphabetical order, that defines it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        for match in _TASK_LINE.finditer(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(match[1], path)
    return found


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
    config = _definition(name) | {"dataset_name": None, "dataset_kwargs": None, "custom_dataset": _dataset_of(splits)}
    _leave_out_missing(config, splits, task)
    built = TaskManager(include_defaults=False).load([config])["tasks"][name]
    if built.OUTPUT_TYPE == "loglikelihood_rolling":
        raise ConfigurationError(f"{name} measures perplexity, not accuracy; give its texts as a task of kind 'text'")
    return built


def _leave_out_missing(config: dict[str, Any], splits: Collection[str], task: DatasetTask) -> None:
    """Take the splits that a local copy lacks out of a definition, which else reads all of them.

    Raises:
        DatasetError: when few-shot examples come from one of them.
    """
    shots = config.get("num_fewshot") if task.few_shot is None else task.few_shot
    source = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
    own = "samples" in (config.get("fewshot_config") or {})
    if shots and source and source not in splits and not own:
        raise DatasetError(
            f"{task.name} is asked with {shots} examples of its {source} split, and its copy has only "
            f"{', '.join(sorted(splits))}; put the file of the {source} split beside them"
        )
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) not in splits:
            config[key] = None


def runs_code(name: str | None) -> bool:
    """Whether a harness task is scored by running what the model writes."""
    return name is not None and bool(_plain_definition(name).get("unsafe_code"))


def _definition(name: str) -> dict[str, Any]:
    """The harness's own configuration of a task; without functions of its own where it runs code."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not runs_code(name):
        return dict(load_yaml(benchmark_file(name)))
    config = dict(_plain_definition(name))
    config["unsafe_code"] = False
    config["metric_list"] = [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}]
    config["filter_list"] = None
    return config


@cache
def _plain_definition(name: str) -> dict[str, Any]:
    """The configuration with the names of its functions, which are not imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(benchmark_file(name), resolve_func=False))


def _dataset_of(splits: dict[str, list[dict[str, Any]]]) -> Any:
    def load_splits(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})

    return load_splits


def _longest_answer(rows: list[dict[str, Any]], runtime: Runtime) -> int:
    answers = [f" {row['answer']}" for row in rows]
    return max(len(ids) for ids in runtime.tokenizer(answers, add_special_tokens=False)["input_ids"])
