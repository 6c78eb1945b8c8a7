"""Resolve what the user calls a dataset into tasks, calibration text and held-out text, stored by content."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentic_compression.data.benchmark_files import read_benchmark
from agentic_compression.data.benchmark_hub import load_benchmark
from agentic_compression.data.benchmarks import BENCHMARKS, Benchmark, HarnessTask
from agentic_compression.data.files import EXTENSIONS, read_rows
from agentic_compression.data.selection import benchmark_weights, check_tasks
from agentic_compression.data.shapes import LocalItems, recognise
from agentic_compression.data.split import Document, fingerprint, first_of_shuffle, split_off, without
from agentic_compression.data.store import store_items
from agentic_compression.errors import DatasetError
from agentic_compression.records import DatasetSpec, DatasetTask, content_digest
from agentic_compression.settings import Settings
from agentic_compression.storage import digest_of_files

__all__ = ["resolve_dataset"]

_CALIBRATION_SHARE = 0.10
_CALIBRATION_LEAST, _CALIBRATION_MOST = 32, 512
_CALIBRATION_USEFUL = 8  # a smaller file keeps all its items for evaluation
_TEXT_SHARE = 0.20
_PERPLEXITY_MOST = 2000


def resolve_dataset(
    dataset: str,
    *,
    settings: Settings,
    benchmark_dir: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
) -> DatasetSpec:
    """Resolve ``demo``, benchmark names, or a local .jsonl/.csv/.parquet file.

    The same file, limit and seed give the same record and digest. Canonical items are stored under
    ``artifacts/datasets/<digest>/``. Calibration text never shares an item with what is evaluated.

    Args:
        dataset: ``demo``, a benchmark name, a comma list of them with weights in the accuracy where they are not to
            count the same (``arc=2,hellaswag``), or a path.
        settings: the state root and the Hub's address.
        benchmark_dir: folder of local copies of the benchmarks; without it they come from the Hub.
        limit: items a task to evaluate, the first of a seeded shuffle (MMLU and BIG-Bench Hard: over all their tasks);
            None for all.
        seed: of every split and shuffle.
        tasks: keep only these of the dataset's tasks; a benchmark's name stands for all of its tasks.

    Raises:
        DatasetError: missing, empty or malformed, or an unknown name.
    """
    name = dataset.strip()
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1, got {limit}; leave it out to evaluate all items")
    if name == "demo":
        return _only(_demo(settings, limit, seed), tasks)
    weights = benchmark_weights(name)
    if weights is None and _is_path(name):
        return _only(_local_file(name, settings, limit, seed), tasks)
    chosen = (
        {_benchmark(part.strip()): 1.0 for part in name.split(",")}
        if weights is None
        else {_benchmark(part): weight for part, weight in weights.items()}
    )
    loaded = _loaded(chosen, settings, benchmark_dir, tasks, name)
    return _benchmarks(name, settings, loaded, limit, seed)


def _only(dataset: DatasetSpec, tasks: Sequence[str] | None) -> DatasetSpec:
    """The dataset with some of its tasks; its other files stay as they are."""
    if tasks is None:
        return dataset
    kept = check_tasks(tasks, (task.name for task in dataset.tasks), dataset.dataset)
    return dataset.model_copy(
        update={
            "tasks": tuple(task for task in dataset.tasks if task.name in kept),
            "digest": content_digest([dataset.digest, sorted(kept)]),
        }
    )


def _is_path(name: str) -> bool:
    if not name:
        raise DatasetError("a dataset is needed, got nothing; give 'demo', a benchmark name or a file")
    return name.lower().endswith(EXTENSIONS) or "/" in name or "\\" in name or name.startswith("~") or "." in name


def _demo(settings: Settings, limit: int | None, seed: int) -> DatasetSpec:
    from agentic_compression import demo

    sources = {"demo_mc": demo.multiple_choice_path(), "demo_gen": demo.generation_path()}
    heldout, sample = demo.heldout_text_path(), demo.train_sample_path()
    found = {name: recognise(read_rows(path), path.name) for name, path in sources.items()}
    stored = store_items(settings, {name: first_of_shuffle(f.items, limit, seed) for name, f in found.items()})
    tasks = tuple(
        DatasetTask(
            name=name,
            kind=items.kind,
            path=str(stored.paths[name]),
            items=min(limit or len(items.items), len(items.items)),
            digest=stored.digests[name],
        )
        for name, items in found.items()
    )
    calibration = digest_of_files(sample)
    return DatasetSpec(
        dataset="demo",
        name="demo",
        tasks=tasks,
        perplexity_path=str(heldout),
        calibration_path=str(sample),
        calibration_digest=calibration,
        calibration_source="a sample of the demo model's training documents",
        digest=content_digest([stored.digest, calibration, digest_of_files(heldout)]),
    )


def _local_file(name: str, settings: Settings, limit: int | None, seed: int) -> DatasetSpec:
    path = Path(name).expanduser()
    found = recognise(read_rows(path), path.name)
    evaluated, calibration, source = _split_local(found, path.name, seed)
    evaluated = first_of_shuffle(evaluated, limit, seed)
    text_of = _text_of(found)
    files = {
        "items": evaluated,
        "perplexity": [{"id": item["id"], "text": text_of(item)} for item in evaluated[:_PERPLEXITY_MOST]],
        "calibration": [{"id": item["id"], "text": text_of(item)} for item in calibration],
    }
    stored = store_items(settings, {key: items for key, items in files.items() if items})
    short = _short_name(path.stem)
    task = DatasetTask(
        name=short,
        kind=found.kind,
        path=str(stored.paths["items"]),
        items=len(evaluated),
        digest=stored.digests["items"],
    )
    return DatasetSpec(
        dataset=name,
        name=short,
        tasks=(task,),
        perplexity_path=str(stored.paths["perplexity"]),
        calibration_path=str(stored.paths["calibration"]) if calibration else None,
        calibration_digest=stored.digests.get("calibration"),
        calibration_source=source,
        digest=stored.digest,
    )


def _split_local(found: LocalItems, file: str, seed: int) -> tuple[list[Document], list[Document], str]:
    items = found.items
    identity = _identity_of(found)
    unique = len({fingerprint(identity(item)) for item in items})
    if found.kind == "text":
        count = min(_CALIBRATION_MOST, max(1, round(_TEXT_SHARE * unique))) if unique > 1 else 0
        kind, least = "documents", 1
    else:
        count = min(max(_CALIBRATION_LEAST, round(_CALIBRATION_SHARE * unique)), _CALIBRATION_MOST, unique // 3)
        kind, least = "items", _CALIBRATION_USEFUL
    if count < least:
        return list(items), [], f"none: {file} has {unique} different {kind}, too few to set some aside for calibration"
    rest, calibration = split_off(items, count, identity, seed)
    return (
        rest,
        calibration,
        f"{len(calibration)} {kind} of {file}, split off by seeded hash (seed {seed}); never evaluated",
    )


def _identity_of(found: LocalItems) -> Callable[[Document], str]:
    return (lambda item: item["text"]) if found.kind == "text" else (lambda item: item["question"])


def _text_of(found: LocalItems) -> Callable[[Document], str]:
    if found.kind == "text":
        return lambda item: item["text"]
    if found.kind == "generation":
        return lambda item: f"Question: {item['question']}\nAnswer: {item['answer']}"
    return lambda item: f"Question: {item['question']}\nAnswer: {item['choices'][item['answer']]}"


@dataclass(frozen=True)
class _Evaluated:
    """A harness task with the documents to evaluate and its share of the dataset's accuracy."""

    benchmark: Benchmark
    task: HarnessTask
    documents: list[Document]
    weight: float


@dataclass(frozen=True)
class _Loaded:
    """A benchmark with the tasks that are asked, and its weight in the accuracy."""

    benchmark: Benchmark
    tasks: list[HarnessTask]
    weight: float


def _loaded(
    chosen: Mapping[Benchmark, float],
    settings: Settings,
    benchmark_dir: Path | None,
    tasks: Sequence[str] | None,
    dataset: str,
) -> list[_Loaded]:
    """Read the benchmarks; of the Hub's, only the tasks that are asked."""
    if benchmark_dir is None:
        names = {benchmark: {task for task, _, _ in benchmark.hub} for benchmark in chosen}
        everything = [name for benchmark, own in names.items() for name in (benchmark.name, *sorted(own))]
        kept = everything if tasks is None else check_tasks(tasks, everything, dataset)
        wanted = {
            benchmark: tuple(entry for entry in benchmark.hub if benchmark.name in kept or entry[0] in kept)
            for benchmark in chosen
        }
        return [
            _Loaded(benchmark, load_benchmark(replace(benchmark, hub=hub), settings), chosen[benchmark])
            for benchmark, hub in wanted.items()
            if hub
        ]
    read = {benchmark: read_benchmark(benchmark.name, benchmark_dir.expanduser()) for benchmark in chosen}
    if tasks is not None:
        everything = [
            name for benchmark, own in read.items() for task in own for name in (benchmark.name, *_names(task))
        ]
        kept = check_tasks(tasks, everything, dataset)
        read = {
            benchmark: [task for task in own if benchmark.name in kept or not _names(task).isdisjoint(kept)]
            for benchmark, own in read.items()
        }
    return [_Loaded(benchmark, own, chosen[benchmark]) for benchmark, own in read.items() if own]


def _names(task: HarnessTask) -> set[str]:
    """What a task may be called: as the harness calls it, and as its score is shown."""
    return {task.task, task.name or task.task}


def _benchmarks(name: str, settings: Settings, loaded: Sequence[_Loaded], limit: int | None, seed: int) -> DatasetSpec:
    evaluated = [part for item in loaded for part in _choose(item, limit, seed)]
    calibration, source = _calibration(evaluated, seed)
    files = _benchmark_files(evaluated, calibration)
    stored = store_items(settings, files)
    digest = stored.digests.get("calibration")
    return DatasetSpec(
        dataset=name,
        name=_short_name("-".join(item.benchmark.name for item in loaded)),
        tasks=tuple(_task(chosen_task, stored.paths, stored.digests) for chosen_task in evaluated),
        perplexity_path=str(stored.paths["perplexity"]),
        calibration_path=str(stored.paths["calibration"]) if calibration else None,
        calibration_digest=digest,
        calibration_source=source,
        digest=stored.digest,
    )


def _benchmark(name: str) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    known = ", ".join(BENCHMARKS)
    near = difflib.get_close_matches(name.lower(), list(BENCHMARKS), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DatasetError(
        f"unknown dataset {name!r}; {hint}known: demo, {known}, or a file ending in {', '.join(EXTENSIONS)}"
    )


def _choose(loaded: _Loaded, limit: int | None, seed: int) -> list[_Evaluated]:
    """Apply the limit; a benchmark's tasks weigh as much as it does in all."""
    benchmark, tasks = loaded.benchmark, loaded.tasks
    if benchmark.by_items:
        everything = [document for task in tasks for document in task.splits[task.evaluated]]
        kept = {document["id"] for document in first_of_shuffle(everything, limit, seed)}
        chosen = [(task, [d for d in task.splits[task.evaluated] if d["id"] in kept]) for task in tasks]
        chosen = [(task, documents) for task, documents in chosen if documents]
        share = loaded.weight / sum(len(documents) for _, documents in chosen)
        return [_Evaluated(benchmark, task, documents, share * len(documents)) for task, documents in chosen]
    share = loaded.weight / len(tasks)
    return [
        _Evaluated(benchmark, task, first_of_shuffle(task.splits[task.evaluated], limit, seed), share) for task in tasks
    ]


def _calibration(evaluated: Sequence[_Evaluated], seed: int) -> tuple[list[Document], str]:
    """Up to 512 texts from splits that are never evaluated, without any text of the whole evaluated splits."""
    used = {
        fingerprint(part.benchmark.reading(document).question)
        for part in evaluated
        for document in part.task.splits[part.task.evaluated]
    }
    spare: list[Document] = []
    notes: list[str] = []
    for part in evaluated:
        split = next((name for name in part.benchmark.spare if name in part.task.splits), None)
        if split is None:
            continue
        readings = [(d["id"], part.benchmark.reading(d)) for d in part.task.splits[split]]
        found = [{"id": f"{part.task.task}/{name}", "question": r.question, "text": r.text} for name, r in readings]
        found = without(found, lambda item: item["question"], used)
        if found and (note := f"{part.benchmark.name} {split}") not in notes:
            notes.append(note)
        spare += found
    if not spare:
        names = ", ".join(dict.fromkeys(part.benchmark.name for part in evaluated))
        return [], f"none: the copy of {names} has no split besides the evaluated one"
    _, taken = split_off(spare, min(_CALIBRATION_MOST, len(spare)), lambda item: item["question"], seed)
    texts = [{"id": item["id"], "text": item["text"]} for item in taken]
    return texts, f"{len(texts)} texts of {', '.join(notes)} (seed {seed}); none of them is evaluated"


def _benchmark_files(evaluated: Sequence[_Evaluated], calibration: Sequence[Document]) -> dict[str, Sequence[Document]]:
    files: dict[str, Sequence[Document]] = {}
    perplexity: dict[str, Document] = {}
    for part in evaluated:
        documents = part.documents
        if part.benchmark.name == "wikitext":  # also plain text: accuracy is next-token top-1
            documents = [{**document, "text": document["page"].strip()} for document in documents]
        files[f"{part.task.task}.{part.task.evaluated}"] = documents
        for split, others in part.task.splits.items():
            if split != part.task.evaluated and part.benchmark.name != "wikitext":
                files[f"{part.task.task}.{split}"] = others
        for document in documents:
            text = part.benchmark.reading(document).text
            perplexity.setdefault(fingerprint(text), {"id": document["id"], "text": text})
    files["perplexity"] = list(perplexity.values())[:_PERPLEXITY_MOST]
    if calibration:
        files["calibration"] = calibration
    return files


def _task(part: _Evaluated, paths: Mapping[str, Path], digests: Mapping[str, str]) -> DatasetTask:
    name = part.task.task
    own = f"{name}.{part.task.evaluated}"
    return DatasetTask(
        name=part.task.name or name,
        kind="text" if part.benchmark.name == "wikitext" else "benchmark",
        path=str(paths[own]),
        items=len(part.documents),
        digest=digests[own],
        lm_eval_task=name,
        split_files={
            key.removeprefix(f"{name}."): str(path) for key, path in paths.items() if key.rpartition(".")[0] == name
        },
        few_shot=part.benchmark.few_shot,
        weight=part.weight,
    )


def _short_name(text: str) -> str:
    """A name fit for a file or a registered model: letters, digits, ``._-``, at most 80 characters."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80]
    return short or f"data-{fingerprint(text)[:8]}"
