"""Log-likelihoods by a transformers model: continuations that share contexts, and whole documents.

Each distinct context runs through the model once; four choices of one question otherwise cost the question four
times. Contexts of equal length form a batch, so that nothing is padded before the continuations; their key-value cache
is then repeated a row a continuation, and the continuations (padded on the right, which causal attention never looks
at) run on top of it. A model whose cache cannot be repeated runs whole sequences instead. The log-softmax is taken in
float32 whatever the model's dtype. Scores equal those of scoring whole sequences up to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from agentic_compression.runtimes.interface import DocumentScore, Report, TokenPair, ignore
from agentic_compression.runtimes.limits import document_score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["can_share_contexts", "logits_of_windows", "score_continuations", "score_sequences", "score_windows"]

_CONTEXT_TOKENS = 4096
_LOGIT_BYTES = 1 << 28
_DOCUMENT_TOKENS = 2048  # larger batches spend their time fetching fresh pages for the logits


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
    model: Any, pairs: Sequence[TokenPair], rows: int, report: Report = ignore
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


def score_sequences(
    model: Any, pairs: Sequence[TokenPair], rows: int, report: Report = ignore
) -> list[tuple[float, bool]]:
    """The same for any causal model: context and continuation run together, padded on the right."""
    import torch

    order = sorted(range(len(pairs)), key=lambda index: (-len(pairs[index][0]) - len(pairs[index][1]), index))
    answers: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        sequences = [[*pairs[index][0], *pairs[index][1]] for index in batch]
        with torch.inference_mode():
            logits = model(input_ids=_padded([ids[:-1] for ids in sequences], model.device)).logits
            for row, index in enumerate(batch):
                begin, end = len(pairs[index][0]) - 1, len(sequences[row]) - 1
                rest = torch.tensor(list(pairs[index][1]), device=model.device)
                likely = torch.log_softmax(logits[row, begin:end].float(), dim=-1)
                total = float(likely.gather(1, rest.unsqueeze(1)).double().sum())
                answers[index] = (total, bool((likely.argmax(dim=-1) == rest).all()))
        report(len(batch))
    return [answers[index] for index in range(len(pairs))]


def score_windows(
    model: Any, windows: Sequence[Sequence[int]], batch_size: int, vocabulary: int, report: Report = ignore
) -> list[DocumentScore]:
    """Score every token of every window after its first, in the given order.

    Documents are batched by length and padded on the right: under causal attention a token never sees what follows it,
    so the padding needs no mask, it is only left out of the sums.

    Raises:
        CompressionError: when a likelihood is not a finite number.
    """
    scores: dict[int, DocumentScore] = {}
    for batch in _document_batches(windows, batch_size, vocabulary):
        scores.update(zip(batch, _score_documents(model, [windows[index] for index in batch]), strict=True))
        report(len(batch))
    return [scores[index] for index in range(len(windows))]


def logits_of_windows(
    model: Any, windows: Sequence[Sequence[int]], batch_size: int, vocabulary: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each window's place and the logits after every one of its tokens; batched as ``score_windows`` does."""
    import torch

    for batch in _document_batches(windows, batch_size, vocabulary):
        with torch.inference_mode():
            logits = model(input_ids=_padded([windows[index] for index in batch], model.device)).logits
            found = logits.float().cpu().numpy()
        for row, index in enumerate(batch):
            yield index, found[row, : len(windows[index])]


def _document_batches(windows: Sequence[Sequence[int]], batch_size: int, vocabulary: int) -> Iterator[list[int]]:
    """Places of windows, the longest first; some thousand tokens a batch."""
    order = sorted(range(len(windows)), key=lambda index: (-len(windows[index]), index))
    position = 0
    while position < len(order):
        longest = len(windows[order[position]])
        rows = max(1, min(batch_size, _DOCUMENT_TOKENS // longest, _LOGIT_BYTES // (4 * longest * vocabulary)))
        yield order[position : position + rows]
        position += rows


def _batches(
    contexts: list[tuple[int, ...]], by_context: dict[tuple[int, ...], list[int]], rows: int, length: int
) -> list[list[tuple[int, ...]]]:
    """Split contexts of one length so that a batch has at most ``rows`` continuations and some thousand tokens."""
    batches: list[list[tuple[int, ...]]] = []
    filled = 0
    for context in contexts:
        members = len(by_context[context])
        full = not batches or filled + members > rows or (len(batches[-1]) + 1) * length > _CONTEXT_TOKENS
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

    padded = _padded(continuations, model.device)
    lengths = torch.tensor([len(tokens) for tokens in continuations], device=model.device)
    scored = torch.arange(1, padded.shape[1], device=model.device) < lengths.unsqueeze(1)
    logits = model(input_ids=padded[:, :-1], past_key_values=cache, use_cache=True).logits
    targets = padded[:, 1:]
    likelihoods = torch.log_softmax(logits.float(), dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2).double()
    hits = (logits.argmax(dim=-1) == targets) | ~scored
    return likelihoods.masked_fill(~scored, 0.0).sum(dim=1), hits.all(dim=1)


def _score_documents(model: Any, windows: list[Sequence[int]]) -> list[DocumentScore]:
    import torch

    padded = _padded(windows, model.device)
    with torch.inference_mode():
        logits = model(input_ids=padded).logits[:, :-1].float()  # (batch, tokens - 1, vocabulary)
        targets = padded[:, 1:]
        picked = logits.gather(2, targets.unsqueeze(2)).squeeze(2)
        nll = torch.logsumexp(logits, dim=2) - picked
        hits = logits.argmax(dim=2) == targets
    return [
        document_score(float(nll[row, : len(window) - 1].double().sum()), hits[row, : len(window) - 1].tolist())
        for row, window in enumerate(windows)
    ]


def _padded(sequences: Sequence[Sequence[int]], device: Any) -> Any:
    """Token ids ``(sequences, longest)``, zeros on the right."""
    import torch

    ids = torch.zeros(len(sequences), max(len(tokens) for tokens in sequences), dtype=torch.long)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(list(tokens))
    return ids.to(device)
