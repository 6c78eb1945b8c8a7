from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from agentic_compression.errors import UnavailableError
from agentic_compression.evaluation import evaluate as module
from agentic_compression.evaluation.environment import describe_environment, resolve_device, resolve_threads
from agentic_compression.evaluation.evaluate import evaluate
from agentic_compression.evaluation.quality import choose_items
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.store import evaluation_key
from agentic_compression.records import (
    CheckpointRef,
    DatasetSpec,
    DatasetTask,
    EvaluationSettings,
)
from agentic_compression.storage import folder_bytes

TASKS = Path(__file__).resolve().parents[3] / "configs" / "tasks"


pytestmark = pytest.mark.usefixtures("memory_measured_elsewhere")


@pytest.fixture
def request_of_tiny(tiny_path: Path, tmp_path: Path, sentences: list[str]) -> EvaluationRequest:
    choices = ["w1", "w2 w3", "w4"]
    files = {
        "mc": [{"id": f"m{n}", "question": f"w{n} w{n + 1}", "choices": choices, "answer": n % 3} for n in range(12)],
        "gen": [{"id": f"g{n}", "question": f"w{n}", "answer": f"w{n + 1} w3"} for n in range(7)],
        "text": [{"id": f"t{n}", "text": text} for n, text in enumerate(sentences)],
    }  # fmt: skip
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {"mc": "multiple_choice", "gen": "generation", "text": "text"}
    tasks = tuple(
        DatasetTask(name=name, kind=kinds[name], path=str(tmp_path / f"{name}.jsonl"), items=len(rows), digest=name)
        for name, rows in files.items()
    )
    return EvaluationRequest(
        checkpoint=CheckpointRef(
            path=str(tiny_path), digest="tiny", size_bytes=folder_bytes(tiny_path), strategy_key="baseline"
        ),
        dataset=DatasetSpec(
            dataset="test", name="test", tasks=tasks, perplexity_path=str(tmp_path / "text.jsonl"), digest="all"
        ),
        settings=EvaluationSettings(
            prompt_tokens=16, new_tokens=4, runs=3, warmup_runs=1, threads=1, batch_size=5, perplexity_tokens=400
        ),
        store_root=str(tmp_path / "store"),
        tasks_dir=str(TASKS),
    )


def test_everything_is_measured_and_the_same_twice(request_of_tiny: EvaluationRequest) -> None:
    seen: set[str] = set()
    first = evaluate(request_of_tiny, lambda what, done, total: seen.add(what))
    again = evaluate(request_of_tiny.model_copy(update={"reuse": False}))
    assert first.error is None
    assert first.evaluation is not None
    assert again.evaluation is not None
    assert {"latency", "items", "perplexity"} <= seen
    assert [score.task for score in first.evaluation.benchmarks] == ["mc", "gen", "text"]
    assert [len(score.outcomes) for score in first.evaluation.benchmarks[:2]] == [12, 7]
    assert first.evaluation.benchmarks == again.evaluation.benchmarks
    assert first.evaluation.perplexity == again.evaluation.perplexity
    values = [score.score.value for score in first.evaluation.benchmarks]
    assert first.evaluation.accuracy.value == pytest.approx(sum(values) / 3)
    assert first.evaluation.objectives.co2_grams > 0
    assert first.evaluation.energy.co2_grams_per_1000_requests.value == pytest.approx(
        first.evaluation.energy.joules_per_request.value * 1000 / 3.6e6 * first.evaluation.energy.grid_grams_per_kwh
    )
    assert first.evaluation.environment.runtime == "transformers"
    assert first.evaluation.energy.source in {"measured", "estimated"}
    assert first.joules > 0


def test_a_stored_result_is_read_back_and_a_damaged_one_is_measured_again(request_of_tiny: EvaluationRequest) -> None:
    first, second = evaluate(request_of_tiny), evaluate(request_of_tiny)
    assert (first.cached, second.cached) == (False, True)
    assert second.evaluation == first.evaluation
    assert second.joules == 0
    (stored,) = Path(request_of_tiny.store_root).glob("*.json")
    stored.write_text(stored.read_text()[:100])
    third = evaluate(request_of_tiny)
    assert (third.status, third.cached) == ("succeeded", False)
    assert evaluate(request_of_tiny).cached


def test_key_depends_on_content_not_on_paths(request_of_tiny: EvaluationRequest) -> None:
    key = evaluation_key(request_of_tiny, "cpu", 1)
    other = request_of_tiny.model_copy(update={"store_root": "/elsewhere"})
    assert evaluation_key(other, "cpu", 1) == key
    moved = request_of_tiny.checkpoint.model_copy(update={"path": "/moved"})
    assert evaluation_key(request_of_tiny.model_copy(update={"checkpoint": moved}), "cpu", 1) == key
    changed = request_of_tiny.checkpoint.model_copy(update={"digest": "changed"})
    settings = request_of_tiny.settings.model_copy(update={"seed": 9})
    for update in ({"checkpoint": changed}, {"settings": settings}, {"grid_country": "FRA"}):
        assert evaluation_key(request_of_tiny.model_copy(update=update), "cpu", 1) != key
    assert evaluation_key(request_of_tiny, "cpu", 2) != key
    assert evaluation_key(request_of_tiny, "cuda:0", 1) != key


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "lm-eval"])
def test_key_depends_on_every_library_whose_version_is_compared(
    request_of_tiny: EvaluationRequest, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a result from before an upgrade is read for ever, and excluded for its environment for ever."""
    key = evaluation_key(request_of_tiny, "cpu", 1)
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == library else installed(name))
    assert evaluation_key(request_of_tiny, "cpu", 1) != key


def test_a_broken_model_is_a_failed_outcome(
    request_of_tiny: EvaluationRequest, tiny_path: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_path, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    checkpoint = request_of_tiny.checkpoint.model_copy(update={"path": str(broken), "digest": "broken"})
    outcome = evaluate(request_of_tiny.model_copy(update={"checkpoint": checkpoint}))
    assert outcome.status == "failed"
    assert "logits must be finite" in (outcome.error or "")
    assert not Path(request_of_tiny.store_root).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks_dir": "/nowhere"}, "tasks_dir must be the folder"),
        ({"grid_country": "XXX"}, "no grid factor"),
    ],
)
def test_wrong_requests_fail_with_a_reason(
    request_of_tiny: EvaluationRequest, change: dict[str, str], message: str
) -> None:
    outcome = evaluate(request_of_tiny.model_copy(update=change))
    assert outcome.status == "failed"
    assert message in (outcome.error or "")


def test_unreadable_items_fail_with_the_file(request_of_tiny: EvaluationRequest) -> None:
    Path(request_of_tiny.dataset.tasks[0].path).write_text('{"id": "a", "question": "w1"}\n')
    outcome = evaluate(request_of_tiny)
    assert outcome.status == "failed"
    assert "mc" in (outcome.error or "")


def test_a_folder_smaller_than_its_record_is_refused(request_of_tiny: EvaluationRequest) -> None:
    checkpoint = request_of_tiny.checkpoint.model_copy(update={"size_bytes": 10**9})
    outcome = evaluate(request_of_tiny.model_copy(update={"checkpoint": checkpoint}))
    assert outcome.status == "failed"
    assert "must hold the 1,000,000,000 bytes" in (outcome.error or "")


def test_running_out_of_memory_propagates(request_of_tiny: EvaluationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(module, "open_runtime", run_out)
    with pytest.raises(MemoryError):
        evaluate(request_of_tiny)


def test_limit_takes_the_first_of_a_seeded_shuffle() -> None:
    assert choose_items(5, None, 0) == choose_items(5, 9, 0) == [0, 1, 2, 3, 4]
    few = choose_items(100, 10, 1)
    assert few == sorted(few)
    assert few == choose_items(100, 10, 1)
    assert few != choose_items(100, 10, 2)
    assert set(few) < set(choose_items(100, 20, 1))


def test_environment_names_device_threads_and_versions() -> None:
    environment = describe_environment("cpu", 2)
    assert environment.device == "cpu"
    assert environment.threads == 2
    assert {"torch", "transformers", "lm-eval"} <= set(environment.packages)
    assert environment.memory_total_gb > 0.1
    assert resolve_threads(EvaluationSettings(threads=3)) == 3
    assert resolve_threads(EvaluationSettings()) == max(1, environment.cores - 1)


def test_a_missing_gpu_is_said_so() -> None:
    import torch

    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight GPUs")
    with pytest.raises(UnavailableError, match="cuda:7"):
        resolve_device("cuda:7")
    assert resolve_device("cpu") == "cpu"
