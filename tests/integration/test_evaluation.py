"""Evaluation of a real trained model: stories260K, whose reference figures stand beside it in SOURCE.md."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import yaml

from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.evaluation.evaluate import evaluate
from agentic_compression.evaluation.harness import quiet_harness
from agentic_compression.evaluation.harness_tasks import benchmark_file, build_harness_task
from agentic_compression.evaluation.language_modelling import (
    encode_documents,
    perplexity_of,
    read_texts,
    score_documents,
)
from agentic_compression.evaluation.quality import score_tasks
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.records import DatasetSpec, DatasetTask, EvaluationSettings
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.conftest import SHARED

ROOT = Path(__file__).resolve().parents[2]
MODEL = SHARED / "models" / "stories260K"
STORIES = SHARED / "corpora" / "tinystories_sample.jsonl"
GSM8K = SHARED / "benchmarks" / "gsm8k"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models/stories260K is not on this machine")


@pytest.fixture(scope="module")
def stories() -> TransformersRuntime:
    torch.set_num_threads(1)
    return TransformersRuntime(MODEL)


@pytest.fixture(scope="module")
def multiple_choice(tmp_path_factory: pytest.TempPathFactory) -> DatasetTask:
    """Which word ends the sentence? The right one, and three from other stories."""
    generator = random.Random(5)
    sentences = [text.split(". ")[0].rstrip(".") for text in read_texts(str(STORIES)).values()]
    sentences = [sentence for sentence in sentences if 8 <= len(sentence.split()) <= 18 and sentence.isascii()][:50]
    rows = []
    for number, sentence in enumerate(sentences):
        start, end = sentence.rsplit(" ", 1)
        others = generator.sample([other.rsplit(" ", 1)[1] for other in sentences if other != sentence], 3)
        answer = generator.randrange(4)
        rows.append(
            {
                "id": f"s{number:02d}",
                "question": start,
                "choices": [*others[:answer], end, *others[answer:]],
                "answer": answer,
            }
        )
    assert len(rows) == 50
    path = tmp_path_factory.mktemp("items") / "mc.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetTask(name="endings", kind="multiple_choice", path=str(path), items=50, digest="endings")


def test_perplexity_is_in_line_with_the_published_figure(stories: TransformersRuntime) -> None:
    windows = encode_documents(stories, list(read_texts(str(STORIES)).values())[-100:])
    measured = perplexity_of(score_documents(stories, windows, 16), seed=0)
    # 3.771 on other held-out stories (SOURCE.md), 3.877 in another independent run on yet others. The middle of this
    # sample is written in another manner and gives 4.7; its last hundred stories are of the kind trained on.
    assert 3.6 < measured.perplexity.value < 3.95
    assert measured.perplexity.low < 3.771 < measured.perplexity.high
    exact = TransformersRuntime(MODEL).model.double()
    total = tokens = 0.0
    for window in windows[:10]:
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([window])).logits[0, :-1]
        total -= float(torch.log_softmax(logits, -1).gather(1, torch.tensor(window[1:])[:, None]).sum())
        tokens += len(window) - 1
    ours = perplexity_of(score_documents(stories, windows[:10], 4), seed=0)
    assert ours.perplexity.value == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_accuracy_equals_an_independent_computation(stories: TransformersRuntime, multiple_choice: DatasetTask) -> None:
    dataset = DatasetSpec(dataset="endings", name="endings", tasks=(multiple_choice,), digest="endings")
    (score,) = score_tasks(stories, dataset, EvaluationSettings(batch_size=16), str(ROOT / "configs" / "tasks"))
    expected = []
    for line in Path(multiple_choice.path).read_text().splitlines():
        row = json.loads(line)
        context = f"Question: {row['question']}\nAnswer:"
        likelihoods = [_likelihood(stories, context, f" {choice}") for choice in row["choices"]]
        expected.append(int(likelihoods.index(max(likelihoods)) == row["answer"]))
    assert list(score.outcomes) == expected
    assert score.score.value == pytest.approx(sum(expected) / 50)


def _likelihood(runtime: TransformersRuntime, context: str, continuation: str) -> float:
    whole = runtime.tokenizer(context + continuation)["input_ids"]
    start = len(runtime.tokenizer(context)["input_ids"])
    with torch.no_grad():
        logits = runtime.model(input_ids=torch.tensor([whole])).logits[0].double()
    return sum(float(torch.log_softmax(logits[place - 1], -1)[whole[place]]) for place in range(start, len(whole)))


def test_one_evaluation_from_end_to_end(multiple_choice: DatasetTask, tmp_path: Path) -> None:
    request = EvaluationRequest(
        checkpoint=checkpoint_ref(MODEL, "b", shared=True),
        dataset=DatasetSpec(
            dataset="endings", name="endings", tasks=(multiple_choice,), perplexity_path=str(STORIES), digest="endings"
        ),
        settings=EvaluationSettings(threads=1, runs=5, perplexity_tokens=3000),
        store_root=str(tmp_path),
        tasks_dir=str(ROOT / "configs" / "tasks"),
    )
    outcome = evaluate(request)
    assert outcome.error is None
    assert outcome.evaluation is not None
    objectives = outcome.evaluation.objectives
    assert 1e-3 < objectives.memory_gb < 0.02  # 1 MB of weights, plus loading and serving them
    assert 1 < objectives.latency_ms < 2000
    assert outcome.evaluation.memory.weights_bytes == pytest.approx(260_032 * 4, rel=0.01)
    assert outcome.evaluation.memory.peak_growth_bytes.spread < 2e6
    assert evaluate(request).cached


@pytest.fixture
def gsm8k(tmp_path: Path) -> DatasetTask:
    if not GSM8K.is_dir():
        pytest.skip("../shared/benchmarks/gsm8k is not on this machine")
    for split, count in (("train", 40), ("test", 12)):
        lines = (GSM8K / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DatasetTask(
        name="gsm8k",
        kind="benchmark",
        path=str(tmp_path / "test.jsonl"),
        items=12,
        digest="gsm8k",
        lm_eval_task="gsm8k",
        split_files={split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")},
    )


def test_a_local_benchmark_is_asked_as_the_harness_asks_it(
    gsm8k: DatasetTask, stories: TransformersRuntime, tmp_path: Path
) -> None:
    from lm_eval.tasks import TaskManager

    file = benchmark_file("gsm8k")
    definition = yaml.safe_load(file.read_text())
    own: Any = TaskManager(include_defaults=False).load(
        [
            {
                **definition,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": gsm8k.split_files, "cache_dir": str(tmp_path / "cache")},
            }
        ]
    )["tasks"]["gsm8k"]
    own.set_fewshot_seed(1234)
    with quiet_harness():
        ours = build_harness_task(gsm8k, str(ROOT / "configs" / "tasks"), stories)
        prompts = [ours.fewshot_context(doc, ours.config.num_fewshot) for doc in ours.eval_docs]
    expected = [own.fewshot_context(doc, own.config.num_fewshot) for doc in own.eval_docs]
    template = jinja2.Template(definition["doc_to_text"])
    assert [ours.doc_to_text(doc) for doc in ours.eval_docs] == [template.render(**doc) for doc in own.eval_docs]
    assert prompts == expected
    assert prompts[0].count("Question:") == 6  # five examples and the question
    assert ours.config.filter_list == own.config.filter_list
    assert ours.config.generation_kwargs == own.config.generation_kwargs
