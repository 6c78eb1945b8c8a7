from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from agentic_compression.runtimes.transformers_scoring import (
    can_share_contexts,
    score_continuations,
    score_sequences,
)


def make_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    generator = random.Random(11)
    contexts = [[1] + [generator.randrange(4, 60) for _ in range(generator.randint(1, 30))] for _ in range(count)]
    return [
        (context, [generator.randrange(4, 60) for _ in range(generator.randint(1, 6))])
        for context in contexts
        for _ in range(generator.randint(1, 5))
    ]


def brute_force(model: torch.nn.Module, context: list[int], rest: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + rest])).logits[0, len(context) - 1 : -1]
    likelihoods = torch.log_softmax(logits, dim=-1)[torch.arange(len(rest)), torch.tensor(rest)]
    return float(likelihoods.sum()), logits.argmax(-1).tolist() == rest


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_shared_contexts_score_as_whole_sequences_do(tiny: TransformersRuntime, tiny_path: Path, rows: int) -> None:
    exact = TransformersRuntime(tiny_path).model.double()
    pairs = make_pairs(25)
    reported: list[int] = []
    assert can_share_contexts(tiny.model)
    answers = score_continuations(tiny.model, pairs, rows, reported.append)
    expected = [brute_force(exact, context, rest) for context, rest in pairs]
    assert [likelihood for likelihood, _ in answers] == pytest.approx([item[0] for item in expected], rel=1e-4)
    assert [greedy for _, greedy in answers] == [item[1] for item in expected]
    assert sum(reported) == len(pairs)


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_whole_sequences_score_the_same(tiny: TransformersRuntime, rows: int) -> None:
    """What a model gets whose cache cannot be repeated."""
    pairs = make_pairs(25)
    reported: list[int] = []
    shared = score_continuations(tiny.model, pairs, 64)
    whole = score_sequences(tiny.model, pairs, rows, reported.append)
    assert [item[0] for item in whole] == pytest.approx([item[0] for item in shared], rel=1e-4)
    assert [item[1] for item in whole] == [item[1] for item in shared]
    assert sum(reported) == len(pairs)


def test_greedy_continuations_are_recognised(tiny: TransformersRuntime) -> None:
    context = [1, 10, 11, 12]
    with torch.inference_mode():
        whole = tiny.model.generate(
            torch.tensor([context]),
            do_sample=False,
            max_new_tokens=4,
            min_new_tokens=4,
            eos_token_id=None,
            pad_token_id=0,
        )
    rest = whole[0, 4:].tolist()
    wrong = [*rest[:-1], (rest[-1] + 1) % 60]
    answers = score_continuations(
        tiny.model, [(context, rest), (context, wrong), (context, rest[:1])], 8, lambda _: None
    )
    assert [greedy for _, greedy in answers] == [True, False, True]
