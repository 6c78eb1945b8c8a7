"""One GGUF checkpoint and its transformers original through the whole evaluation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.evaluation.evaluate import evaluate
from agentic_compression.evaluation.memory import MemoryProbe, measure_memory
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.store import evaluation_key
from agentic_compression.records import (
    DatasetSpec,
    DatasetTask,
    Evaluation,
    EvaluationSettings,
)
from tests.unit.methods.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from tests.unit.runtimes.gguf_writing import write_llama

TASKS = Path(__file__).resolve().parents[3] / "configs" / "tasks"
SETTINGS = EvaluationSettings(prompt_tokens=16, new_tokens=4, runs=3, warmup_runs=1, threads=1, perplexity_tokens=2000)


def write_gguf_folder(folder: Path) -> Path:
    folder.mkdir()
    model = tiny_model()
    write_llama(model, folder / "model.gguf")
    model.config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSpec:
    generator = random.Random(0)
    words = ["cat", "dog", "tree", "house", "red", "runs"]
    texts = [" ".join(generator.choices(words, k=generator.randint(4, 30))) for _ in range(20)]
    rows = {
        "multiple_choice": [
            {"id": f"m{n:02d}", "question": texts[n], "choices": words[:4], "answer": n % 4} for n in range(20)
        ],
        "generation": [{"id": f"g{n}", "question": texts[n], "answer": "cat"} for n in range(6)],
        "text": [{"id": f"t{n:02d}", "text": text} for n, text in enumerate(texts)],
    }
    for kind, items in rows.items():
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    tasks = tuple(
        DatasetTask(name=kind, kind=kind, path=str(tmp_path / f"{kind}.jsonl"), items=len(items), digest=kind)
        for kind, items in rows.items()
    )
    return DatasetSpec(dataset="t", name="t", tasks=tasks, perplexity_path=tasks[2].path, digest="t")


def request_for(folder: Path, dataset: DatasetSpec, store: Path) -> EvaluationRequest:
    return EvaluationRequest(
        checkpoint=checkpoint_ref(folder, "one", shared=True),
        dataset=dataset,
        settings=SETTINGS,
        store_root=str(store),
        tasks_dir=str(TASKS),
    )


@pytest.mark.usefixtures("memory_measured_elsewhere")
def test_a_gguf_checkpoint_scores_as_its_original(tmp_path: Path, dataset: DatasetSpec) -> None:
    found: list[Evaluation] = []
    for folder in (save_tiny(tmp_path / "dense"), write_gguf_folder(tmp_path / "gguf")):
        outcome = evaluate(request_for(folder, dataset, tmp_path / "store"))
        assert outcome.error is None
        assert outcome.evaluation is not None
        found.append(outcome.evaluation)
    dense, gguf = found
    assert (dense.environment.runtime, gguf.environment.runtime) == ("transformers", "llama.cpp")
    for ours, theirs in zip(gguf.benchmarks, dense.benchmarks, strict=True):
        assert (ours.task, ours.items_digest) == (theirs.task, theirs.items_digest)
        assert ours.score.value == pytest.approx(theirs.score.value, abs=0.06)  # float16 attention may flip an item
    assert gguf.perplexity is not None
    assert dense.perplexity is not None
    assert gguf.perplexity.perplexity.value == pytest.approx(dense.perplexity.perplexity.value, rel=1e-3)
    assert gguf.latency.clock == "perf_counter"
    assert gguf.latency.ttft_ms.value < gguf.latency.request_ms.value


def test_the_key_depends_on_what_runs_the_checkpoint(tmp_path: Path, dataset: DatasetSpec) -> None:
    request = request_for(write_gguf_folder(tmp_path / "one"), dataset, tmp_path)
    before = evaluation_key(request, "cpu", 1)
    (tmp_path / "one" / "model.gguf").rename(tmp_path / "one" / "model.safetensors")
    assert evaluation_key(request, "cpu", 1) != before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel cannot reset the peak here")
def test_memory_of_a_gguf_file_is_its_pages_and_its_cache(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=258, hidden_size=512, intermediate_size=2048, num_hidden_layers=3, num_attention_heads=8
    )
    write_llama(LlamaForCausalLM(shape), tmp_path / "model.gguf", half=True)
    tiny_tokenizer().save_pretrained(tmp_path)
    probe = MemoryProbe(path=str(tmp_path), device="cpu", threads=1, settings=SETTINGS)
    measured = measure_memory(probe, 2)
    size = (tmp_path / "model.gguf").stat().st_size
    cache = 2 * 3 * 256 * 512 * 2  # keys and values, layers, cells, width, float16
    assert measured.weights_bytes == pytest.approx(size, rel=0.01)
    assert 0.95 * size < measured.peak_growth_bytes.value < 1.25 * (size + cache)
    assert measured.peak_growth_bytes.spread < 2_000_000
