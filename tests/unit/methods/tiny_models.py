"""Tiny random models with a byte tokenizer, built in the test, and the real trained one where it is there."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHARED = Path(__file__).resolve().parents[4] / "shared"
STORIES = SHARED / "models" / "stories260K"
STORIES_TEXT = SHARED / "corpora" / "tinystories_sample.jsonl"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ``<s>`` first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_model(kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """``llama`` (hidden 64, MLP 128), ``tied``, ``biases`` (Qwen2) or ``odd`` (MLP 172, not divisible by 32)."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 258,
        "hidden_size": 64,
        "intermediate_size": 172 if kind == "odd" else 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": kind == "tied",
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model: Any
    if kind == "biases":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    for parameter in model.parameters():  # not model.to(dtype), which would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def save_tiny(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    """A base model folder as transformers writes it."""
    tiny_model(kind, dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_text(path: Path, documents: int = 24, length: int = 60) -> Path:
    """Calibration text of random words."""
    rng = random.Random(0)
    words = ["cat", "dog", "tree", "house", "red", "green", "runs", "sleeps", "the", "a"]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=length // 4))}) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")
    return path


def logits(model: Any, rows: int = 2, tokens: int = 24) -> torch.Tensor:
    """Logits of a fixed random input."""
    ids = torch.randint(2, 250, (rows, tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


def built_model(kind: str, heads: int = 4, kv_heads: int = 2, blocks: int = 2, **others: Any) -> Any:
    """A random model of any architecture transformers knows by this ``model_type``: hidden 48, MLP 96, heads of 8.

    Biases and norms are random too, so that a bias left behind or a norm cut wrongly shows.
    """
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 258,
        "hidden_size": 48,
        "intermediate_size": 96,
        "ffn_dim": 96,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    without = {"opt": ("head_dim", "intermediate_size"), "gpt2": ("intermediate_size", "head_dim", "ffn_dim")}
    for name in without.get(kind, ("ffn_dim",)):
        del shape[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | others)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    return model.eval()


def random_windows(count: int = 12, tokens: int = 40) -> list[torch.Tensor]:
    """Calibration windows of random tokens."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 258, (1, tokens), generator=generator) for _ in range(count)]


def generated(model: Any, use_cache: bool) -> torch.Tensor:
    """Eight tokens, each the likeliest, after a fixed prompt."""
    prompt = torch.randint(2, 250, (1, 6), generator=torch.Generator().manual_seed(5))
    result: torch.Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
    )
    return result
