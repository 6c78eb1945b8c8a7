"""Whether an export answers as its checkpoint does. Runs in a child process.

The checkpoint's greedy answers to a few fixed prompts, and its next-token distributions over prompt and answer, are
compared with what the export gives in the runtime it is for. Both see the same token ids; that the export's own
tokenizer gives these ids is checked first.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from agentic_compression.errors import CompressionError
from agentic_compression.export.targets import Target, open_target
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import ExportCheck, ExportFormat, ExportTolerance, PromptCheck, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from agentic_compression.runtimes import Runtime

__all__ = ["PROMPTS", "CheckRequest", "check", "parting_gap", "problem_with", "tolerance_of"]

PROMPTS = (
    "Once upon a time",
    "Question: What is 17 + 25?\nAnswer:",
    "The capital of France is",
    "def add(first, second):\n    return",
    "從前從前,有一個",
)
_NEW_TOKENS = 16
_BY_DIGIT = {"6": (0.2, 0.8), "5": (0.4, 0.7), "4": (1.0, 0.6), "3": (2.0, 0.4), "2": (3.0, 0.25)}
"""Mean divergence and top-1 agreement allowed for a GGUF type that the user chose, by the bits in its name."""


class CheckRequest(Record):
    """Which two to compare."""

    source: str
    folder: str
    format: ExportFormat
    tolerance: ExportTolerance
    threads: int = Field(default=1, ge=1)


def tolerance_of(gguf_type: str | None = None, *, rounds_activations: bool = False) -> ExportTolerance:
    """What an export may differ by.

    Args:
        gguf_type: of a GGUF file whose type the user chose, which may round the weights once more; None for all other
            exports: they are to answer as the checkpoint does, but for the order and precision of additions.
        rounds_activations: checkpoint and export round activations to 8 bits each in its own way (int8, fp8).
    """
    digit = "" if gguf_type is None else next(char for char in gguf_type if char.isdigit())
    if digit in _BY_DIGIT and gguf_type != "F32":
        mean_kl, agreement = _BY_DIGIT[digit]
        return ExportTolerance(mean_kl=mean_kl, max_kl=None, top1_agreement=agreement, tie=None)
    if rounds_activations:
        return ExportTolerance(mean_kl=0.15, max_kl=None, top1_agreement=0.8, tie=None)
    return ExportTolerance(mean_kl=0.02, max_kl=0.5, top1_agreement=0.9, tie=0.5)


def check(request: CheckRequest, progress: Progress = no_progress) -> ExportCheck:
    """Compare; a difference beyond the tolerance is a result with its ``problem``, not an error.

    Raises:
        AcfError: when the checkpoint or the export cannot be loaded.
    """
    from agentic_compression.runtimes import open_runtime
    from agentic_compression.runtimes.tokenizer import end_ids

    progress("check", 0, 2)
    with closing(open_runtime(request.source, "cpu", request.threads)) as runtime:
        ends = end_ids(runtime.tokenizer, Path(request.source))
        reference = f"{runtime.name} {importlib.metadata.version(_package(runtime.name))}"
        expected = [_asked(runtime, prompt) for prompt in PROMPTS]
    progress("check", 1, 2)
    target = open_target(request.format, Path(request.folder), request.threads)
    found = [_compared(target, asked, ends) for asked in expected]
    progress("check", 2, 2)
    import numpy as np

    kl = np.concatenate([item[1] for item in found])
    same_top = np.concatenate([item[2] for item in found])
    if not np.isfinite(kl).all():
        raise CompressionError("the export's logits are not finite numbers; the export is broken")
    result = ExportCheck(
        runtime=target.runtime,
        reference=reference,
        prompts=tuple(item[0] for item in found),
        tokens=len(kl),
        top1_agreement=float(same_top.mean()),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        tolerance=request.tolerance,
    )
    return result.model_copy(update={"problem": problem_with(result)})


def problem_with(result: ExportCheck) -> str:
    """Why a comparison is beyond its tolerance; empty when it is not."""
    allowed = result.tolerance
    if result.mean_kl > allowed.mean_kl:
        return f"KL divergence is {result.mean_kl:.4g} nats a token, {allowed.mean_kl:g} are allowed"
    if allowed.max_kl is not None and result.max_kl > allowed.max_kl:
        return f"KL divergence of a token is up to {result.max_kl:.4g} nats, {allowed.max_kl:g} are allowed"
    if result.top1_agreement < allowed.top1_agreement:
        share = f"{result.top1_agreement:.1%}, at least {allowed.top1_agreement:.0%} is required"
        return f"most likely next tokens agree on {share}"
    tie = allowed.tie
    parted = [item for item in result.prompts if not item.same]
    if tie is not None and (wrong := next((item for item in parted if (item.gap or 0.0) > tie), None)):
        answers = f"greedy answers to {wrong.prompt!r} are {wrong.expected!r} and {wrong.answer!r}"
        if wrong.gap == math.inf:
            return f"{answers}; where they part, one has a token that means nothing to the other or ends it"
        return f"{answers}; they part at tokens {wrong.gap:.3g} nats apart, {tie:g} are allowed"
    return ""


def _package(runtime: str) -> str:
    return {"llama.cpp": "xllamacpp"}.get(runtime, runtime)


@dataclass(frozen=True)
class _Asked:
    """A prompt's ids and the greedy answer's, its text, and log-probabilities after each of these tokens."""

    prompt: str
    ids: list[int]
    room: int
    answer: list[int]
    run: list[int]
    text: str
    likely: NDArray[np.float64]


def _asked(runtime: Runtime, prompt: str) -> _Asked:
    from agentic_compression.runtimes import GenerationOptions

    ids: list[int] = runtime.tokenizer(prompt, verbose=False)["input_ids"]
    room = max(1, min(_NEW_TOKENS, runtime.context_length - len(ids)))
    answer = runtime.generate([ids], GenerationOptions(new_tokens=room), 1)[0]
    run = [*ids, *answer.ids][: runtime.context_length]
    likely = _log_softmax(runtime.logits(run, range(len(run))))
    return _Asked(prompt, ids, room, answer.ids, run, answer.text, likely)


def _compared(
    target: Target, asked: _Asked, ends: AbstractSet[int]
) -> tuple[PromptCheck, NDArray[np.float64], NDArray[np.bool_]]:
    """The answers side by side, and by token the divergence and whether the most likely next one is the same."""
    import numpy as np

    own = target.encode(asked.prompt)
    if own != asked.ids:
        raise CompressionError(
            f"the export's tokenizer reads {asked.prompt!r} as {own[:8]}, the checkpoint's as {asked.ids[:8]}"
        )
    likely, got = asked.likely, _log_softmax(target.logits(asked.run))
    width = min(got.shape[1], likely.shape[1])
    likely, got = likely[:, :width], got[:, :width]
    kl = np.maximum((np.exp(likely) * (likely - got)).sum(axis=1), 0.0)
    ids, answer = target.answer(asked.ids, asked.room)
    gap = parting_gap(asked.likely[len(asked.ids) - 1 :], asked.answer, ids, ends)
    same = gap is None
    found = PromptCheck(prompt=asked.prompt, expected=asked.text, answer=answer, same=same, gap=gap)
    return found, kl, likely.argmax(axis=1) == got.argmax(axis=1)


def parting_gap(
    likely: NDArray[np.float64], expected: Sequence[int], answer: Sequence[int], ends: AbstractSet[int]
) -> float | None:
    """How far apart the tokens are, to the checkpoint, at which two greedy answers part; None where they do not.

    An answer that stops before the other stops at an end token there.

    Args:
        likely: the checkpoint's log-probabilities before every token of its answer and after the last.
        expected: the checkpoint's answer.
        answer: the export's.
        ends: the checkpoint's end tokens.

    Returns:
        Nats; infinity where the two cannot be compared: an end token of one is a token of text to the other.
    """
    if list(expected) == list(answer):
        return None
    pairs = zip(expected, answer, strict=False)
    row = next((place for place, (mine, other) in enumerate(pairs) if mine != other), min(len(expected), len(answer)))

    def value(ids: Sequence[int]) -> float | None:
        tokens = [ids[row]] if row < len(ids) else sorted(ends)
        return max((float(likely[row, token]) for token in tokens if token < likely.shape[1]), default=None)

    mine, other = value(expected), value(answer)
    if mine is None or other is None or (row < len(answer) and answer[row] in ends):
        return math.inf
    return abs(mine - other)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
