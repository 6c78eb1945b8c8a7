"""Checkpoints of safetensors, ours or plain ones, through transformers' own forward pass."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.errors import ModelError
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
from agentic_compression.runtimes.limits import check_answer_fits, check_batch_fits, check_pairs, check_windows
from agentic_compression.runtimes.sampling import cut_at_stop, stream_pieces
from agentic_compression.runtimes.token_costs import cache_bytes_of_config, cost_of_model
from agentic_compression.runtimes.tokenizer import bos_of, encode_texts, end_ids
from agentic_compression.runtimes.transformers_scoring import (
    can_share_contexts,
    logits_of_windows,
    score_continuations,
    score_sequences,
    score_windows,
)
from agentic_compression.runtimes.transformers_timing import clock_of, serve_greedy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TransformersRuntime"]

_LOGIT_BYTES = 1 << 29


class TransformersRuntime:
    """A model that transformers runs, in the dtype it is stored in. See ``Runtime`` for the methods.

    Args:
        path: checkpoint folder with weights, configuration and tokenizer.
        device: ``cpu`` or ``cuda:n``.
        threads: of torch in this whole process; left as they are when None.

    Raises:
        ModelError: when the folder is no model or has no tokenizer.
    """

    name = "transformers"

    def __init__(self, path: str | Path, *, device: str = "cpu", threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._allocated_before = _restart_peak(device)
        loaded = load_checkpoint(path, device=device)
        if loaded.tokenizer is None:
            raise ModelError(f"{path} must hold a tokenizer to be run, got none; copy tokenizer.json into it")
        self.model: Any = loaded.model
        _forget_generation_defaults(self.model)
        self.tokenizer: Any = loaded.tokenizer
        self.device, self.weights_bytes = device, loaded.weights_bytes
        self.clock: Literal["perf_counter", "cuda_events"] = "cuda_events" if "cuda" in device else "perf_counter"
        self.bos = bos_of(self.tokenizer)
        self._ends = end_ids(self.tokenizer, Path(path))
        config = self.model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.context_length = _context_length(config)
        # Logits of the last position are all that decoding needs; every current decoder accepts the limit.
        accepted = inspect.signature(self.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    @cached_property
    def _shares(self) -> bool:
        return can_share_contexts(self.model)

    def score(self, pairs: Sequence[TokenPair], batch_size: int, report: Report = ignore) -> list[tuple[float, bool]]:
        check_pairs(pairs, self.context_length)
        if not pairs:
            return []
        longest = max(len(rest) if self._shares else len(context) + len(rest) for context, rest in pairs)
        rows = self._rows(batch_size, longest)
        return (score_continuations if self._shares else score_sequences)(self.model, pairs, rows, report)

    def score_documents(
        self, windows: Sequence[Sequence[int]], batch_size: int, report: Report = ignore
    ) -> list[DocumentScore]:
        check_windows(windows, self.context_length)
        return score_windows(self.model, windows, batch_size, self.vocabulary, report)

    def generate(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, batch_size: int, report: Report = ignore
    ) -> list[Completion]:
        import torch

        for prompt in prompts:
            check_answer_fits(prompt, options, self.context_length)
        torch.manual_seed(options.seed)
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
        rows = self._rows(batch_size, 1)
        answers: dict[int, Completion] = {}
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            answers.update(zip(batch, self._generate_batch([prompts[index] for index in batch], options), strict=True))
            report(len(batch))
        return [answers[index] for index in range(len(prompts))]

    def _generate_batch(self, prompts: list[Sequence[int]], options: GenerationOptions) -> list[Completion]:
        """Padded on the left and masked there, so that every row's answer begins at the same place."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, width - len(prompt) :] = 1
        ends = sorted(self._ends | set(options.stop_ids))
        padding = ends[0] if ends else 0
        sampling: dict[str, Any] = {"do_sample": options.temperature > 0}
        if options.temperature > 0:
            sampling |= {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_length=width + options.new_tokens,
            eos_token_id=ends or None,
            pad_token_id=padding,
            use_cache=True,
            **sampling,
        )
        stops = _StopStrings(self.tokenizer, options.stop_strings, width)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([stops]),
            )
        answers = (tokens[width : stops.end(row)] for row, tokens in enumerate(output.tolist()))
        return [self._completion(answer, options) for answer in answers]

    def _completion(self, answer: list[int], options: GenerationOptions) -> Completion:
        ends = self._ends | set(options.stop_ids)
        stop = next((place for place, token in enumerate(answer) if token in ends), len(answer))
        text = self.tokenizer.decode(answer[:stop], skip_special_tokens=True)
        return Completion(ids=answer[:stop], text=cut_at_stop(text, options.stop_strings))

    def stream(self, prompt: Sequence[int], options: GenerationOptions) -> Iterator[Piece]:
        check_answer_fits(prompt, options, self.context_length)
        return self._stream(prompt, options)

    def _stream(self, prompt: Sequence[int], options: GenerationOptions) -> Iterator[Piece]:
        cache: Any = None

        def run(ids: Sequence[int]) -> NDArray[np.float32]:
            import torch

            nonlocal cache
            with torch.inference_mode():
                tokens = torch.tensor([list(ids)], dtype=torch.long, device=self.model.device)
                output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **self._last_only)
            cache = output.past_key_values
            logits: NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
            return logits

        yield from stream_pieces(run(prompt), lambda token: run([token]), self.tokenizer, self._ends, options)

    def time_request(self, prompt: Sequence[int], new_tokens: int) -> TimedRequest:
        check_answer_fits(prompt, GenerationOptions(new_tokens), self.context_length)
        answers, times = serve_greedy(self.model, [prompt], new_tokens, self._last_only, clock_of(self.device))
        return TimedRequest(answers[0], times[0], times[-1], tuple(times))

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
        check_batch_fits(prompts, new_tokens, self.context_length)
        answers, times = serve_greedy(self.model, prompts, new_tokens, self._last_only, clock_of(self.device))
        return TimedBatch(answers, times[0], times[-1])

    def cache_bytes(self, tokens: int) -> int | None:
        # Keys and values are what the linear layers give, in the type of the model's activations.
        config = self.model.config.get_text_config()
        return cache_bytes_of_config(config, self.model.dtype.itemsize, max(0, tokens - 1))

    def token_cost(self) -> TokenCost:
        cost = cost_of_model(self.model)
        # Without the limit every token of a prompt meets the output matrix.
        return cost if self._last_only else replace(cost, head_flops=0)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        import torch

        check_windows([[*ids, 0]], self.context_length + 1)
        with torch.inference_mode():
            tokens = torch.tensor([list(ids)], dtype=torch.long, device=self.model.device)
            rows = self.model(input_ids=tokens).logits[0, list(positions)]
            found: NDArray[np.float32] = rows.float().cpu().numpy()
        return found

    def sequence_logits(
        self, windows: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        check_windows(windows, self.context_length)
        return logits_of_windows(self.model, windows, batch_size, self.vocabulary)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np
        import torch

        encoded = encode_texts(self.tokenizer, texts, self.context_length)
        vectors = []
        with torch.inference_mode():
            for ids in encoded:
                tokens = torch.tensor([ids], dtype=torch.long, device=self.model.device)
                hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
                mean = hidden.float().mean(dim=0)
                vectors.append((mean / mean.norm().clamp_min(1e-12)).cpu().numpy())
        return np.stack(vectors) if vectors else np.empty((0, int(self.model.config.hidden_size)), dtype=np.float32)

    def memory(self) -> MemoryUse:
        import torch

        one = self.cache_bytes(2)
        if self._allocated_before is None:
            return MemoryUse(weights_bytes=self.weights_bytes, cache_bytes_per_token=one)
        peak = int(torch.cuda.max_memory_allocated(self.device)) - self._allocated_before
        return MemoryUse(weights_bytes=self.weights_bytes, device_peak_bytes=peak, cache_bytes_per_token=one)

    def close(self) -> None:
        import torch

        if self.model is None:
            return
        self.model = None
        if self.device.startswith("cuda"):
            gc.collect()  # what is in a reference cycle still holds its memory
            torch.cuda.empty_cache()

    def _rows(self, asked: int, positions: int) -> int:
        """Rows of a batch whose logits stay below 512 MB."""
        return max(1, min(asked, _LOGIT_BYTES // (4 * self.vocabulary * positions)))


class _StopStrings:
    """Ends a row of a batch once its answer contains a stop string, and knows where: padding follows."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: int) -> None:
        self._tokenizer, self._stops, self._prompt = tokenizer, [stop for stop in stops if stop], prompt
        # A token is a byte or more, so that many tokens hold any stop string; a few more for special ones.
        self._tail = max((len(stop.encode()) for stop in self._stops), default=0) + 4
        self._ended: dict[int, int] = {}

    def end(self, row: int) -> int | None:
        """Tokens of a row, prompt and its padding included, once a stop string ended it; None when none did."""
        return self._ended.get(row)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        done = [False] * len(input_ids)
        if self._stops:
            tail = input_ids[:, max(self._prompt, input_ids.shape[1] - self._tail) :]
            texts = self._tokenizer.batch_decode(tail, skip_special_tokens=True)
            done = [any(stop in text for stop in self._stops) for text in texts]
            for row in (row for row, stopped in enumerate(done) if stopped):
                self._ended.setdefault(row, input_ids.shape[1])
        return torch.tensor(done, device=input_ids.device)


def _forget_generation_defaults(model: Any) -> None:
    """Keep of the folder's generation configuration the special tokens alone.

    transformers fills whatever a call leaves open from it, such as a repetition penalty, even where the call brings a
    configuration of its own; answers of different folders and engines could not be compared.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    if own is not None:
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
        )


def _restart_peak(device: str) -> int | None:
    """Begin a new peak of the CUDA allocator; what it holds now, None on a CPU."""
    import torch

    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _context_length(config: Any) -> int:
    """Longest sequence the positions allow; 2048 where the configuration does not say."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if value := getattr(config, name, None):
            return int(value)
    return 2048
