"""Windows of calibration text: what is drawn, how documents are joined, and what special tokens they get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from agentic_compression.errors import CompressionError
from agentic_compression.methods.calibration import calibration_tokens, packed_windows, training_tokens
from tests.unit.methods.tiny_models import tiny_tokenizer, write_text

BOS, EOS = 0, 1


def without_bos() -> PreTrainedTokenizerFast:
    """The byte tokenizer of models that begin with no token of their own, as Qwen's."""
    inner = tiny_tokenizer().backend_tokenizer
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def with_eos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts both around a text itself."""
    inner = tiny_tokenizer().backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def test_documents_are_drawn_with_the_seed_and_begin_with_the_tokenizers_token(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.jsonl")
    first = calibration_tokens(path, tiny_tokenizer(), 8, 40, seed=0)
    assert [window.tolist() for window in first] == [
        window.tolist() for window in calibration_tokens(path, tiny_tokenizer(), 8, 40, seed=0)
    ]
    assert [w.tolist() for w in first] != [w.tolist() for w in calibration_tokens(path, tiny_tokenizer(), 8, 40, 1)]
    assert len(first) == 8
    assert all(window[0, 0] == BOS and window.shape[1] <= 40 for window in first)
    assert not any(BOS in window for window in calibration_tokens(path, without_bos(), 8, 40, seed=0))


def test_training_windows_hold_all_documents(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.jsonl", documents=200)
    assert len(calibration_tokens(path, tiny_tokenizer(), 128, 40, seed=0)) == 128
    assert len(training_tokens(path, tiny_tokenizer(), 40, seed=0)) == 200


@pytest.mark.parametrize("make", [tiny_tokenizer, without_bos, with_eos])
@given(texts=st.lists(st.text("abc xyz", max_size=30), max_size=12), tokens=st.integers(8, 40))
@settings(deadline=None, max_examples=25)
def test_packed_windows_are_equally_long_and_lose_nothing_but_the_end(
    make: object, texts: list[str], tokens: int
) -> None:
    assert callable(make)
    tokenizer = make()
    windows = list(packed_windows(texts, tokenizer, tokens))
    assert {tuple(window.shape) for window in windows} <= {(1, tokens)}
    expected: list[int] = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        expected += [token for token in ids if token not in (BOS, EOS)] + [EOS] * bool(ids)
    made = [int(token) for window in windows for token in window[0] if token != BOS]
    assert made == expected[: len(made)]
    begins = make is not without_bos
    assert all((window[0, 0] == BOS) == begins for window in windows)
    if not begins:
        assert not any(BOS in window for window in windows)


def test_two_short_documents_in_one_window() -> None:
    first, *_ = packed_windows(["ab", "cd", "efgh"], tiny_tokenizer(), 8)
    a, b, c, d = (tiny_tokenizer()(letter)["input_ids"][1] for letter in "abcd")
    assert first.tolist() == [[BOS, a, b, EOS, BOS, c, d, EOS]]


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps({"text": "hello " * 20}) + "\n")
    with pytest.raises(CompressionError, match="needs at least 256 tokens, got 121 in 1 windows from 1 documents"):
        calibration_tokens(path, tiny_tokenizer(), 8, 500, seed=0)
    path = write_text(tmp_path / "text.jsonl", documents=4)
    with pytest.raises(CompressionError, match="got 0 in 0 windows of 4000 tokens"):
        calibration_tokens(path, tiny_tokenizer(), 8, 4000, seed=0, packing="packed")
