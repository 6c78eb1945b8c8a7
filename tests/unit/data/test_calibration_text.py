"""Calibration text from elsewhere never holds an evaluated item."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentic_compression.data import resolve_dataset
from agentic_compression.data.calibration_text import evaluated_fingerprints, with_calibration_text
from agentic_compression.data.split import fingerprint
from agentic_compression.errors import DatasetError
from agentic_compression.records import DatasetSpec
from agentic_compression.settings import Settings


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


@pytest.fixture
def dataset(tmp_path: Path, settings: Settings) -> DatasetSpec:
    items = [
        {"question": f"What is {n} plus 1?", "choices": [str(n), f"about {n + 1}", "none"], "answer": 1}
        for n in range(60)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return resolve_dataset(str(path), settings=settings)


def evaluated(dataset: DatasetSpec) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(dataset.tasks[0].path).read_text().splitlines()]


def taken(dataset: DatasetSpec) -> list[str]:
    assert dataset.calibration_path is not None
    return [json.loads(line)["text"] for line in Path(dataset.calibration_path).read_text().splitlines()]


def test_fingerprints_are_of_questions_and_of_whole_items(dataset: DatasetSpec) -> None:
    question = evaluated(dataset)[0]["question"]
    number = int(question.split()[2])
    found = evaluated_fingerprints(dataset)
    assert fingerprint(question.upper().replace(" ", "  ")) in found
    assert fingerprint(f"Question: {question}\nAnswer: about {number + 1}") in found
    assert fingerprint("What is the capital of France?") not in found


def test_a_users_file_loses_what_is_evaluated(dataset: DatasetSpec, settings: Settings, tmp_path: Path) -> None:
    question = evaluated(dataset)[0]["question"]
    documents = [
        "Some text of its own.",
        f"A page.\n\n{question.upper()}\n\nIts end.",
        f"a line\n  {question}",
        question,
    ]
    lines = tmp_path / "text.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    made = with_calibration_text(dataset, str(lines), settings=settings)
    assert taken(made) == ["Some text of its own."]
    assert made.calibration_digest != dataset.calibration_digest
    assert made.calibration_source == "1 documents of text.jsonl, 3 that are evaluated left out (seed 0)"
    assert made.tasks == dataset.tasks
    plain = tmp_path / "text.txt"
    plain.write_text(f"First part,\ntwo lines.\n\n{question}\n\n\nSecond part.\n")
    assert sorted(taken(with_calibration_text(dataset, str(plain), settings=settings))) == [
        "First part,\ntwo lines.",
        "Second part.\n",
    ]


def test_wikitext_gives_its_training_split(dataset: DatasetSpec, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "wikitext-2"
    folder.mkdir(parents=True)
    for split, word in (("test", "evaluated"), ("train", "training")):
        (folder / f"wiki.{split}.raw").write_text(f" = One = \n\n Text for {word} . \n\n = Two = \n\n More {word} . \n")
    made = with_calibration_text(dataset, "wikitext", settings=settings, benchmark_dir=tmp_path / "benchmarks")
    assert made.calibration_source.startswith("2 documents of WikiText's train split")
    assert all("training" in text and "evaluated" not in text for text in taken(made))
    (folder / "wiki.train.raw").unlink()
    with pytest.raises(DatasetError, match="only the split that is evaluated"):
        with_calibration_text(dataset, "wikitext", settings=settings, benchmark_dir=tmp_path / "benchmarks")


def test_files_that_give_nothing_are_refused(dataset: DatasetSpec, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": evaluated(dataset)[0]["question"]}) + "\n")
    with pytest.raises(DatasetError, match="all of them evaluated"):
        with_calibration_text(dataset, str(path), settings=settings)
    path.write_text('{"words": 3}\n')
    with pytest.raises(DatasetError, match="line 1 must be"):
        with_calibration_text(dataset, str(path), settings=settings)
    with pytest.raises(DatasetError, match="does not exist"):
        with_calibration_text(dataset, str(tmp_path / "none.txt"), settings=settings)
    (tmp_path / "table.csv").write_text("text\n")
    with pytest.raises(DatasetError, match=r"ends in \.txt or \.jsonl"):
        with_calibration_text(dataset, str(tmp_path / "table.csv"), settings=settings)
