"""The shipped model answers its held-out tasks, and reacts to rounding as a trained model does.

Log-likelihoods are computed here by hand, one forward pass per choice set, independently of the harness and of
``agentic_compression.demo.scoring``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentic_compression import demo

ITEMS = 150


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:ITEMS]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.model_path())


def load(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=dtype).eval()


def round_weights(model: Any, bits: int, group: int = 128) -> Any:
    """Symmetric rounding to nearest of every linear layer but the head, in place."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            groups = module.weight.data.double().reshape(module.out_features, -1, group)
            highest = 2 ** (bits - 1) - 1
            scale = groups.abs().amax(-1, keepdim=True) / highest
            rounded = (groups / scale).round().clamp(-highest - 1, highest) * scale
            module.weight.data = rounded.reshape(module.weight.shape).float()
    return model


@torch.inference_mode()
def choice_accuracy(model: Any, tokenizer: Any) -> float:
    correct = 0
    rows = read(demo.multiple_choice_path())
    for row in rows:
        prompt = [tokenizer.bos_token_id, *tokenizer(f"Question: {row['question']}\nAnswer:").input_ids[1:]]
        endings = [tokenizer(f" {choice}", add_special_tokens=False).input_ids for choice in row["choices"]]
        width = max(map(len, endings))
        ids = torch.tensor([prompt + ending + [0] * (width - len(ending)) for ending in endings])
        log_probabilities = model(input_ids=ids).logits.float().log_softmax(-1)
        scores = [
            sum(float(log_probabilities[k, len(prompt) - 1 + t, token]) for t, token in enumerate(ending))
            for k, ending in enumerate(endings)
        ]
        correct += scores.index(max(scores)) == row["answer"]
    return correct / len(rows)


@torch.inference_mode()
def generation_accuracy(model: Any, tokenizer: Any) -> float:
    correct = 0
    rows = read(demo.generation_path())
    for start in range(0, len(rows), 50):
        chunk = rows[start : start + 50]
        prompts = [f"Question: {row['question']}\nAnswer:" for row in chunk]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=12, do_sample=False)
        texts = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        correct += sum(text.strip() == row["answer"] for text, row in zip(texts, chunk, strict=True))
    return correct / len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_out_accuracy(tokenizer: Any, dtype: torch.dtype) -> None:
    model = load(dtype)
    assert choice_accuracy(model, tokenizer) >= 0.90
    assert generation_accuracy(model, tokenizer) >= 0.90


def test_reaction_to_rounding(tokenizer: Any) -> None:
    scores = {
        bits: (choice_accuracy(model, tokenizer), generation_accuracy(model, tokenizer))
        for bits, model in ((16, load()), (8, round_weights(load(), 8)), (3, round_weights(load(), 3)))
    }
    mean = {bits: sum(pair) / 2 for bits, pair in scores.items()}
    assert abs(mean[8] - mean[16]) <= 0.01
    assert mean[16] - mean[3] >= 0.05
