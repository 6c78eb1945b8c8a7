"""A tiny random Llama with a tokenizer of its own, built once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentic_compression.runtimes.transformers_runtime import TransformersRuntime

WORDS = [f"w{number}" for number in range(60)] + ["Question", "Answer", ":", "?"]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: 2 layers, hidden size 32, BOS put before every text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    names = ["<unk>", "<s>", "</s>", "\n", *WORDS]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=96
    )
    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> TransformersRuntime:
    import torch

    torch.set_num_threads(1)
    return TransformersRuntime(tiny_path)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    import random

    generator = random.Random(3)
    return [" ".join(generator.choices(WORDS[:60], k=generator.randint(1, 70))) for _ in range(25)] + ["w1 " * 200]


def ids_of(runtime: TransformersRuntime, text: str) -> list[int]:
    encoded: Any = runtime.tokenizer(text)["input_ids"]
    return list(encoded)


@pytest.fixture
def memory_measured_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory has tests of its own; elsewhere a fresh interpreter a test would only cost time."""
    from agentic_compression.evaluation import memory_in_waiting
    from agentic_compression.evaluation.memory import MemoryProbe, Observation

    def planted(probe: MemoryProbe, repeats: int) -> list[Observation]:
        return [Observation(growth=10**6, peak_rss=10**8, weights=10**5)] * repeats

    monkeypatch.setattr(memory_in_waiting, "observe_memory", planted)
    monkeypatch.setattr(memory_in_waiting, "may_fork", lambda: False)
