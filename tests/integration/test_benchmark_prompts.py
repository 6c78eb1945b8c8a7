"""What is asked of a local copy is what lm-evaluation-harness asks of the same document in the Hub's schema.

The harness's side is built here apart: its own definition, loaded by its own task manager, over documents that this
file converts from the published files on its own.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from agentic_compression.data import resolve_dataset
from agentic_compression.evaluation import harness_items
from agentic_compression.evaluation.harness import quiet_harness
from agentic_compression.evaluation.harness_items import HarnessItems
from agentic_compression.evaluation.harness_tasks import benchmark_file
from agentic_compression.records import DatasetTask
from agentic_compression.runtimes import Runtime
from agentic_compression.settings import Settings
from tests.conftest import SHARED

FOLDER = SHARED / "benchmarks"
Documents = dict[str, list[dict[str, Any]]]
NO_MODEL = cast(Runtime, None)  # a named benchmark's prompts need none

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not here")


def _lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / path).read_text(encoding="utf-8").split("\n") if line]


def _gsm8k() -> Documents:
    return {"test": _lines("gsm8k/test.jsonl"), "train": _lines("gsm8k/train.jsonl")}


def _mmlu(split: str) -> list[dict[str, Any]]:
    with (FOLDER / f"mmlu/{split}/anatomy_{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0] != "question"]
    return [
        {
            "question": row[0],
            "subject": "anatomy",
            "choices": row[1:5],
            "answer": int(row[5]) if row[5].isdigit() else "ABCD".index(row[5]),
        }
        for row in rows
    ]


def _commonsense(path: str) -> list[dict[str, Any]]:
    return [
        {
            "id": raw["id"],
            "question": raw["question"]["stem"],
            "question_concept": raw["question"]["question_concept"],
            "choices": {
                "label": [choice["label"] for choice in raw["question"]["choices"]],
                "text": [choice["text"] for choice in raw["question"]["choices"]],
            },
            "answerKey": raw["answerKey"],
        }
        for raw in _lines(path)
    ]


def _truthful() -> Documents:
    documents = []
    for raw in json.loads((FOLDER / "truthfulqa/mc_task.json").read_text(encoding="utf-8")):
        document = {"question": raw["question"]}
        for kind in ("mc1_targets", "mc2_targets"):
            right = [text for text, label in raw[kind].items() if label]
            wrong = [text for text, label in raw[kind].items() if not label]
            document[kind] = {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)}
        documents.append(document)
    return {"validation": documents}


def _arc() -> Documents:
    documents = []
    for raw in _lines("arc/arc_challenge.jsonl"):
        labels = ["A", "B", "C", "D", "E"][: len(raw["choices"])]
        documents.append(
            {
                "question": raw["query"].split("Question: ", 1)[1],
                "choices": {"text": raw["choices"], "label": labels},
                "answerKey": labels[raw["gold"]],
            }
        )
    return {"test": documents}


def _bbh(task: str) -> Documents:
    return {"test": json.loads((FOLDER / f"bbh/bbh/{task}.json").read_text(encoding="utf-8"))["examples"]}


CASES: dict[str, tuple[str, Callable[[], Documents]]] = {
    "gsm8k": ("gsm8k", _gsm8k),
    "mmlu_anatomy": ("mmlu", lambda: {split: _mmlu(split) for split in ("test", "dev")}),
    "commonsense_qa": (
        "commonsenseqa",
        lambda: {
            "validation": _commonsense("commonsenseqa/dev_rand_split.jsonl"),
            "train": _commonsense("commonsenseqa/train_rand_split.jsonl"),
        },
    ),
    "truthfulqa_mc1": ("truthfulqa", _truthful),
    "truthfulqa_mc2": ("truthfulqa", _truthful),
    "arc_challenge": ("arc", _arc),
    "bbh_cot_fewshot_snarks": ("bigbench_hard", lambda: _bbh("snarks")),
    "bbh_cot_fewshot_word_sorting": ("bigbench_hard", lambda: _bbh("word_sorting")),
}


def _ours(dataset: str, task: str) -> DatasetTask:
    spec = resolve_dataset(dataset, settings=Settings(), benchmark_dir=FOLDER, tasks=[task])
    return spec.tasks[0]


def _own(task: str, documents: Documents, few_shot: int | None) -> Any:
    """The harness's own task over the Hub's documents, with our number of examples where it names none."""
    from lm_eval.tasks import TaskManager

    def splits(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({name: Dataset.from_list(rows) for name, rows in documents.items()})

    missing = {f"{split}_split": None for split in ("training", "validation") if split[:5] not in _short(documents)}
    member = {"task": task, "dataset_name": None, "dataset_kwargs": None, "custom_dataset": splits, **missing}
    manager = TaskManager(include_path=benchmark_file(task).parent, include_defaults=False)
    own = manager.load([{"group": "own", "task": [member]}])["tasks"][task]
    if own.config.num_fewshot is None:
        own.set_config("num_fewshot", few_shot)
    own.set_fewshot_seed(1234)
    return own


def _short(documents: Documents) -> set[str]:
    return {"train" if name == "train" else name[:5] for name in documents}


@pytest.mark.parametrize("task", CASES)
def test_requests_are_those_of_the_harness_over_the_hubs_documents(home: Path, task: str) -> None:
    dataset, documents = CASES[task]
    ours = _ours(dataset, task)
    with quiet_harness():
        own = _own(task, documents(), ours.few_shot)
        items = HarnessItems(ours, "", NO_MODEL)
        assert items.few_shot == own.config.num_fewshot == ours.few_shot
        assert len(items.items) == len(own.eval_docs)
        for position, document in enumerate(own.eval_docs):
            if position == 4:
                break
            context = own.fewshot_context(document, own.config.num_fewshot)
            asked = own.construct_requests(doc=document, ctx=context, metadata=(task, position, 1))
            expected = [request.args for request in (asked if isinstance(asked, list) else [asked])]
            assert [request.args for request in items.requests(position)] == expected
            held = items.items[position].document
            assert items._task.doc_to_target(held) == own.doc_to_target(document)
        assert items._task.config.filter_list == own.config.filter_list
        assert items._task.config.metric_list == own.config.metric_list


def test_an_items_examples_do_not_depend_on_what_is_asked_before(home: Path) -> None:
    ours = _ours("gsm8k", "gsm8k")
    with quiet_harness():
        forwards, backwards = HarnessItems(ours, "", NO_MODEL), HarnessItems(ours, "", NO_MODEL)
        first = {position: forwards.requests(position)[0].args for position in (0, 3, 7)}
        assert {position: backwards.requests(position)[0].args for position in (7, 0, 3)} == first
    assert len({args[0].rpartition("Question:")[0] for args in first.values()}) == 3


@pytest.mark.parametrize("task", ["snarks", "word_sorting", "boolean_expressions"])
def test_bigbench_hard_asks_with_the_published_chain_of_thought_examples(home: Path, task: str) -> None:
    """The three examples are those published with the paper, whatever white space stands between them."""
    ours = _ours("bigbench_hard", f"bbh_cot_fewshot_{task}")
    published = (FOLDER / f"bbh/cot-prompts/{task}.txt").read_text(encoding="utf-8").split("-----", 1)[1]
    with quiet_harness():
        items = HarnessItems(ours, "", NO_MODEL)
        ((context, _),) = [request.args for request in items.requests(0)]
    question = items.items[0].document["input"]
    expected = f"{published} Q: {question} A: Let's think step by step."
    assert context.split() == expected.split()


def test_winogrande_scores_the_continuation_after_both_contexts_of_the_file(home: Path) -> None:
    raw = _lines("winogrande/winogrande.jsonl")
    with quiet_harness():
        items = HarnessItems(_ours("winogrande", "winogrande"), "", NO_MODEL)
        for position in range(5):
            asked = [request.args for request in items.requests(position)]
            contexts, rest = raw[position]["context_options"], raw[position]["continuation"]
            assert [context + text for context, text in asked] == [f"{context} {rest}" for context in contexts]


def test_hellaswag_in_the_published_format_is_asked_as_the_hubs(home: Path, tmp_path: Path) -> None:
    published = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "split": "val",
        "split_type": "indomain",
        "label": 3,
        "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a cube.",
                    "starts pulling up roofing [title] on a roof."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
    }  # fmt: skip
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag/hellaswag_val.jsonl").write_text(json.dumps(published) + "\n")
    spec = resolve_dataset("hellaswag", settings=Settings(), benchmark_dir=tmp_path)
    with quiet_harness():
        own = _own("hellaswag", {"validation": [published | {"label": "3"}]}, 0)
        items = HarnessItems(spec.tasks[0], "", NO_MODEL)
        asked = own.construct_requests(
            doc=own.eval_docs[0], ctx=own.fewshot_context(own.eval_docs[0], 0), metadata=("hellaswag", 0, 1)
        )
        assert [request.args for request in items.requests(0)] == [request.args for request in asked]
    assert asked[0].args[0] == "Roof shingle removal: A man is sitting on a roof. He"


def test_humaneval_asks_the_published_prompt_and_never_loads_the_functions_of_its_definition(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(harness_items, "require_sandbox", lambda: None)
    definition = yaml.load(benchmark_file("humaneval").read_text(), Loader=_plain_loader())
    packed = (FOLDER / "humaneval/HumanEval.jsonl.gz").read_bytes()
    raw = [json.loads(line) for line in gzip.decompress(packed).decode().split("\n") if line]
    with quiet_harness():
        items = HarnessItems(_ours("humaneval", "humaneval"), "", NO_MODEL)
        assert [item.id for item in items.items] == [row["task_id"] for row in raw]
        for position in (0, 32, 163):
            ((context, arguments),) = [request.args for request in items.requests(position)]
            assert context == raw[position]["prompt"]
            assert arguments == definition["generation_kwargs"]
    assert items.metric == "pass@1"
    assert "lm_eval.tasks.humaneval.utils" not in sys.modules


def _plain_loader() -> type[yaml.SafeLoader]:
    class Loader(yaml.SafeLoader):
        """Functions stay names."""

    def name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        return str(loader.construct_scalar(node))

    Loader.add_constructor("!function", name)
    return Loader
