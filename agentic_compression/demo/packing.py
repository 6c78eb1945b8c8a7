"""Packs tokenized documents into rows of fixed length that keep the documents apart.

Each document starts at position 0 with ``<s>`` and only attends to itself, exactly as a prompt does later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100
"""Label of positions without a target."""


@dataclass
class PackedRows:
    """Packed documents.

    Attributes:
        ids: Token ids, shape (rows, length).
        segments: Document number within the row from 1 on, 0 where padded, shape (rows, length).
        positions: Position within the document, shape (rows, length).
        answer: Whether a token belongs to an answer (or ends a document), shape (rows, length).
    """

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    answer: np.ndarray

    def batch(self, rows: Sequence[int], prompt_weight: float) -> dict[str, torch.Tensor]:
        """Builds one training batch.

        Args:
            rows: Row numbers.
            prompt_weight: Loss weight of tokens that are not part of an answer; answers weigh 1.

        Returns:
            ``input_ids``, ``position_ids``, ``labels`` and ``weights`` of shape (batch, length - 1) and the additive
            ``attention_mask`` of shape (batch, 1, length - 1, length - 1), 0 where attention is allowed.
        """
        index = list(rows)
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        segments = torch.from_numpy(self.segments[index].astype(np.int64))
        positions = torch.from_numpy(self.positions[index].astype(np.int64))
        answer = torch.from_numpy(self.answer[index])
        here, after = segments[:, :-1], segments[:, 1:]
        labels = torch.where((here == after) & (after > 0), ids[:, 1:], IGNORED)
        weights = torch.where(answer[:, 1:], 1.0, prompt_weight) * (labels != IGNORED)
        causal = torch.ones(here.shape[1], here.shape[1], dtype=torch.bool).tril()
        allowed = (here[:, None, :, None] == here[:, None, None, :]) & causal
        mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.bfloat16).min)
        return {
            "input_ids": ids[:, :-1],
            "position_ids": positions[:, :-1],
            "labels": labels,
            "weights": weights,
            "attention_mask": mask,
        }


def _fill(documents: Iterable[list[int]], length: int, open_rows: int) -> Iterator[list[list[int]]]:
    """Yields groups of documents that share a row: first fit over a few rows kept open."""
    rows: list[tuple[int, list[list[int]]]] = []
    for document in documents:
        if len(document) > length:
            continue
        for number, (used, members) in enumerate(rows):
            if used + len(document) <= length:
                members.append(document)
                rows[number] = (used + len(document), members)
                break
        else:
            rows.append((len(document), [document]))
        if len(rows) > open_rows:
            fullest = max(range(len(rows)), key=lambda number: rows[number][0])
            yield rows.pop(fullest)[1]
    yield from (members for _, members in rows)


def answer_flags(document: Sequence[int], opening: Sequence[int], closing: int | None) -> list[bool]:
    """Marks the tokens of a document that carry the loss of answers.

    Args:
        document: Token ids.
        opening: Token ids that precede an answer (``"Answer:"``).
        closing: First token id of the separator that ends an answer, if any.

    Returns:
        One flag per token; in documents without ``opening`` every token is flagged.
    """
    width = len(opening)
    starts = {i + width for i in range(len(document) - width + 1) if list(document[i : i + width]) == list(opening)}
    if not starts:
        return [True] * len(document)
    flags, inside = [], False
    for position, token in enumerate(document):
        inside = position in starts or (inside and token != closing)
        flags.append(inside)
    return flags


def pack(
    documents: Iterable[list[int]], length: int, opening: Sequence[int], closing: int | None, open_rows: int = 24
) -> PackedRows:
    """Packs documents.

    Args:
        documents: Token ids of each document, ``<s>`` and ``</s>`` included; longer ones than a row are left out.
        length: Row length in tokens.
        opening: Token ids that precede an answer.
        closing: First token id of the separator that ends an answer, if any.
        open_rows: How many rows are kept open for filling.

    Returns:
        The packed rows, roughly in document order.
    """
    ids, segments, positions, answer = [], [], [], []
    for members in _fill(documents, length, open_rows):
        columns: tuple[list[int], list[int], list[int], list[bool]] = ([], [], [], [])
        for number, document in enumerate(members, start=1):
            columns[0].extend(document)
            columns[1].extend([number] * len(document))
            columns[2].extend(range(len(document)))
            columns[3].extend(answer_flags(document, opening, closing))
        padding = length - len(columns[0])
        ids.append(np.array(columns[0] + [0] * padding, dtype=np.int16))
        segments.append(np.array(columns[1] + [0] * padding, dtype=np.int16))
        positions.append(np.array(columns[2] + [0] * padding, dtype=np.int16))
        answer.append(np.array(columns[3] + [False] * padding, dtype=np.bool_))
    return PackedRows(np.stack(ids), np.stack(segments), np.stack(positions), np.stack(answer))
