"""Benchmark files that are damaged, hostile or of another kind: refused with a reason, never read as something."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.data.benchmark_files import read_benchmark
from agentic_compression.data.benchmarks import BENCHMARKS
from agentic_compression.errors import DatasetError


def _commonsense(**changes: Any) -> dict[str, Any]:
    choices = [{"label": letter, "text": f"choice {letter}"} for letter in "ABCDE"]
    question = {"stem": "Why?", "question_concept": "reason", "choices": choices}
    return {"id": "1", "question": question, "answerKey": "B"} | changes


def _truthful(**changes: Any) -> dict[str, Any]:
    targets = {"right": 1, "wrong": 0}
    return {"question": "Why?", "mc1_targets": targets, "mc2_targets": targets} | changes


def _hellaswag(**changes: Any) -> dict[str, Any]:
    item = {"ctx_a": "A dog", "ctx_b": "it", "activity_label": "Dogs", "endings": ["a", "b", "c", "d"], "label": 2}
    return item | changes


def _arc(**changes: Any) -> dict[str, Any]:
    return {"query": "Question: Why?", "choices": ["a", "b", "c"], "gold": 1} | changes


def _winogrande(**changes: Any) -> dict[str, Any]:
    return {"sentence": "The _ ran.", "option1": "dog", "option2": "cat", "answer": "1"} | changes


def _lines(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write(root: Path, name: str, row: Any) -> None:
    """One benchmark of one item."""
    match name:
        case "gsm8k":
            _lines(root / "gsm8k/test.jsonl", row)
        case "commonsenseqa":
            _lines(root / "commonsenseqa/dev_rand_split.jsonl", row)
        case "truthfulqa":
            _lines(root / "truthfulqa/mc_task.json", [row])
        case "hellaswag":
            _lines(root / "hellaswag/hellaswag_val.jsonl", row)
        case "arc":
            _lines(root / "arc/arc_easy.jsonl", row)
            _lines(root / "arc/arc_challenge.jsonl", row)
        case "winogrande":
            _lines(root / "winogrande/dev.jsonl", row)
        case "humaneval":
            _lines(root / "humaneval/HumanEval.jsonl", row)
        case "mmlu":
            path = root / "mmlu/test/anatomy_test.csv"
            path.parent.mkdir(parents=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(row)


SOUND: dict[str, Any] = {
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "commonsenseqa": _commonsense(),
    "truthfulqa": _truthful(),
    "hellaswag": _hellaswag(),
    "arc": _arc(),
    "winogrande": _winogrande(),
    "mmlu": ["Why?", "a", "b", "c", "d", "C"],
}
_CODE = {
    "task_id": "HumanEval/0",
    "prompt": "def f():\n",
    "canonical_solution": "    pass\n",
    "test": "",
    "entry_point": "f",
}
WRONG: dict[str, tuple[str, Any]] = {
    "gsm8k: a number for a question": ("gsm8k", {"question": 7, "answer": "#### 2"}),
    "gsm8k: a list for a question": ("gsm8k", {"question": ["q"], "answer": "#### 2"}),
    "commonsenseqa: no such choice": ("commonsenseqa", _commonsense(answerKey="Z")),
    "commonsenseqa: no answer, as in the test file": ("commonsenseqa", _commonsense(answerKey="")),
    "truthfulqa: two right answers": ("truthfulqa", _truthful(mc1_targets={"a": 1, "b": 1})),
    "truthfulqa: labels that only add up to one": ("truthfulqa", _truthful(mc1_targets={"a": 2, "b": -1})),
    "truthfulqa: no wrong answer": ("truthfulqa", _truthful(mc2_targets={"a": 1})),
    "truthfulqa: no right answer": ("truthfulqa", _truthful(mc2_targets={"a": 0})),
    "hellaswag: label beyond the endings": ("hellaswag", _hellaswag(label=4)),
    "hellaswag: label before the endings": ("hellaswag", _hellaswag(label=-1)),
    "hellaswag: no label, as in the test file": ("hellaswag", _hellaswag(label="")),
    "hellaswag: endings in one text": ("hellaswag", _hellaswag(endings="abcd")),
    "arc: gold beyond the choices": ("arc", _arc(gold=3)),
    "arc: gold before the choices": ("arc", _arc(gold=-1)),
    "arc: choices in one text": ("arc", _arc(choices="abc")),
    "arc: more choices than letters": ("arc", _arc(choices=[str(number) for number in range(12)])),
    "arc: a choice that is no text": ("arc", _arc(choices=["a", 7, None])),
    "winogrande: answer 0": ("winogrande", _winogrande(answer="0")),
    "winogrande: answer 3": ("winogrande", _winogrande(answer="3")),
    "winogrande: no answer, as in the test file": ("winogrande", _winogrande(answer="")),
    "winogrande: no blank": ("winogrande", _winogrande(sentence="The dog ran.")),
    "mmlu: no answer": ("mmlu", ["Why?", "a", "b", "c", "d", ""]),
    "mmlu: two letters": ("mmlu", ["Why?", "a", "b", "c", "d", "AB"]),
    "mmlu: letter E": ("mmlu", ["Why?", "a", "b", "c", "d", "E"]),
    "mmlu: index 4": ("mmlu", ["Why?", "a", "b", "c", "d", "4"]),
    "mmlu: a digit of another kind": ("mmlu", ["Why?", "a", "b", "c", "d", "²"]),
    "mmlu: three choices": ("mmlu", ["Why?", "a", "b", "c", "A"]),
    "humaneval: an entry point that is code": ("humaneval", _CODE | {"entry_point": "f) or exit("}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_items_are_read(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name, SOUND[name])
    for task in read_benchmark(name, tmp_path):
        (document,) = task.splits[task.evaluated]
        assert BENCHMARKS[name].reading(document).text


@pytest.mark.parametrize("name", WRONG)
def test_an_item_without_one_right_answer_is_refused(tmp_path: Path, name: str) -> None:
    benchmark, row = WRONG[name]
    _write(tmp_path, benchmark, row)
    with pytest.raises(DatasetError, match=rf"the local files of {benchmark} under .* not in the published format"):
        read_benchmark(benchmark, tmp_path)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([name for name in SOUND if name != "mmlu"]), st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Nothing but a DatasetError leaves, and what is read has one right answer among its choices."""
    root = tmp_path_factory.mktemp(name)
    row = dict(SOUND[name])
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(_JSON)
    _write(root, name, row)
    try:
        tasks = read_benchmark(name, root)
    except DatasetError:
        return
    for task in tasks:
        for document in task.splits[task.evaluated]:
            reading = BENCHMARKS[name].reading(document)
            assert isinstance(document["id"], str)
            assert all(isinstance(text, str) for text in (reading.question, *reading.choices))
            assert not reading.choices or 0 <= reading.answer_index < len(reading.choices)


def test_training_item_of_arc_that_names_no_choice_is_left_out(tmp_path: Path) -> None:
    def item(answer: str) -> dict[str, str]:
        asked = "Please choose the correct answer to the question: Why?\n\nAnswer1: a Answer2: b\n\nAnswer format: x"
        return {"instruction": asked, "answer": answer}

    _write(tmp_path, "arc", _arc())
    answers = ("answer2", "answer0", "answer3", "answer²", "none")
    (tmp_path / "arc/arc_easy_train.json").write_text(json.dumps([item(answer) for answer in answers]))
    (easy,) = (task for task in read_benchmark("arc", tmp_path) if task.task == "arc_easy")
    (kept,) = easy.splits["train"]
    assert (kept["question"], kept["choices"]["text"], kept["answerKey"]) == ("Why?", ["a", "b"], "B")


def test_a_training_item_made_to_be_slow_is_not(tmp_path: Path) -> None:
    """Every beginning of an answer was once tried with every end."""
    _write(tmp_path, "arc", _arc())
    slow = "Please choose the correct answer to the question: " + "\n\nAnswer1: " * 20_000
    (tmp_path / "arc/arc_easy_train.json").write_text(json.dumps([{"instruction": slow, "answer": "answer1"}]))
    start = time.process_time()
    read_benchmark("arc", tmp_path)
    assert time.process_time() - start < 5
