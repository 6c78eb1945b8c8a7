"""Tokenizers of every kind through llama.cpp: found by behaviour, refused when nothing behaves alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from agentic_compression.checkpoints.gguf_probes import PROBES, compare_tokens
from agentic_compression.checkpoints.gguf_tokenizer import (
    _PRE_TOKENIZERS,
    TokenizerForm,
    _forms,
    _write_vocabulary,
    fitting_form,
)
from agentic_compression.checkpoints.llama_library import LlamaModel
from agentic_compression.errors import CompressionError
from tests.unit.methods.tiny_models import STORIES, tiny_tokenizer

pytest.importorskip("gguf", reason="it writes the files")
pytest.importorskip("xllamacpp", reason="llama.cpp reads them")

# The published pattern of Llama 3's tokenizer.json; Qwen 2's differs in splitting digits one by one.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")


def byte_level(pre: Any, normalizer: Any = None, whole_words: bool = False) -> PreTrainedTokenizerFast:
    """Trained on the probes themselves, so that its merges reach across everything that is not split."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(list(PROBES) * 3, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt_2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def sentencepiece(normalizer: Any = None, pre: Any = None) -> PreTrainedTokenizerFast:
    """BPE on characters with a token for every byte, as conversions of SentencePiece models are."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(list(PROBES[3:26]), trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (lambda: byte_level(gpt_2()), "gpt-2"),
        (lambda: byte_level(split(LLAMA_3), whole_words=True), "llama-bpe"),
        (lambda: byte_level(split(LLAMA_3)), "smaug-bpe"),
        (lambda: byte_level(split(QWEN_2), normalizers.NFC()), "qwen2"),
        (
            lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt_2()])),
            "smollm",
        ),
        (lambda: sentencepiece(LEGACY), True),
        (lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)), True),
        (lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="never", split=False)), False),
    ],
)
def test_kind_is_found_by_behaviour(tokenizer: Any, expected: str | bool, tmp_path: Path) -> None:
    made = tokenizer()
    texts = ["A text of one's own: 12345 Äpfel\n\n\tend  ", "x = [1,2]; // “quoted”"]
    form = fitting_form(made, 1000, [], texts)
    assert form.variant == expected
    _write_vocabulary(tmp_path / "v.gguf", form)
    with LlamaModel(tmp_path / "v.gguf", vocab_only=True) as model:
        for text in texts:
            assert model.tokenize(text, add_special=True) == made(text)["input_ids"]
        assert model.vocabulary == 1000
        assert (model.bos, model.eos) == (made.bos_token_id, made.eos_token_id)


def test_every_name_tried_is_known_to_llama_cpp(tmp_path: Path) -> None:
    seen = set()
    for form in _forms(tiny_tokenizer(), 258, []):
        _write_vocabulary(tmp_path / "v.gguf", form)
        with LlamaModel(tmp_path / "v.gguf", vocab_only=True) as model:
            seen.add(model.metadata("tokenizer.ggml.pre"))
    assert seen == set(_PRE_TOKENIZERS)


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: byte_level(gpt_2(), normalizers.Lowercase()),
        lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    ],
)
def test_tokenizer_that_llama_cpp_cannot_follow_is_refused_with_the_ids(tokenizer: Any) -> None:
    with pytest.raises(CompressionError, match=r"ids differ on \d+ of 46 texts, first on .* expected, .* got"):
        fitting_form(tokenizer(), 1000, [], ())


@pytest.mark.parametrize("model", [models.Unigram([("a", -1.0)]), models.WordLevel({"a": 0}, unk_token="a")])
def test_other_kinds_are_refused(model: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="a")
    with pytest.raises(CompressionError, match=r"gguf writes byte-level BPE and SentencePiece BPE .* use rtn or gptq"):
        fitting_form(tokenizer, 10, [], ())


def test_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(CompressionError, match="the model has 100 token embeddings, the tokenizer uses id 257"):
        fitting_form(tiny_tokenizer(), 100, [], ())


def test_tokenizer_that_adds_other_tokens_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> </s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    with pytest.raises(CompressionError, match=r"puts \[0, 1\] and \[\]"):
        fitting_form(tokenizer, 258, [], ())


def test_model_without_an_end_token_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<s>")
    with pytest.raises(CompressionError, match="end-of-text token"):
        fitting_form(tokenizer, 258, [], ())


def written(tmp_path: Path, tokenizer: Any, stops: list[int]) -> tuple[TokenizerForm, Path]:
    form = fitting_form(tokenizer, 300, stops, ())
    _write_vocabulary(tmp_path / "v.gguf", form)
    return form, tmp_path / "v.gguf"


def test_special_tokens_padding_and_template_are_written(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    form, path = written(tmp_path, tokenizer, [1, 7])
    assert form.special == {"bos": 0, "eos": 1, "eot": 7}
    assert form.tokens[258] == "<tool>"
    assert form.tokens[299] == "[PAD299]"
    assert [form.token_types[place] for place in (0, 50, 258, 299)] == [3, 1, 4, 5]
    with LlamaModel(path, vocab_only=True) as model:
        assert model.adds_bos
        assert model.metadata("tokenizer.chat_template") == "{{ messages[0]['content'] }}"
        assert model.metadata("tokenizer.ggml.eot_token_id") == "7"
        assert model.tokenize("a<tool>b", add_special=True) == tokenizer("a<tool>b")["input_ids"]
        assert model.tokenize("a</s>", parse_special=True)[-1] == 1


def test_differences_in_rare_texts_are_noted_not_hidden(tmp_path: Path) -> None:
    composing = byte_level(split(QWEN_2), normalizers.NFC())
    _write_vocabulary(tmp_path / "v.gguf", fitting_form(composing, 1000, [], ()))
    notes = compare_tokens(tmp_path / "v.gguf", composing, ()).notes
    assert len(notes) == 1
    assert "compose Unicode" in notes[0]
    metaspace = sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    _write_vocabulary(tmp_path / "w.gguf", fitting_form(metaspace, 1000, [], ()))
    notes = compare_tokens(tmp_path / "w.gguf", metaspace, ()).notes
    assert ["start of a text" in notes[0], "special tokens" in notes[1]] == [True, True]


def test_a_wrong_file_is_told_from_a_right_one(tmp_path: Path) -> None:
    tokenizer = byte_level(split(LLAMA_3))
    by_name = {form.variant: form for form in _forms(tokenizer, 1000, [])}
    _write_vocabulary(tmp_path / "v.gguf", by_name["gpt-2"])
    result = compare_tokens(tmp_path / "v.gguf", tokenizer, ())
    assert result.disagreements
    first = result.disagreements[0]
    assert list(first.expected) == tokenizer(first.text)["input_ids"] != list(first.found)


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the trained model of the shared folder")
def test_trained_sentencepiece_tokenizer() -> None:
    from transformers import AutoTokenizer

    form = fitting_form(AutoTokenizer.from_pretrained(STORIES), 512, [2], ("Lily's dog ran 12 times…",))
    assert (form.kind, form.variant, form.adds) == ("llama", True, (True, False))
    assert form.scores[form.tokens.index("▁t")] == 0
