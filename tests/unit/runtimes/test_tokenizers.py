"""llama.cpp's own tokenizer, which serves, against the folder's, which measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.checkpoints.gguf_file import write_gguf
from agentic_compression.checkpoints.gguf_plan import GgufPlan
from agentic_compression.checkpoints.llama_library import LlamaModel
from agentic_compression.demo import __file__ as demo_file
from tests.unit.methods.tiny_models import STORIES

DEMO = Path(demo_file).parent / "model"
TEXTS = [
    "",
    " ",
    "   three spaces before",
    "and behind   ",
    "Once upon a time, there was a little girl named Lily.",
    "tabs\tand\nnew\n\nlines\r\n",
    "12345 3.14159 1,000,000 0x1F",
    "UPPER lower MiXeD don't it's we'll",
    "ünïcödé çà œuvre ß",
    "日本語のテキスト 한국어 العربية",
    "emoji 🙂👩‍👩‍👧 ✓",
    "e\u0301 combining, \u00a0 no-break, \u200b zero width",
    "punctuation!?…—«»()[]{}<>|\\/@#$%^&*~`",
    "def f(x):\n    return x ** 2  # comment\n",
]


@pytest.mark.parametrize("folder", [DEMO, STORIES], ids=["demo", "stories260K"])
def test_both_tokenizers_give_the_same_ids(folder: Path, tmp_path: Path) -> None:
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260K is not on this machine")
    loaded = load_checkpoint(folder)
    write_gguf(loaded.model, loaded.tokenizer, tmp_path / "model.gguf", GgufPlan(file_type="F16"))
    with LlamaModel(tmp_path / "model.gguf", vocab_only=True) as model:
        for text in TEXTS:
            plain = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
            assert model.tokenize(text) == plain, text
            assert model.tokenize(text, add_special=True) == loaded.tokenizer(text)["input_ids"], text
            if text and not text.startswith(" "):
                decoded = loaded.tokenizer.decode(plain, clean_up_tokenization_spaces=False)
                assert model.detokenize(plain).lstrip(" ") == decoded.lstrip(" "), text
        assert model.bos == loaded.tokenizer.bos_token_id
        assert model.eos == loaded.tokenizer.eos_token_id
        assert model.vocabulary == loaded.model.config.vocab_size
