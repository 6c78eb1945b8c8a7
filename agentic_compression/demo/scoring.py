"""Scores a causal language model on the demo tasks directly, without an evaluation harness.

Used by the training and sensitivity scripts and by the tests as an independent check on the harness. Prompts get
``<s>`` in front and nothing else; a choice's score is the summed log-likelihood of its tokens; generation is
greedy, stops at ``</s>`` or a newline and must equal the answer after stripping blanks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from agentic_compression.demo.corpus import PROMPT_TEMPLATE

MAX_NEW_TOKENS = 12
"""Longest generated answer, in tokens."""


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Reads a JSON-lines file.

    Args:
        path: The file.
        limit: Keep only this many rows from the start.

    Returns:
        The rows.
    """
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: texts may hold other line separators
    return [json.loads(line) for line in lines[:limit] if line]


@torch.inference_mode()
def summed_log_likelihoods(
    model: Any, sequences: Sequence[Sequence[int]], prefixes: Sequence[int], batch_size: int = 64
) -> list[float]:
    """Sums the log-likelihood of each sequence's tokens behind its prefix.

    Args:
        model: Causal language model, called with ``input_ids`` (batch, tokens).
        sequences: Token ids, prefix included.
        prefixes: How many leading tokens of each sequence are given, at least 1.
        batch_size: Sequences per forward pass.

    Returns:
        One sum per sequence, in nats.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        width = len(sequences[chunk[-1]])
        ids = torch.zeros(len(chunk), width, dtype=torch.long)
        counted = torch.zeros(len(chunk), width - 1, dtype=torch.float32)
        for row, index in enumerate(chunk):
            sequence = sequences[index]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            counted[row, prefixes[index] - 1 : len(sequence) - 1] = 1.0
        ids = ids.to(model.device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].cpu()
        for row, index in enumerate(chunk):
            scores[index] = float((picked[row] * counted[row]).sum())
    return scores


def multiple_choice_correct(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Answers multiple-choice items by the highest summed log-likelihood.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        rows: Items with ``question``, ``choices``, ``answer``.

    Returns:
        Whether each item is answered correctly.
    """
    sequences, prefixes = [], []
    for row in rows:
        prompt = PROMPT_TEMPLATE.format(question=row["question"])
        length = len(tokenizer(prompt)["input_ids"])
        for choice in row["choices"]:
            sequences.append(tokenizer(f"{prompt} {choice}")["input_ids"])
            prefixes.append(length)
    scores = summed_log_likelihoods(model, sequences, prefixes)
    correct, position = [], 0
    for row in rows:
        count = len(row["choices"])
        here = scores[position : position + count]
        correct.append(here.index(max(here)) == row["answer"])
        position += count
    return correct


@torch.inference_mode()
def generation_correct(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], batch_size: int = 100
) -> list[bool]:
    """Answers generation items greedily.

    Args:
        model: Causal language model with ``generate``.
        tokenizer: Its tokenizer, padding on the left.
        rows: Items with ``question`` and ``answer``.
        batch_size: Items per call of ``generate``.

    Returns:
        Whether each answer, up to the first newline and stripped, equals the expected one.
    """
    prompts = [PROMPT_TEMPLATE.format(question=row["question"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    correct = [False] * len(rows)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = tokenizer([prompts[i] for i in chunk], return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chunk, texts, strict=True):
            correct[index] = text.split("\n")[0].strip() == rows[index]["answer"]
    return correct


def perplexity(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> float:
    """Computes the token perplexity of documents, each read from ``<s>`` to ``</s>``.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        rows: Documents with ``text``.

    Returns:
        exp(mean negative log-likelihood per predicted token, ``</s>`` included).
    """
    sequences = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    scores = summed_log_likelihoods(model, sequences, [1] * len(sequences))
    return math.exp(-sum(scores) / sum(len(s) - 1 for s in sequences))


__all__ = [
    "MAX_NEW_TOKENS",
    "generation_correct",
    "multiple_choice_correct",
    "perplexity",
    "read_rows",
    "summed_log_likelihoods",
]
