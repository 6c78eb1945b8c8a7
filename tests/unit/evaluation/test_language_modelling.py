from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agentic_compression.errors import CompressionError, DatasetError
from agentic_compression.evaluation.language_modelling import (
    encode_documents,
    perplexity_of,
    read_texts,
    score_documents,
    within_budget,
)
from agentic_compression.runtimes import DocumentScore
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.evaluation.conftest import ids_of


def test_perplexity_equals_a_float64_reference(
    tiny: TransformersRuntime, tiny_path: Path, sentences: list[str]
) -> None:
    exact = TransformersRuntime(tiny_path).model.double()
    nll, tokens, hits = 0.0, 0, 0
    for text in sentences:
        ids = ids_of(tiny, text)[:96]
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([ids])).logits[0, :-1]
        targets = torch.tensor(ids[1:])
        nll += -float(torch.log_softmax(logits, dim=-1)[torch.arange(len(targets)), targets].sum())
        hits += int((logits.argmax(-1) == targets).sum())
        tokens += len(targets)
    for batch_size in (1, 7, 64):
        scores = score_documents(tiny, encode_documents(tiny, sentences), batch_size)
        measured = perplexity_of(scores, seed=0)
        assert measured.perplexity.value == pytest.approx(math.exp(nll / tokens), rel=1e-5)
        assert (measured.tokens, measured.documents) == (tokens, len(sentences))
        assert measured.top1_accuracy is not None
        assert measured.top1_accuracy.value == pytest.approx(hits / tokens)
        assert measured.perplexity.low < measured.perplexity.value < measured.perplexity.high


def test_scores_do_not_depend_on_what_shares_the_batch(tiny: TransformersRuntime, sentences: list[str]) -> None:
    windows = encode_documents(tiny, sentences)
    together = score_documents(tiny, windows, 64)
    alone = [score_documents(tiny, [window], 1)[0] for window in windows]
    assert [score.nll for score in together] == pytest.approx([score.nll for score in alone], rel=1e-5)
    assert [score.hits for score in together] == [score.hits for score in alone]


def test_documents_begin_with_bos_once_and_are_cut_at_the_context(tiny: TransformersRuntime) -> None:
    long, short = encode_documents(tiny, ["w1 " * 200, "w1"])
    assert len(long) == 96
    assert short == [1, tiny.tokenizer.convert_tokens_to_ids("w1")]
    assert encode_documents(tiny, [""]) == []


def test_budget_takes_whole_documents_until_it_is_reached() -> None:
    windows = [[1] * 11, [1] * 6, [1] * 9]
    assert within_budget(windows, 11) == windows[:2]
    assert within_budget(windows, 1) == windows[:1]
    assert within_budget(windows, 1000) == windows


def test_nan_is_an_error_not_a_number(tiny_path: Path, sentences: list[str]) -> None:
    broken = TransformersRuntime(tiny_path)
    broken.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(CompressionError, match="likelihoods must be finite"):
        score_documents(broken, encode_documents(broken, sentences), 8)


def test_read_texts_limits_by_a_seeded_shuffle(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n:02d}", "text": f"text {n}"}) + "\n" for n in range(20)))
    few = read_texts(str(path), limit=5, seed=1)
    assert list(few) == sorted(few)
    assert few == read_texts(str(path), limit=5, seed=1)
    assert few != read_texts(str(path), limit=5, seed=2)
    assert len(read_texts(str(path))) == 20


def test_no_text_is_lost_to_another_with_its_id(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "one"},
        {"id": "a", "text": "two"},
        {"id": None, "text": "three"},
        {"id": "00000002", "text": "four"},
        {"id": "a#2", "text": "five"},
        {"text": "six"},
        {"id": None, "text": "seven"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = read_texts(str(path))
    assert sorted(texts.values()) == sorted(str(row["text"]) for row in rows)
    assert texts["a"] == "one"


def test_perplexity_of_a_broken_model_is_a_number() -> None:
    found = perplexity_of([DocumentScore(5e6, (0, 0, 1)), DocumentScore(3.0, (1, 1)), DocumentScore(900.0, (0,))], 0)
    for number in (found.perplexity.value, found.perplexity.low, found.perplexity.high, found.perplexity.spread):
        assert math.isfinite(number)
    assert found.perplexity.value > 1e100


@pytest.mark.parametrize(
    "content", ["", "not json\n", '{"other": 1}\n', '{"text": null}\n', '{"text": 3}\n', "[1]\n", '"text"\n']
)
def test_read_texts_refuses_what_holds_no_text(tmp_path: Path, content: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=r"texts\.jsonl"):
        read_texts(str(path))
