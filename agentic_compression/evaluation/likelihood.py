"""Log-likelihoods of continuations that share contexts: each context runs through the model once.

Four choices of one question otherwise cost the question four times. Contexts of equal length form a batch, so that
nothing is padded before the continuations; their key-value cache is then repeated a row a continuation, and the
continuations (padded on the right, which causal attention never looks at) run on top of it. The log-softmax is taken
in float32 whatever the model's dtype. Scores equal those of scoring whole sequences up to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["can_share_contexts", "score_continuations"]

TokenPair = tuple[Sequence[int], Sequence[int]]
_TOKENS = 4096


def can_share_contexts(model: Any) -> bool:
    """Whether the model's cache is the plain growing kind, whose rows may be repeated."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    with torch.inference_mode():
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True).get(
            "past_key_values"
        )
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def score_continuations(
    model: Any, pairs: Sequence[TokenPair], rows: int, report: Callable[[int], None]
) -> list[tuple[float, bool]]:
    """Sum of log-probabilities of every continuation, and whether greedy decoding would produce it.

    Args:
        model: a causal language model whose cache ``can_share_contexts``.
        pairs: context and continuation as token ids, one or more each.
        rows: continuations at once; fewer when tokens or logits of a batch grow large.
        report: told the number of continuations after each batch.

    Returns:
        One pair a continuation, in the order given.
    """
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (context, _) in enumerate(pairs):
        by_context[tuple(context)].append(index)
    by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for context in by_context:
        by_length[len(context)].append(context)
    answers: dict[int, tuple[float, bool]] = {}
    for length in sorted(by_length, reverse=True):
        for batch in _batches(sorted(by_length[length]), by_context, rows, length):
            members = [(row, index) for row, context in enumerate(batch) for index in by_context[context]]
            scored = _score_batch(model, batch, [(row, pairs[index][1]) for row, index in members])
            answers.update(zip((index for _, index in members), scored, strict=True))
            report(len(members))
    return [answers[index] for index in range(len(pairs))]


def _batches(
    contexts: list[tuple[int, ...]], by_context: dict[tuple[int, ...], list[int]], rows: int, length: int
) -> list[list[tuple[int, ...]]]:
    """Split contexts of one length so that a batch has at most ``rows`` continuations and some thousand tokens."""
    batches: list[list[tuple[int, ...]]] = []
    filled = 0
    for context in contexts:
        members = len(by_context[context])
        full = not batches or filled + members > rows or (len(batches[-1]) + 1) * length > _TOKENS
        if full:
            batches.append([])
            filled = 0
        batches[-1].append(context)
        filled += members
    return batches


def _score_batch(
    model: Any, contexts: list[tuple[int, ...]], members: list[tuple[int, Sequence[int]]]
) -> list[tuple[float, bool]]:
    """Score continuations ``(row of the context, tokens)`` of contexts of one length."""
    import torch

    with torch.inference_mode():
        prompt = torch.tensor(contexts, dtype=torch.long, device=model.device)
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        first = torch.log_softmax(output.logits[:, -1].float(), dim=-1)  # (contexts, vocabulary)
        rows = torch.tensor([row for row, _ in members], device=model.device)
        heads = torch.tensor([tokens[0] for _, tokens in members], device=model.device)
        total = first[rows, heads].double()
        greedy = first.argmax(dim=-1)[rows] == heads
        longer = [number for number, (_, tokens) in enumerate(members) if len(tokens) > 1]
        if longer:
            chosen = torch.tensor(longer, device=model.device)
            output.past_key_values.batch_select_indices(rows[chosen])
            rest = _score_rest(model, output.past_key_values, [members[number][1] for number in longer])
            total[chosen] += rest[0]
            greedy[chosen] &= rest[1]
    return list(zip(total.tolist(), (bool(hit) for hit in greedy.tolist()), strict=True))


def _score_rest(model: Any, cache: Any, continuations: list[Sequence[int]]) -> tuple[Any, Any]:
    """Log-probabilities of the tokens after the first, summed, and whether all of them are the most likely ones."""
    import torch

    width = max(len(tokens) for tokens in continuations)
    padded = torch.zeros(len(continuations), width, dtype=torch.long)
    scored = torch.zeros(len(continuations), width - 1, dtype=torch.bool)
    for row, tokens in enumerate(continuations):
        padded[row, : len(tokens)] = torch.tensor(tokens)
        scored[row, : len(tokens) - 1] = True
    padded, scored = padded.to(model.device), scored.to(model.device)
    logits = model(input_ids=padded[:, :-1], past_key_values=cache, use_cache=True).logits
    targets = padded[:, 1:]
    likelihoods = torch.log_softmax(logits.float(), dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2).double()
    hits = (logits.argmax(dim=-1) == targets) | ~scored
    return likelihoods.masked_fill(~scored, 0.0).sum(dim=1), hits.all(dim=1)
