"""Adapters of local benchmark files, checked through lm-evaluation-harness's own task definitions."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentic_compression.data import resolve_dataset
from agentic_compression.data.benchmarks import BENCHMARKS, reading_of
from agentic_compression.data.split import fingerprint
from agentic_compression.errors import DatasetError
from agentic_compression.records import DatasetSpec
from agentic_compression.settings import Settings
from tests.conftest import SHARED

_FOLDER = SHARED / "benchmarks"
needs_files = pytest.mark.skipif(not _FOLDER.is_dir(), reason=f"{_FOLDER} is not here")


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


def _resolve(name: str, settings: Settings, limit: int | None = 20, seed: int = 0) -> DatasetSpec:
    return resolve_dataset(name, settings=settings, benchmark_dir=_FOLDER, limit=limit, seed=seed)


def _read(path: str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


@cache
def _harness_yaml() -> dict[str, Path]:
    """Task name to the harness's own YAML file."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0]) / "tasks"
    folders = (
        *("gsm8k", "commonsense_qa", "truthfulqa", "hellaswag", "arc", "winogrande", "wikitext", "mmlu/default"),
        *("bbh/cot_fewshot", "humaneval"),
    )
    found = {}
    for folder in folders:
        for path in (root / folder).glob("*.yaml"):
            for line in path.read_text().splitlines():
                key, _, value = line.replace('"', "").partition(":")
                if key == "task" and value.strip():
                    found[value.strip()] = path
    return found


def _harness_task(name: str, split_files: dict[str, str]) -> Any:
    """The harness's own task class over our files: only where the data lies is replaced."""
    from lm_eval.api.task import ConfigurableTask

    config = _load(_harness_yaml()[name])
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": dict(split_files)}}
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) is not None and config[key] not in split_files:
            config.pop(key)
    return ConfigurableTask(config=config)


def _load(path: Path, *, functions: bool = True) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(path, resolve_func=functions))


@needs_files
def test_every_harness_task_name_exists() -> None:
    names = {task for benchmark in BENCHMARKS.values() for task, _, _ in benchmark.hub}
    assert names <= set(_harness_yaml())


@needs_files
def test_hub_datasets_and_splits_are_those_of_the_harness() -> None:
    for benchmark in BENCHMARKS.values():
        for task, path, configuration in benchmark.hub[:2]:
            config = _load(_harness_yaml()[task], functions=False)
            assert config["dataset_path"] == path
            assert config.get("dataset_name") == configuration
            assert benchmark.evaluated in {config.get("test_split"), config.get("validation_split")}


@needs_files
@pytest.mark.parametrize(
    ("name", "items"),
    [("gsm8k", [1319]), ("commonsenseqa", [1221]), ("truthfulqa", [817, 817]), ("hellaswag", [1000]),
     ("arc", [2376, 1172]), ("winogrande", [1267]), ("wikitext", [62]), ("humaneval", [164])],
)  # fmt: skip
def test_resolve_finds_all_published_items(settings: Settings, name: str, items: list[int]) -> None:
    spec = _resolve(name, settings, limit=None)
    assert [task.items for task in spec.tasks] == items
    assert sum(task.weight for task in spec.tasks) == pytest.approx(1)
    for task in spec.tasks:
        assert len(_read(task.path)) == task.items
        assert task.path in task.split_files.values()


@needs_files
def test_resolve_mmlu_has_57_subjects_and_shares_the_limit(settings: Settings) -> None:
    spec = _resolve("mmlu", settings, limit=None)
    assert len(spec.tasks) == 57
    assert sum(task.items for task in spec.tasks) == 14042
    assert spec.tasks[0].weight == pytest.approx(spec.tasks[0].items / 14042)
    few = _resolve("mmlu", settings, limit=50)
    assert sum(task.items for task in few.tasks) == 50


@needs_files
def test_bigbench_hard_has_27_tasks_weighted_by_items_as_the_group_of_the_harness(settings: Settings) -> None:
    spec = _resolve("bigbench_hard", settings, limit=None)
    assert len(spec.tasks) == 27
    assert sum(task.items for task in spec.tasks) == 6511
    group = _load(_harness_yaml()["bbh_cot_fewshot_snarks"].parent / "_bbh_cot_fewshot.yaml")
    assert sorted(task.lm_eval_task or "" for task in spec.tasks) == sorted(group["task"])
    assert group["aggregate_metric_list"][0]["weight_by_size"] is True
    assert all(task.weight == pytest.approx(task.items / 6511) for task in spec.tasks)
    assert sum(task.items for task in _resolve("bigbench_hard", settings, limit=40).tasks) == 40


@needs_files
def test_numbers_of_examples_are_the_definitions_unless_said_otherwise(settings: Settings) -> None:
    assert {name: benchmark.few_shot for name, benchmark in BENCHMARKS.items()} == {
        **{"gsm8k": 5, "mmlu": 5, "bigbench_hard": 3},
        **dict.fromkeys(["commonsenseqa", "truthfulqa", "humaneval", "hellaswag", "arc", "winogrande", "wikitext"], 0),
    }
    for benchmark in BENCHMARKS.values():
        assert benchmark.convention
        for task, _, _ in benchmark.hub:
            defined = _load(_harness_yaml()[task], functions=False).get("num_fewshot")
            assert benchmark.few_shot == defined or (defined is None and benchmark.name != "gsm8k")
    assert [task.few_shot for task in _resolve("gsm8k,arc", settings).tasks] == [5, 0, 0]


@needs_files
def test_weights_and_tasks_choose_what_counts(settings: Settings) -> None:
    spec = _resolve("arc=3, hellaswag", settings)
    assert [(task.lm_eval_task, task.weight) for task in spec.tasks] == [
        ("arc_easy", 1.5),
        ("arc_challenge", 1.5),
        ("hellaswag", 1.0),
    ]
    few = resolve_dataset(
        "arc=3,truthfulqa=0.5", settings=settings, benchmark_dir=_FOLDER, limit=5, tasks=["arc_easy", "truthfulqa"]
    )
    assert {task.name: task.weight for task in few.tasks} == {
        "arc_easy": 3.0,
        "truthfulqa_mc1": 0.25,
        "truthfulqa_mc2": 0.25,
    }
    shown = resolve_dataset(
        "arc,hellaswag", settings=settings, benchmark_dir=_FOLDER, limit=5, tasks=["hellaswag_subset"]
    )
    assert [task.name for task in shown.tasks] == ["hellaswag_subset"]
    with pytest.raises(DatasetError, match=r"did you mean arc_easy.*arc_challenge"):
        resolve_dataset("arc", settings=settings, benchmark_dir=_FOLDER, tasks=["arc_eazy"])


@pytest.mark.parametrize("text", ["arc=0", "arc=-1", "arc=e", "arc=1e999", "arc=2,arc=3"])
def test_weights_must_be_positive_and_one_a_name(settings: Settings, text: str) -> None:
    with pytest.raises(DatasetError, match="weight"):
        resolve_dataset(text, settings=settings)


@needs_files
@pytest.mark.parametrize("name", ["commonsenseqa", "mmlu", "wikitext", "gsm8k,arc"])
def test_calibration_shares_no_text_with_the_whole_evaluated_split(settings: Settings, name: str) -> None:
    limited, whole = _resolve(name, settings), _resolve(name, settings, limit=None)
    evaluated = "\n".join(
        " ".join(reading_of(task.lm_eval_task or "", document).question.casefold().split()) + "\0"
        for task in whole.tasks
        for document in _read(task.path)
    )
    texts = [item["text"] for item in _read(limited.calibration_path)]
    assert 50 < len(texts) <= 512
    for text in texts:
        question = text.removeprefix("Question: ").rpartition("\nAnswer: ")[0] if name != "wikitext" else text
        assert f"{' '.join(question.casefold().split())}\0" not in evaluated


@needs_files
@pytest.mark.parametrize("name", ["truthfulqa", "hellaswag", "winogrande", "humaneval", "bigbench_hard"])
def test_calibration_is_none_and_says_so_when_nothing_else_is_there(settings: Settings, name: str) -> None:
    spec = _resolve(name, settings)
    assert spec.calibration_path is None
    assert spec.calibration_source.startswith("none")


@needs_files
@pytest.mark.parametrize(
    ("name", "task"),
    [("gsm8k", "gsm8k"), ("commonsenseqa", "commonsense_qa"), ("arc", "arc_challenge"), ("winogrande", "winogrande"),
     ("truthfulqa", "truthfulqa_mc1"), ("hellaswag", "hellaswag")],
)  # fmt: skip
def test_the_harness_renders_our_documents_with_its_own_definition(settings: Settings, name: str, task: str) -> None:
    spec = _resolve(name, settings, limit=6)
    ours = next(item for item in spec.tasks if item.lm_eval_task == task)
    harness = _harness_task(task, ours.split_files)
    documents = list(harness.eval_docs)
    assert len(documents) == 6
    for document, raw in zip(documents, _read(ours.path), strict=True):
        reading = reading_of(task, raw)
        text, target = harness.doc_to_text(document), harness.doc_to_target(document)
        choices = harness.doc_to_choice(document) if harness.OUTPUT_TYPE == "multiple_choice" else []
        if task == "gsm8k":
            assert text == f"Question: {raw['question']}\nAnswer:"
            assert target == raw["answer"]
        elif task == "winogrande":  # the harness scores the shared continuation after either context
            assert choices[text].startswith(reading.question)
            assert choices[text] + " " + target == f"{reading.question} {reading.answer}"
        elif task == "commonsense_qa":
            assert f"{target}. {reading.answer}\n" in text
        elif task == "hellaswag":
            assert len(choices) == 4
            assert int(target) == reading.answer_index
        else:
            assert reading.question in text
            assert choices[int(target)] == reading.answer


@needs_files
def test_winogrande_contexts_are_those_of_the_file(settings: Settings) -> None:
    raw = [json.loads(line) for line in (_FOLDER / "winogrande/winogrande.jsonl").read_text().splitlines()]
    harness_tasks = _resolve("winogrande", settings, limit=None).tasks
    for original, document in zip(raw, _read(harness_tasks[0].path), strict=True):
        before = document["sentence"][: document["sentence"].index("_")]
        assert [before + document["option1"], before + document["option2"]] == original["context_options"]
        assert document["sentence"].endswith(original["continuation"])


@needs_files
def test_wikitext_is_also_plain_text(settings: Settings) -> None:
    spec = _resolve("wikitext", settings, limit=None)
    (task,) = spec.tasks
    documents = _read(task.path)
    assert task.kind == "text"
    assert all(document["text"] == document["page"].strip() for document in documents)
    assert documents[0]["page"].lstrip().startswith("= Robert Boulter =")


def test_resolve_says_what_is_missing_in_a_benchmark_folder(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(DatasetError, match=r"lacks gsm8k/test\.jsonl"):
        resolve_dataset("gsm8k", settings=settings, benchmark_dir=tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        resolve_dataset("gsm8k", settings=settings, benchmark_dir=tmp_path / "nowhere")
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text('{"question": "q", "answer": "no number"}\n')
    with pytest.raises(DatasetError, match="not in the published format"):
        resolve_dataset("gsm8k", settings=settings, benchmark_dir=tmp_path)


def test_resolve_removes_leaked_training_items_from_calibration(tmp_path: Path, settings: Settings) -> None:
    def line(n: int) -> str:
        return json.dumps({"question": f"How many is {n}?", "answer": f"#### {n}"}) + "\n"

    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text("".join(line(n) for n in range(10)))
    (tmp_path / "gsm8k/train.jsonl").write_text("".join(line(n).replace("How", "HOW ") for n in range(15)))
    spec = resolve_dataset("gsm8k", settings=settings, benchmark_dir=tmp_path, limit=2)
    kept = {fingerprint(item["text"]) for item in _read(spec.calibration_path)}
    assert kept == {fingerprint(f"Question: HOW  many is {n}?\nAnswer: #### {n}") for n in range(10, 15)}
