"""Calibration text from a file of the user's or from WikiText, without anything that is evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from agentic_compression.data.benchmark_files import read_benchmark
from agentic_compression.data.benchmark_hub import load_benchmark
from agentic_compression.data.benchmarks import BENCHMARKS, reading_of
from agentic_compression.data.files import read_jsonl, read_text
from agentic_compression.data.split import Document, fingerprint, split_off
from agentic_compression.data.store import store_items
from agentic_compression.errors import DatasetError
from agentic_compression.records import DatasetSpec
from agentic_compression.settings import Settings
from agentic_compression.storage import read_json_lines

__all__ = ["evaluated_fingerprints", "with_calibration_text"]

_MOST = 512
_BLANK_LINES = re.compile(r"\n\s*\n")


def with_calibration_text(
    dataset: DatasetSpec, source: str, *, settings: Settings, benchmark_dir: Path | None = None, seed: int = 0
) -> DatasetSpec:
    """The dataset with its calibration text taken from elsewhere.

    A document is left out when its normalised text, or that of one of its paragraphs or lines, is that of an evaluated
    item: the question alone, or the whole item as a text. Of WikiText's splits the one for training is read, else the
    one for validation, never the one that the benchmark evaluates.

    Args:
        dataset: what is evaluated.
        source: ``wikitext``, a .jsonl file with lines ``{"text": …}``, or a .txt file whose documents are separated by
            blank lines.
        settings: the state root and the Hub's address.
        benchmark_dir: folder of local copies of the benchmarks, for WikiText; without it the Hub's.
        seed: of the choice of 512 documents where there are more.

    Raises:
        DatasetError: the file is missing or malformed, or nothing is left of it.
    """
    texts, words = _wikitext(settings, benchmark_dir) if source == "wikitext" else _file(Path(source).expanduser())
    evaluated = evaluated_fingerprints(dataset)
    documents = [{"id": str(number), "text": text} for number, text in enumerate(texts) if text.strip()]
    apart = [item for item in documents if not evaluated.intersection(_fingerprints(item["text"]))]
    if not apart:
        raise DatasetError(
            f"{source} holds no calibration text: {len(documents)} documents, all of them evaluated; name another file"
        )
    _, taken = split_off(apart, _MOST, lambda item: item["text"], seed)
    stored = store_items(settings, {"calibration": taken})
    left_out = len(documents) - len(apart)
    without = f", {left_out} that are evaluated left out" if left_out else ""
    return dataset.model_copy(
        update={
            "calibration_path": str(stored.paths["calibration"]),
            "calibration_digest": stored.digests["calibration"],
            "calibration_source": f"{len(taken)} documents of {words}{without} (seed {seed})",
        }
    )


def evaluated_fingerprints(dataset: DatasetSpec) -> set[str]:
    """Fingerprints of every evaluated item: its question, its text with the answer, and the texts for perplexity."""
    found: set[str] = set()
    for task in dataset.tasks:
        for document in read_json_lines(Path(task.path)):
            texts = _texts(document)
            if task.lm_eval_task is not None:
                reading = reading_of(task.lm_eval_task, document)
                texts += [reading.question, reading.text]
            found.update(fingerprint(text) for text in texts)
    if dataset.perplexity_path is not None:
        found.update(fingerprint(item["text"]) for item in read_json_lines(Path(dataset.perplexity_path)))
    found.discard(fingerprint(""))
    return found


def _texts(document: Document) -> list[str]:
    """A local file's item: question, text, and question with answer."""
    texts = [document[key] for key in ("text", "question") if isinstance(document.get(key), str)]
    answer = document.get("answer")
    if isinstance(document.get("choices"), list) and isinstance(answer, int):
        answer = document["choices"][answer]
    if isinstance(document.get("question"), str) and isinstance(answer, str):
        texts.append(f"Question: {document['question']}\nAnswer: {answer}")
    return texts


def _fingerprints(text: str) -> Iterable[str]:
    parts = {text, *_BLANK_LINES.split(text), *text.split("\n")}
    return (fingerprint(part) for part in parts if part.strip())


def _wikitext(settings: Settings, benchmark_dir: Path | None) -> tuple[list[str], str]:
    benchmark = BENCHMARKS["wikitext"]
    if benchmark_dir is not None:
        tasks = read_benchmark("wikitext", benchmark_dir.expanduser())
    else:
        tasks = load_benchmark(benchmark, settings)
    for task in tasks:
        for split in ("train", "validation"):
            if split != task.evaluated and task.splits.get(split):
                return [benchmark.reading(page).text for page in task.splits[split]], f"WikiText's {split} split"
    raise DatasetError("this copy of WikiText has only the split that is evaluated; name a .txt or .jsonl file")


def _file(path: Path) -> tuple[list[str], str]:
    if not path.is_file():
        raise DatasetError(f"calibration file {path} does not exist; check the path, or write wikitext")
    if path.suffix.lower() == ".txt":
        return _BLANK_LINES.split(read_text(path)), path.name
    if path.suffix.lower() != ".jsonl":
        raise DatasetError(f"a calibration file ends in .txt or .jsonl, got {path.name}; convert it")
    texts = []
    for row in read_jsonl(path):
        text = row.values.get("text")
        if not isinstance(text, str):
            raise DatasetError(f'{path} {row.where} must be {{"text": "…"}}, got {sorted(row.values)}; fix that line')
        texts.append(text)
    return texts, path.name
