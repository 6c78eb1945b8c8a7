"""Read local copies of the benchmarks in the files they are published as, into the schema of their Hub datasets.

Layout under the benchmark folder (the first named alternative that exists is read)::

    gsm8k/{test,train}.jsonl                          commonsenseqa/{dev,train}_rand_split.jsonl
    truthfulqa/mc_task.json                           mmlu/{test,dev}/<subject>_{test,dev}.csv
    hellaswag/hellaswag_{val,train}.jsonl | hellaswag.json
    arc/arc_{easy,challenge}.jsonl, arc_{easy,challenge}_train.json
    winogrande/{dev,train_xl}.jsonl | winogrande.jsonl
    wikitext-2/wiki.{test,valid,train}.raw, valid.txt
    humaneval/HumanEval.jsonl[.gz]                    bbh/bbh/<task>.json | bbh/<task>.json
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from agentic_compression.data.benchmarks import BENCHMARKS, HarnessTask, check_readings
from agentic_compression.data.files import read_json, read_jsonl, read_text
from agentic_compression.data.split import Document
from agentic_compression.errors import DatasetError

__all__ = ["read_benchmark"]

_LETTERS = "ABCDEFGHIJ"
_INDEX_OF = {**{letter: index for index, letter in enumerate("ABCD")}, **{str(index): index for index in range(4)}}
_TRAIN_BEGINS = "Please choose the correct answer to the question: "


def read_benchmark(name: str, root: Path) -> list[HarnessTask]:
    """The harness tasks of one benchmark from its local files; documents carry an ``id``.

    Raises:
        DatasetError: a missing folder or file, or one that is not what it should be.
    """
    if not root.is_dir():
        raise DatasetError(
            f"the benchmark folder {root} does not exist; give --benchmark-dir a folder that holds {name}/"
        )
    try:
        tasks = _READERS[name](root)
        check_readings(BENCHMARKS[name], tasks)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DatasetError(
            f"the local files of {name} under {root} are not in the published format ({problem}); get them again"
        ) from None
    for task in tasks:
        for split, documents in task.splits.items():
            if split == task.evaluated and not documents:
                raise DatasetError(f"{name} under {root} has no items in its {split} split; get the files again")
            for number, document in enumerate(documents):
                own = document.get("id")
                document["id"] = f"{task.task}-{split}-{number:05d}" if own is None else str(own)
    return tasks


def _find(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DatasetError(f"{root} lacks {' or '.join(names)}; put the published file there")


def _optional(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _jsonl(path: Path) -> list[Document]:
    return [row.values for row in read_jsonl(path)]


def _gsm8k(root: Path) -> list[HarnessTask]:
    splits = {"test": [_gsm8k_document(raw) for raw in _jsonl(_find(root, "gsm8k/test.jsonl"))]}
    if train := _optional(root, "gsm8k/train.jsonl"):
        splits["train"] = [_gsm8k_document(raw) for raw in _jsonl(train)]
    return [HarnessTask("gsm8k", splits, "test")]


def _gsm8k_document(raw: Document) -> Document:
    if "####" not in raw["answer"] or not raw["question"]:
        raise ValueError("a GSM8K answer ends in '#### number'")
    return {field: raw[field] for field in ("id", "question", "answer") if field in raw}


def _commonsenseqa(root: Path) -> list[HarnessTask]:
    def convert(raw: Document) -> Document:
        question = raw["question"]
        choices = question["choices"]
        return {
            "id": raw["id"],
            "question": question["stem"],
            "question_concept": question["question_concept"],
            "choices": {"label": [c["label"] for c in choices], "text": [c["text"] for c in choices]},
            "answerKey": raw["answerKey"],
        }

    splits = {"validation": [convert(raw) for raw in _jsonl(_find(root, "commonsenseqa/dev_rand_split.jsonl"))]}
    if train := _optional(root, "commonsenseqa/train_rand_split.jsonl"):
        splits["train"] = [convert(raw) for raw in _jsonl(train)]
    return [HarnessTask("commonsense_qa", splits, "validation")]


def _truthfulqa(root: Path) -> list[HarnessTask]:
    def targets(raw: Mapping[str, int]) -> Document:
        # the harness scores choice 0 as the right one of mc1: right answers first, as the Hub dataset has them
        pairs = sorted(raw.items(), key=lambda pair: -pair[1])
        return {"choices": [text for text, _ in pairs], "labels": [label for _, label in pairs]}

    documents = [
        {
            "question": raw["question"],
            "mc1_targets": targets(raw["mc1_targets"]),
            "mc2_targets": targets(raw["mc2_targets"]),
        }
        for raw in read_json(_find(root, "truthfulqa/mc_task.json"))
    ]
    for document in documents:
        one, more = document["mc1_targets"]["labels"], document["mc2_targets"]["labels"]
        if sorted(one, reverse=True) != [1, *[0] * (len(one) - 1)] or set(more) != {0, 1}:
            raise ValueError(
                f"mc1 needs one right answer, mc2 right and wrong ones, labelled 1 and 0: {document['question'][:60]!r}"
            )
    return [HarnessTask(f"truthfulqa_{kind}", {"validation": [dict(d) for d in documents]}, "validation")
            for kind in ("mc1", "mc2")]  # fmt: skip


def _mmlu(root: Path) -> list[HarnessTask]:
    tasks = []
    for task, _, subject in BENCHMARKS["mmlu"].hub:
        test = _optional(root, f"mmlu/test/{subject}_test.csv")
        if test is None:
            continue
        splits = {"test": _mmlu_rows(test, str(subject))}
        if dev := _optional(root, f"mmlu/dev/{subject}_dev.csv"):
            splits["dev"] = _mmlu_rows(dev, str(subject))
        tasks.append(HarnessTask(task, splits, "test"))
    if not tasks:
        raise DatasetError(f"{root} lacks mmlu/test/<subject>_test.csv; put the published files there")
    return tasks


def _mmlu_rows(path: Path, subject: str) -> list[Document]:
    """Rows ``question, four choices, answer``: the answer a letter without header, or an index under a header."""
    rows = [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    if rows and rows[0][0] == "question" and rows[0][-1] == "answer":
        rows = rows[1:]
    documents = []
    for row in rows:
        question, *choices, answer = row
        if len(choices) != 4 or answer not in _INDEX_OF:
            raise ValueError(f"{path.name}: a row has 4 choices and an answer A-D or 0-3, got {row[1:]}")
        documents.append({"question": question, "subject": subject, "choices": choices, "answer": _INDEX_OF[answer]})
    return documents


def _hellaswag(root: Path) -> list[HarnessTask]:
    fields = ("ctx_a", "ctx_b", "activity_label", "endings", "label")
    if official := _optional(root, "hellaswag/hellaswag_val.jsonl"):
        splits = {"validation": [{field: raw[field] for field in fields} for raw in _jsonl(official)]}
        if train := _optional(root, "hellaswag/hellaswag_train.jsonl"):
            splits["train"] = [{field: raw[field] for field in fields} for raw in _jsonl(train)]
        return [HarnessTask("hellaswag", splits, "validation")]
    content = read_json(_find(root, "hellaswag/hellaswag_val.jsonl", "hellaswag/hellaswag.json"))
    documents = [_hellaswag_subset(raw) for raw in content["dev"]]
    return [HarnessTask("hellaswag", {"validation": documents}, "validation", name="hellaswag_subset")]


def _hellaswag_subset(raw: Document) -> Document:
    """The 1,000-item subset lacks the activity label: WikiHow items state their own title, videos get ``Video``.

    Prompts so differ slightly from the full file's, which the task's name ``hellaswag_subset`` says where it is shown.
    """
    context = raw["question"]
    if match := re.fullmatch(r"\[header\] (.*?) (\[title\] .*)", context, re.S):
        label, context = match[1], match[2].removeprefix("[title] ")
    else:
        label = "Video"
    endings = [raw["choices"][letter] for letter in "ABCD"]
    answer = list("ABCD").index(raw["answer"])
    return {"ctx_a": context, "ctx_b": "", "activity_label": label, "endings": endings, "label": str(answer)}


def _arc(root: Path) -> list[HarnessTask]:
    tasks = []
    for level in ("easy", "challenge"):
        task = f"arc_{level}"
        documents = [
            _arc_document(raw["query"].removeprefix("Question: "), raw["choices"], raw["gold"])
            for raw in _jsonl(_find(root, f"arc/{task}.jsonl"))
        ]
        splits = {"test": documents}
        if train := _optional(root, f"arc/{task}_train.json"):
            parsed = (_arc_train(raw) for raw in read_json(train))
            splits["train"] = [document for document in parsed if document is not None]
        tasks.append(HarnessTask(task, splits, "test"))
    return tasks


def _arc_document(question: str, choices: list[str], gold: int) -> Document:
    if not isinstance(choices, list) or not 0 <= gold < len(choices) <= len(_LETTERS):
        raise ValueError(f"an ARC item has at most {len(_LETTERS)} choices and names one, got {gold!r} of {choices!r}")
    labels = list(_LETTERS[: len(choices)])
    return {"question": question, "choices": {"text": choices, "label": labels}, "answerKey": labels[gold]}


def _arc_train(raw: Document) -> Document | None:
    """The training file writes choices as ``Answer1: … Answer2: …``; an item that does not parse is left out."""
    body, ends, _ = raw["instruction"].rpartition("\n\nAnswer format: ")
    asked, lists, answers = body.rpartition("\n\nAnswer1: ")
    gold = re.fullmatch(r"answer([1-9])", raw["answer"])
    if not asked.startswith(_TRAIN_BEGINS) or not ends or not lists or gold is None:
        return None
    choices = [part.strip() for part in re.split(r"\s?Answer\d: ", answers)]
    number = int(gold[1])
    return _arc_document(asked.removeprefix(_TRAIN_BEGINS), choices, number - 1) if number <= len(choices) else None


def _winogrande(root: Path) -> list[HarnessTask]:
    fields = ("sentence", "option1", "option2", "answer")
    if official := _optional(root, "winogrande/dev.jsonl"):
        splits = {"validation": [{field: raw[field] for field in fields} for raw in _jsonl(official)]}
        if train := _optional(root, "winogrande/train_xl.jsonl"):
            splits["train"] = [{field: raw[field] for field in fields} for raw in _jsonl(train)]
        return [HarnessTask("winogrande", splits, "validation")]
    path = _find(root, "winogrande/dev.jsonl", "winogrande/winogrande.jsonl")
    return [
        HarnessTask("winogrande", {"validation": [_winogrande_document(raw) for raw in _jsonl(path)]}, "validation")
    ]


def _winogrande_document(raw: Document) -> Document:
    """Two filled contexts become a sentence with a blank and two options; filling it gives the contexts back."""
    first, second = raw["context_options"]
    shared = _shared_start(first, second)
    cut = shared.rfind(" ") + 1
    document = {
        "sentence": f"{shared[:cut]}_ {raw['continuation']}",
        "option1": first[cut:],
        "option2": second[cut:],
        "answer": str(int(raw["gold"]) + 1),
    }
    if "_" in first + second or not first[cut:] or not second[cut:] or document["answer"] not in {"1", "2"}:
        raise ValueError(f"a WinoGrande item cannot be read: {first[:60]!r}")
    return document


def _shared_start(first: str, second: str) -> str:
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return first[:same]


def _humaneval(root: Path) -> list[HarnessTask]:
    fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    path = _find(root, "humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl")
    documents = [{field: str(raw[field]) for field in fields} for raw in _jsonl(path)]
    for document in documents:
        if not document["entry_point"].isidentifier():
            raise ValueError(f"an entry point is a function's name, got {document['entry_point'][:60]!r}")
        document["id"] = document["task_id"]
    return [HarnessTask("humaneval", {"test": documents}, "test")]


def _bigbench_hard(root: Path) -> list[HarnessTask]:
    tasks = []
    for task, _, name in BENCHMARKS["bigbench_hard"].hub:
        path = _optional(root, f"bbh/bbh/{name}.json", f"bbh/{name}.json")
        if path is None:
            continue
        documents = [{"input": raw["input"], "target": raw["target"]} for raw in read_json(path)["examples"]]
        if not all(isinstance(value, str) for document in documents for value in document.values()):
            raise ValueError(f"{path.name}: input and target are texts")
        tasks.append(HarnessTask(task, {"test": documents}, "test"))
    if not tasks:
        raise DatasetError(f"{root} lacks bbh/bbh/<task>.json; put the published files there")
    return tasks


def _wikitext(root: Path) -> list[HarnessTask]:
    files = {
        "test": _find(root, "wikitext-2/wiki.test.raw"),
        "validation": _optional(root, "wikitext-2/wiki.valid.raw", "wikitext-2/valid.txt"),
        "train": _optional(root, "wikitext-2/wiki.train.raw"),
    }
    splits = {split: _pages(read_text(path)) for split, path in files.items() if path is not None}
    return [HarnessTask("wikitext", splits, "test")]


def _pages(text: str) -> list[Document]:
    """Pages begin at a heading of the first level, `` = Title = ``; deeper headings have more equal signs."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        if re.fullmatch(r"= [^=].*[^=] =", line.strip()) and "= =" not in line:
            pages.append([])
        pages[-1].append(line)
    return [{"page": page} for lines in pages if (page := "\n".join(lines)).strip()]


_READERS: Mapping[str, Callable[[Path], list[HarnessTask]]] = {
    "gsm8k": _gsm8k,
    "commonsenseqa": _commonsenseqa,
    "truthfulqa": _truthfulqa,
    "humaneval": _humaneval,
    "bigbench_hard": _bigbench_hard,
    "mmlu": _mmlu,
    "hellaswag": _hellaswag,
    "arc": _arc,
    "winogrande": _winogrande,
    "wikitext": _wikitext,
}
