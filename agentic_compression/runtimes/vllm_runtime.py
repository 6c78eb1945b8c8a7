"""Checkpoints of safetensors through vLLM, for serving on an NVIDIA GPU. Used only when asked for by name.

Written against vLLM's public interface (``LLM``, ``SamplingParams``, ``TokensPrompt``, ``LLMEngine.add_request`` and
``step``; Kwon et al. 2023, arXiv 2309.06180). No test runs it: vLLM needs a GPU and a build of torch for it, which the
machines of this project's tests do not have. Where it differs from the other runtimes:

* a prompt is scored by ``prompt_logprobs``, and vLLM always generates a token after it, so the longest sequence is two
  tokens shorter than the model's context;
* ``logits`` gives log-probabilities, which is what vLLM returns;
* it sets aside a fixed share of the GPU's memory for its cache, so ``memory`` says what it took, not what it needs;
* an engine either generates or embeds: ``embed`` is not offered.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentic_compression.checkpoints.folders import weight_files
from agentic_compression.errors import ModelError, UnavailableError
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
from agentic_compression.runtimes.token_costs import cache_bytes_of_config, cost_of_safetensors
from agentic_compression.runtimes.tokenizer import bos_of, end_ids, load_tokenizer
from agentic_compression.runtimes.vllm_schemes import check_vllm_loads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["VllmRuntime"]


class VllmRuntime:
    """A model that vLLM runs. See ``Runtime`` for the methods.

    Args:
        path: checkpoint folder that plain transformers can read.
        device: ``cuda:0``; others are chosen with ``CUDA_VISIBLE_DEVICES``.

    Raises:
        UnavailableError: when vLLM is not installed or there is no GPU.
        ModelError: when vLLM cannot load the folder; what our manifest tells is checked before vLLM is loaded.
    """

    name = "vllm"

    def __init__(self, path: str | Path, *, device: str = "cuda:0") -> None:
        folder = Path(path)
        check_vllm_loads(folder)
        require_vllm(device)
        import torch

        self._vllm: Any = importlib.import_module("vllm")
        self.tokenizer: Any = load_tokenizer(folder)
        self._free_before = int(torch.cuda.mem_get_info()[0])
        try:
            # Without prefix caching, or the second of two equal timed requests would have no prefill.
            self._llm: Any = self._vllm.LLM(
                model=str(folder),
                tokenizer=str(folder),
                trust_remote_code=False,
                enable_prefix_caching=False,
                max_logprobs=-1,
                seed=0,
            )
        except (ValueError, RuntimeError, OSError, KeyError, NotImplementedError) as error:
            raise ModelError(
                f"vLLM must be able to load {folder}, got {type(error).__name__}: {error}; "
                "use a checkpoint whose loads_with names transformers"
            ) from error
        config = self._llm.llm_engine.model_config
        self.device = device
        self.clock: Literal["perf_counter", "cuda_events"] = "perf_counter"
        self.vocabulary = int(config.get_vocab_size())
        self.context_length = int(config.max_model_len) - 2
        self.bos = bos_of(self.tokenizer)
        self._ends = end_ids(self.tokenizer, folder)
        self._files = weight_files(folder)
        self.weights_bytes = sum(file.stat().st_size for file in self._files)
        self._numbers = itertools.count()

    def score(self, pairs: Sequence[TokenPair], batch_size: int, report: Report = ignore) -> list[tuple[float, bool]]:
        check_pairs(pairs, self.context_length)
        answers = []
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            scored = self._score([[*context, *rest] for context, rest in batch])
            for (context, _), (likelihoods, hits) in zip(batch, scored, strict=True):
                begin = len(context) - 1
                answers.append((sum(likelihoods[begin:]), all(hits[begin:])))
            report(len(batch))
        return answers

    def score_documents(
        self, windows: Sequence[Sequence[int]], batch_size: int, report: Report = ignore
    ) -> list[DocumentScore]:
        check_windows(windows, self.context_length)
        scores = []
        for start in range(0, len(windows), batch_size):
            batch = [list(window) for window in windows[start : start + batch_size]]
            scores += [document_score(-sum(likelihoods), hits) for likelihoods, hits in self._score(batch)]
            report(len(batch))
        return scores

    def _score(self, sequences: list[list[int]]) -> list[tuple[list[float], list[bool]]]:
        """Log-probability of every token after the first, and whether it was the most likely one."""
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        found = []
        for output, ids in zip(self._run(sequences, params), sequences, strict=True):
            tokens = [entry[token] for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
            found.append(([float(item.logprob) for item in tokens], [item.rank == 1 for item in tokens]))
        return found

    def generate(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, batch_size: int, report: Report = ignore
    ) -> list[Completion]:
        for prompt in prompts:
            check_answer_fits(prompt, options, self.context_length)
        answers = []
        for start in range(0, len(prompts), batch_size):
            batch = [list(prompt) for prompt in prompts[start : start + batch_size]]
            for output in self._run(batch, self._sampling(options)):
                ids = [int(token) for token in output.outputs[0].token_ids]
                if ids and ids[-1] in self._ends | set(options.stop_ids):
                    ids.pop()
                answers.append(Completion(ids=ids, text=output.outputs[0].text))
            report(len(batch))
        return answers

    def stream(self, prompt: Sequence[int], options: GenerationOptions) -> Iterator[Piece]:
        check_answer_fits(prompt, options, self.context_length)
        return self._stream(prompt, self._sampling(options, delta=True))

    def _stream(self, prompt: Sequence[int], params: Any) -> Iterator[Piece]:
        for output in self._steps(prompt, params):
            answer = output.outputs[0]
            ids = [int(token) for token in answer.token_ids]
            for token in ids[:-1]:
                yield Piece(token, "")
            finish: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
            yield Piece(ids[-1] if ids else -1, answer.text, finish if output.finished else None)

    def time_request(self, prompt: Sequence[int], new_tokens: int) -> TimedRequest:
        check_answer_fits(prompt, GenerationOptions(new_tokens), self.context_length)
        start = time.perf_counter()
        moments: list[float] = []
        tokens: list[int] = []
        for output in self._steps(prompt, self._fixed(new_tokens)):
            tokens = [int(token) for token in output.outputs[0].token_ids]
            moments += [time.perf_counter()] * (len(tokens) - len(moments))
        times = tuple((moment - start) * 1e3 for moment in moments)
        return TimedRequest(tokens, times[0], times[-1], times)

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
        check_batch_fits(prompts, new_tokens, self.context_length)
        engine, params = self._llm.llm_engine, self._fixed(new_tokens)
        names = [f"acf-{next(self._numbers)}" for _ in prompts]
        answers: dict[str, list[int]] = {}
        start, first = time.perf_counter(), 0.0
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, self._vllm.TokensPrompt(prompt_token_ids=list(prompt)), params)
        while engine.has_unfinished_requests():  # early answers go on while the last prompts are still read
            for output in engine.step():
                answers[output.request_id] = [int(token) for token in output.outputs[0].token_ids]
            if not first and all(answers.get(name) for name in names):
                first = time.perf_counter()
        end = time.perf_counter()
        return TimedBatch([answers[name] for name in names], (first - start) * 1e3, (end - start) * 1e3)

    def cache_bytes(self, tokens: int) -> int | None:
        engine = self._llm.llm_engine
        if engine.cache_config.cache_dtype not in ("auto", "bfloat16", "float16"):
            return None
        block = int(engine.cache_config.block_size)
        config = engine.model_config.hf_text_config
        return cache_bytes_of_config(config, engine.model_config.dtype.itemsize, -(-tokens // block) * block)

    def token_cost(self) -> TokenCost:
        dtype = str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")
        return cost_of_safetensors(self._files, dtype)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        check_windows([[*ids, 0]], self.context_length + 1)
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1, detokenize=False)
        (output,) = self._run([[*ids, 0]], params)  # the entry of a token is the distribution it was drawn from
        rows = np.empty((len(positions), self.vocabulary), dtype=np.float32)
        for row, position in enumerate(positions):
            for token, item in output.prompt_logprobs[position + 1].items():
                rows[row, token] = item.logprob
        return rows

    def sequence_logits(
        self, windows: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        check_windows(windows, self.context_length)
        return ((place, self.logits(window, range(len(window)))) for place, window in enumerate(windows))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise UnavailableError(
            "embeddings are not available, because a vLLM engine that generates cannot pool hidden states; "
            "open the checkpoint without asking for vllm"
        )

    def memory(self) -> MemoryUse:
        import torch

        taken = max(0, self._free_before - int(torch.cuda.mem_get_info()[0]))
        blocks = self.cache_bytes(1)
        one = None if blocks is None else blocks // int(self._llm.llm_engine.cache_config.block_size)
        return MemoryUse(weights_bytes=self.weights_bytes, device_peak_bytes=taken, cache_bytes_per_token=one)

    def close(self) -> None:
        import torch

        self._llm = None
        gc.collect()
        torch.cuda.empty_cache()

    def _fixed(self, new_tokens: int) -> Any:
        """A greedy answer of exactly so many tokens."""
        return self._vllm.SamplingParams(
            max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, temperature=0.0, detokenize=False
        )

    def _sampling(self, options: GenerationOptions, *, delta: bool = False) -> Any:
        kinds = importlib.import_module("vllm.sampling_params").RequestOutputKind
        return self._vllm.SamplingParams(
            max_tokens=options.new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            stop=list(options.stop_strings) or None,
            stop_token_ids=sorted(self._ends | set(options.stop_ids)),
            output_kind=kinds.DELTA if delta else kinds.FINAL_ONLY,
        )

    def _run(self, sequences: list[list[int]], params: Any) -> list[Any]:
        prompts = [self._vllm.TokensPrompt(prompt_token_ids=ids) for ids in sequences]
        outputs: list[Any] = self._llm.generate(prompts, params, use_tqdm=False)
        return outputs

    def _steps(self, prompt: Sequence[int], params: Any) -> Iterator[Any]:
        """The engine's outputs of one request, as they come; the request is dropped when the caller stops early."""
        engine, name = self._llm.llm_engine, f"acf-{next(self._numbers)}"
        engine.add_request(name, self._vllm.TokensPrompt(prompt_token_ids=list(prompt)), params)
        try:
            while engine.has_unfinished_requests():
                yield from (output for output in engine.step() if output.request_id == name)
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request([name])


def require_vllm(device: str) -> None:
    """Raise UnavailableError, with what to do, where vLLM cannot run."""
    advice = "install vllm on a machine with an NVIDIA GPU (pip install vllm) and use device: cuda"
    if importlib.util.find_spec("vllm") is None:
        raise UnavailableError(f"vllm is not available, because it is not installed; {advice}")
    if not device.startswith("cuda"):
        raise UnavailableError(f"vllm is not available, because the device is {device!r}; {advice}")
