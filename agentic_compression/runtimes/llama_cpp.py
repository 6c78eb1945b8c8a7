"""GGUF checkpoints through llama.cpp: what is measured is the engine that serves them.

Token ids come from the Hugging Face tokenizer in the folder, so that this and the transformers runtime see the same
ids. Several sequences share one cache: a batch of documents or contexts is computed in one call, and the choices of a
question are computed on top of its context, which runs once (``llama_memory_seq_cp`` lets a choice see the context's
cells without a copy). Attention and cache are in llama.cpp's own precision, float16, unless ``exact``. The file is
read, not mapped: llama.cpp repacks some quantized tensors for its kernels, and a map would count those twice.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaContext, LlamaModel
from agentic_compression.errors import ModelError, UsageError
from agentic_compression.runtimes.interface import (
    Completion,
    DocumentScore,
    GenerationOptions,
    MemoryUse,
    Piece,
    Report,
    TimedBatch,
    TimedRequest,
    TokenCost,
    TokenPair,
    ignore,
)
from agentic_compression.runtimes.limits import (
    check_answer_fits,
    check_batch_fits,
    check_pairs,
    check_windows,
    document_score,
)
from agentic_compression.runtimes.llama_batches import (
    all_logits,
    filled,
    last_logits,
    log_softmax,
    run_tokens,
    score_runs,
)
from agentic_compression.runtimes.sampling import TextStream, cut_at_stop, pick_token, stream_pieces
from agentic_compression.runtimes.select import llama_file
from agentic_compression.runtimes.token_costs import GgufCache, cost_of_gguf
from agentic_compression.runtimes.tokenizer import bos_of, encode_texts, end_ids, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaCppRuntime"]

_BATCH = 512
_SEQUENCES = 128
_LOGIT_BYTES = 1 << 28
_GENERATION_CELLS = 1024
# llama.cpp rounds a cache up to this many cells. It is a multiple of _SEQUENCES, as the batch of a context that pools
# must be: llama.cpp sizes that graph for as many tokens of every sequence, and aborts the process where they differ.
_CELL_BLOCK = 256
_Purpose = Literal["request", "score", "generate", "embed"]


class LlamaCppRuntime:
    """A GGUF file in a checkpoint folder, run by llama.cpp. See ``Runtime`` for the methods.

    Args:
        path: folder with one ``.gguf`` file and the tokenizer's files.
        device: ``cpu``, or ``cuda:n`` where the installed llama.cpp was built for GPUs.
        threads: of every computation.
        exact: attention and cache in float32 instead of llama.cpp's float16; for comparing with other engines.

    Raises:
        ModelError: when there is no GGUF file, llama.cpp cannot load it, or the tokenizer is missing or larger.
        UnavailableError: when llama.cpp is missing or cannot use the device.
    """

    name = "llama.cpp"

    def __init__(self, path: str | Path, *, device: str = "cpu", threads: int = 1, exact: bool = False) -> None:
        folder = Path(path)
        file = llama_file(folder)
        if file is None:
            raise ModelError(f"{folder} must hold a .gguf file, got none; export the model to GGUF")
        self.tokenizer: Any = load_tokenizer(folder)
        self.device, self._threads, self._exact = device, threads, exact
        self._free_before = _free_bytes(device)
        self._model = LlamaModel(file, load="read", gpu=device.startswith("cuda"))
        self._cache = GgufCache(self._model.metadata, item_bytes=4 if exact else 2)
        self._contexts: dict[_Purpose, LlamaContext] = {}
        self._turn = 0
        self.clock: Literal["perf_counter", "cuda_events"] = "perf_counter"
        self.bos = bos_of(self.tokenizer)
        self._ends = end_ids(self.tokenizer, folder)
        self.vocabulary = self._model.vocabulary
        self.context_length = self._model.context_length or 2048
        self.weights_bytes = self._model.weights_bytes
        self._batch = max(_SEQUENCES, min(_BATCH, _LOGIT_BYTES // (4 * self.vocabulary)))
        if len(self.tokenizer) > self.vocabulary:
            self.close()
            raise ModelError(
                f"{file} must have a token for each of the tokenizer's {len(self.tokenizer)}, "
                f"got {self.vocabulary}; file and tokenizer are not of one model"
            )

    def score(self, pairs: Sequence[TokenPair], batch_size: int, report: Report = ignore) -> list[tuple[float, bool]]:
        check_pairs(pairs, self.context_length)
        by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (context, _) in enumerate(pairs):
            by_context[tuple(context)].append(index)
        contexts = sorted(by_context, key=lambda ids: (-len(ids), ids))
        most = max(1, min(batch_size, _SEQUENCES // 2))
        answers: dict[int, tuple[float, bool]] = {}
        for batch in filled(contexts, [len(context) for context in contexts], most, self._batch):
            members = [(row, index) for row, context in enumerate(batch) for index in by_context[context]]
            scored = self._score_batch(batch, [(row, pairs[index][1]) for row, index in members])
            answers.update(zip((index for _, index in members), scored, strict=True))
            report(len(members))
        return [answers[index] for index in range(len(pairs))]

    def _score_batch(
        self, contexts: list[tuple[int, ...]], members: list[tuple[int, Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Score continuations ``(row of the context, tokens)``, as many at once as there are sequences left."""
        import numpy as np

        spare = _SEQUENCES - len(contexts)
        slices = [members[start : start + spare] for start in range(0, len(members), spare)]
        cells = sum(map(len, contexts)) + max(sum(len(rest) for _, rest in part) for part in slices)
        context = self._context("score", cells, sequences=_SEQUENCES, outputs=self._batch)
        first = last_logits(context, contexts)
        likely, best = log_softmax(first), first.argmax(axis=1)
        scores: list[tuple[float, bool]] = []
        for part in slices:
            totals = [float(likely[row, rest[0]]) for row, rest in part]
            greedy = [bool(best[row] == rest[0]) for row, rest in part]
            longer = [number for number, (_, rest) in enumerate(part) if len(rest) > 1]
            runs = []
            for sequence, number in enumerate(longer, start=len(contexts)):
                row, rest = part[number]
                context.copy_sequence(row, sequence)
                runs.append((sequence, len(contexts[row]), rest))
            nll, hits = score_runs(context, runs)
            ends = np.cumsum([len(part[number][1]) - 1 for number in longer]).tolist()
            for number, start, end in zip(longer, [0, *ends], ends, strict=False):
                totals[number] -= float(nll[start:end].sum())
                greedy[number] &= bool(hits[start:end].all())
            for sequence, _, _ in runs:
                context.remove(sequence)
            scores += zip(totals, greedy, strict=True)
        return scores

    def score_documents(
        self, windows: Sequence[Sequence[int]], batch_size: int, report: Report = ignore
    ) -> list[DocumentScore]:
        check_windows(windows, self.context_length)
        order = sorted(range(len(windows)), key=lambda index: (-len(windows[index]), index))
        scores: dict[int, DocumentScore] = {}
        most = max(1, min(batch_size, _SEQUENCES))
        for batch in filled(order, [len(windows[index]) - 1 for index in order], most, self._batch):
            cells = sum(len(windows[index]) for index in batch)
            context = self._context("score", cells, sequences=_SEQUENCES, outputs=self._batch)
            nll, hits = score_runs(context, [(row, 0, windows[index]) for row, index in enumerate(batch)])
            start = 0
            for index in batch:
                end = start + len(windows[index]) - 1
                scores[index] = document_score(float(nll[start:end].sum()), hits[start:end].tolist())
                start = end
            report(len(batch))
        return [scores[index] for index in range(len(windows))]

    def generate(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, batch_size: int, report: Report = ignore
    ) -> list[Completion]:
        for prompt in prompts:
            check_answer_fits(prompt, options, self.context_length)
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
        sizes = [len(prompts[index]) + options.new_tokens for index in order]
        answers: dict[int, Completion] = {}
        for batch in filled(order, sizes, max(1, min(batch_size, _SEQUENCES)), _GENERATION_CELLS):
            answers.update(zip(batch, self._generate_batch([prompts[index] for index in batch], options), strict=True))
            report(len(batch))
        return [answers[index] for index in range(len(prompts))]

    def _generate_batch(self, prompts: list[Sequence[int]], options: GenerationOptions) -> list[Completion]:
        """All rows advance together; a row that ended leaves the batch."""
        import numpy as np

        cells = sum(len(prompt) + options.new_tokens for prompt in prompts)
        context = self._context("generate", cells, sequences=_SEQUENCES, outputs=_SEQUENCES)
        generator = np.random.default_rng(options.seed)
        texts = [TextStream(self.tokenizer, options.stop_strings) for _ in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        ends = self._ends | set(options.stop_ids)
        active = list(range(len(prompts)))
        logits = last_logits(context, prompts)
        while active:
            going = []
            for place, row in enumerate(active):
                token = pick_token(logits[place], options, generator)
                if token in ends:
                    continue
                answers[row].append(token)
                stopped = bool(options.stop_strings) and texts[row].push(token)[1]
                if not stopped and len(answers[row]) < options.new_tokens:
                    going.append(row)
            active = going
            if active:
                positions = [len(prompts[row]) + len(answers[row]) - 1 for row in active]
                tokens = [answers[row][-1] for row in active]
                logits = context.decode(tokens, positions, active, [True] * len(active))
        return [self._completion(answer, options) for answer in answers]

    def _completion(self, answer: list[int], options: GenerationOptions) -> Completion:
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return Completion(ids=answer, text=cut_at_stop(text, options.stop_strings))

    def stream(self, prompt: Sequence[int], options: GenerationOptions) -> Iterator[Piece]:
        check_answer_fits(prompt, options, self.context_length)
        return self._stream(prompt, options)

    def _stream(self, prompt: Sequence[int], options: GenerationOptions) -> Iterator[Piece]:
        context = self._context("request", len(prompt) + options.new_tokens)
        position, turn = len(prompt), self._turn

        def step(token: int) -> NDArray[np.float32]:
            nonlocal position
            if turn != self._turn:
                raise UsageError("an answer must be streamed to its end before another begins, got another request")
            position += 1
            return context.decode([token], [position - 1], [0], [True])[0]

        first = last_logits(context, [prompt])[0]
        yield from stream_pieces(first, step, self.tokenizer, self._ends, options)

    def time_request(self, prompt: Sequence[int], new_tokens: int) -> TimedRequest:
        check_answer_fits(prompt, GenerationOptions(new_tokens), self.context_length)
        context = self._context("request", len(prompt) + new_tokens)
        start = time.perf_counter()
        tokens = [int(last_logits(context, [prompt])[0].argmax())]
        moments = [time.perf_counter()]
        for position in range(len(prompt), len(prompt) + new_tokens - 1):
            tokens.append(int(context.decode(tokens[-1:], [position], [0], [True])[0].argmax()))
            moments.append(time.perf_counter())
        times = tuple((moment - start) * 1e3 for moment in moments)
        return TimedRequest(tokens, times[0], times[-1], times)

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
        check_batch_fits(prompts, new_tokens, self.context_length)
        if len(prompts) > _SEQUENCES:
            raise UsageError(f"a timed batch must have at most {_SEQUENCES} prompts, got {len(prompts)}; time fewer")
        length, rows = len(prompts[0]), list(range(len(prompts)))
        cells = len(prompts) * (length + new_tokens)
        context = self._context("generate", cells, sequences=_SEQUENCES, outputs=_SEQUENCES)
        start = time.perf_counter()
        steps = [last_logits(context, prompts).argmax(axis=1)]
        first = time.perf_counter()
        for position in range(length, length + new_tokens - 1):
            logits = context.decode(steps[-1], [position] * len(rows), rows, [True] * len(rows))
            steps.append(logits.argmax(axis=1))
        end = time.perf_counter()
        answers = [[int(step[row]) for step in steps] for row in rows]
        return TimedBatch(answers, (first - start) * 1e3, (end - start) * 1e3)

    def cache_bytes(self, tokens: int) -> int | None:
        one = self._cache.bytes_per_token  # llama.cpp sets aside whole blocks of cells
        return None if one is None else one * -(-tokens // _CELL_BLOCK) * _CELL_BLOCK

    def token_cost(self) -> TokenCost:
        return self._token_cost

    @cached_property
    def _token_cost(self) -> TokenCost:
        return cost_of_gguf(self._model.path)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        check_windows([[*ids, 0]], self.context_length + 1)
        wanted = np.zeros(len(ids), dtype=bool)
        wanted[list(positions)] = True
        context = self._context("score", len(ids), sequences=_SEQUENCES, outputs=self._batch)
        places = np.arange(len(ids))
        return np.concatenate(list(run_tokens(context, np.asarray(ids), places, np.zeros_like(places), wanted)))

    def sequence_logits(
        self, windows: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        check_windows(windows, self.context_length)
        return self._sequence_logits(windows, max(1, min(batch_size, _SEQUENCES)))

    def _sequence_logits(
        self, windows: Sequence[Sequence[int]], most: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        order = sorted(range(len(windows)), key=lambda index: (-len(windows[index]), index))
        sizes = [len(windows[index]) for index in order]
        for batch in filled(order, sizes, most, self._batch):
            cells = sum(len(windows[index]) for index in batch)
            context = self._context("score", cells, sequences=_SEQUENCES, outputs=self._batch)
            found = all_logits(context, [windows[index] for index in batch])
            yield from zip(batch, found, strict=True)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        encoded = encode_texts(self.tokenizer, texts, self.context_length)
        vectors = np.empty((len(encoded), self._model.hidden_size), dtype=np.float32)
        cells = max([_BATCH, *map(len, encoded)])  # llama.cpp pools what one batch holds
        places = list(range(len(encoded)))
        for batch in filled(places, list(map(len, encoded)), _SEQUENCES, cells):
            context = self._context("embed", cells, sequences=_SEQUENCES)
            vectors[batch] = context.embed([encoded[place] for place in batch])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
        return scaled

    def memory(self) -> MemoryUse:
        free = _free_bytes(self.device)  # llama.cpp takes a context's memory at once and keeps it: the use is the peak
        taken = None if free is None or self._free_before is None else max(0, self._free_before - free)
        return MemoryUse(
            weights_bytes=self.weights_bytes,
            device_peak_bytes=taken,
            cache_bytes_per_token=self._cache.bytes_per_token,
        )

    def close(self) -> None:
        self._contexts.clear()
        self._model.close()

    def _context(self, purpose: _Purpose, cells: int, *, sequences: int = 1, outputs: int = 1) -> LlamaContext:
        """An empty context of at least so many cells; kept until a larger one is needed.

        One for embeddings takes all its cells as one batch, whatever ``outputs`` says.
        """
        self._turn += 1
        embeds = purpose == "embed"
        tokens = -(-cells // _CELL_BLOCK) * _CELL_BLOCK
        batch = tokens if embeds else max(self._batch, outputs)
        outputs = tokens if embeds else outputs
        held = self._contexts.get(purpose)
        if held is not None and _holds(held.options, tokens, batch, outputs):
            held.clear()
            return held
        if held is not None:
            held.close()
        options = ContextOptions(
            tokens=tokens,
            sequences=sequences,
            batch=batch,
            outputs=outputs,
            threads=self._threads,
            exact=self._exact,
            embeddings=embeds,
        )
        self._contexts[purpose] = context = self._model.context(options)
        return context


def _holds(options: ContextOptions, tokens: int, batch: int, outputs: int) -> bool:
    """Whether a context is large enough in every respect."""
    most = options.batch if options.outputs is None else options.outputs
    return options.tokens >= tokens and options.batch >= batch and most >= outputs


def _free_bytes(device: str) -> int | None:
    """Free memory of a GPU; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.mem_get_info(device)[0])
