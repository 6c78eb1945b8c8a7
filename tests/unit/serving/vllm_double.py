"""What the server uses of vLLM 0.33, on a model that numpy computes: the tests' double of ``LLMEngine``.

Faithful in what matters to its caller: chunked prefill (steps without outputs), cumulative outputs that share one
growing list unless ``DELTA`` is asked for, the token that stopped an answer among its tokens, log-probabilities before
temperature with the chosen token first, schemas by llguidance as vLLM's ``guidance`` backend compiles them, and checks
of a request before it is taken.

``python -m tests.unit.serving.vllm_double FD FOLDER OPTIONS`` serves a folder with it over a socket.
"""

from __future__ import annotations

import enum
import math
import socket
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

GPU_BYTES = 8_000_000_000
POISON = [13, 13, 13]
"""A prompt that breaks the step which reads it."""
EXHAUSTING = [14, 14, 14]
"""A prompt for which a step finds no memory."""

Logits = Callable[[Sequence[int]], Any]


class VLLMValidationError(Exception):
    """No ValueError."""


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    json: str | dict[str, Any] | None = None


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        if 0 < self.temperature < 1e-2:
            self.temperature = 1e-2
        if self.seed == -1:
            self.seed = None
        if not math.isfinite(self.temperature) or not 0 <= self.temperature <= 2:
            raise VLLMValidationError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise VLLMValidationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise VLLMValidationError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if self.temperature < 1e-5:
            self.top_p = 1.0


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class _Request:
    ids: list[int]
    params: SamplingParams
    generator: np.random.Generator
    matcher: Any = None
    read: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


class LLMEngine:
    """Args: ``logits`` of a sequence; requests at once; tokens of prompts a step; tokens a request and step."""

    def __init__(
        self,
        logits: Logits,
        *,
        max_num_seqs: int = 4,
        max_model_len: int = 2048,
        chunk: int = 8,
        burst: int = 1,
        end: int | None = None,
        vocabulary: Any = None,
    ) -> None:
        self._logits, self._seqs, self._length = logits, max_num_seqs, max_model_len
        self._chunk, self._burst, self._end, self._vocabulary = chunk, burst, end, vocabulary
        self.requests: dict[str, _Request] = {}
        self.aborted: list[str] = []
        self.most = 0
        self.ended_with: dict[str, str] = {}
        """Reasons that a test wants a request's next step to end with."""
        self.model_config = types.SimpleNamespace(max_model_len=max_model_len, get_vocab_size=lambda: len(logits([0])))

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> LLMEngine:
        from llguidance.hf import from_tokenizer
        from transformers import AutoTokenizer

        if Path(arguments.model).name == "needs-memory":
            raise ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`")
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
        assert arguments.structured_outputs_config.backend == "guidance"
        return cls(
            random_logits(len(tokenizer), float(arguments.seed)),
            max_num_seqs=arguments.max_num_seqs,
            max_model_len=arguments.max_model_len or 512,
            end=tokenizer.eos_token_id,
            vocabulary=from_tokenizer(tokenizer, len(tokenizer)),
        )

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams) -> str:
        ids = prompt["prompt_token_ids"]
        if not isinstance(request_id, str) or not isinstance(ids, list) or not isinstance(params, SamplingParams):
            raise TypeError("a request must be a name, a TokensPrompt and SamplingParams")
        if not ids or len(ids) >= self._length:
            raise VLLMValidationError(f"The prompt (length {len(ids)}) must be shorter than {self._length}")
        request = _Request(ids, params, np.random.default_rng(params.seed))
        if params.structured_outputs is not None:
            request.matcher = self._compile(params.structured_outputs.json)
        self.requests[request_id] = request
        return f"{request_id}-internal"

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            if self.requests.pop(name, None) is not None:
                self.aborted.append(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[RequestOutput]:
        outputs, room = [], self._chunk
        self.most = max(self.most, len(self.requests))
        for name, request in list(self.requests.items())[: self._seqs]:
            if request.ids == POISON:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if request.ids == EXHAUSTING:
                raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            part = min(room, len(request.ids) - request.read)
            request.read, room = request.read + part, room - part
            if request.read < len(request.ids):
                continue
            output = self._advance(name, request)
            if output is not None:
                outputs.append(output)
        return outputs

    def _advance(self, name: str, request: _Request) -> RequestOutput | None:
        before, reason = len(request.tokens), self.ended_with.pop(name, None)
        for _ in range(self._burst):
            if reason is None:
                reason = self._sample(request)
        if reason is not None:
            del self.requests[name]
        kind, count = request.params.output_kind, len(request.tokens) - before
        if kind is RequestOutputKind.FINAL_ONLY and reason is None:
            return None
        entries: list[dict[int, Logprob]] | None = request.logprobs if request.params.logprobs is not None else None
        tokens = request.tokens
        if kind is RequestOutputKind.DELTA:
            tokens = tokens[before:]
            entries = entries and (entries[-count:] if count else [])
        return RequestOutput(name, [CompletionOutput(0, "", tokens, entries, reason)], reason is not None)

    def _sample(self, request: _Request) -> str | None:
        params, logits = request.params, np.array(self._logits([*request.ids, *request.tokens]), dtype=np.float64)
        if request.matcher is not None:
            bits = np.unpackbits(np.frombuffer(request.matcher.compute_bitmask(), np.uint8), bitorder="little")
            logits[bits[: len(logits)] == 0] = -np.inf
        shifted = logits - logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        token = int(logits.argmax()) if params.temperature == 0 else _draw(logprobs, params, request.generator)
        request.tokens.append(token)
        if params.logprobs is not None:
            likely = [int(item) for item in np.argsort(-logprobs, kind="stable")[: params.logprobs]]
            rank = int((logprobs >= logprobs[token]).sum())
            ranks = zip([token, *likely], [rank, *range(1, len(likely) + 1)], strict=True)
            request.logprobs.append({item: Logprob(float(logprobs[item]), place) for item, place in ranks})
        if (token == self._end and not params.ignore_eos) or token in (params.stop_token_ids or ()):
            return "stop"
        if request.matcher is not None:
            request.matcher.consume_token(token)
        full = len(request.ids) + len(request.tokens) >= self._length
        return "length" if full or len(request.tokens) == params.max_tokens else None

    def _compile(self, schema: Any) -> Any:
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": True})
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise VLLMValidationError(f"Grammar error: {matcher.get_error()}")
        return matcher


def _draw(logprobs: Any, params: SamplingParams, generator: np.random.Generator) -> int:
    """As vLLM's sampler for its graphs does: an exponential race over the nucleus."""
    scaled = np.exp(logprobs / params.temperature)
    order = np.argsort(-scaled, kind="stable")
    share = np.cumsum(scaled[order]) / scaled.sum()
    scaled[order[1:][share[:-1] >= params.top_p]] = 0
    return int((scaled / generator.exponential(size=len(scaled))).argmax())


def random_logits(words: int, scale: float = 0.0) -> Logits:
    """Logits that depend on the whole sequence."""
    return lambda ids: np.random.default_rng([len(ids), *ids]).normal(size=words).astype(np.float32) * (3 + scale)


@dataclass(kw_only=True)
class EngineArgs:
    model: str
    tokenizer: str
    structured_outputs_config: Any
    trust_remote_code: bool = False
    gpu_memory_utilization: float = 0.92
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    max_logprobs: int = 20
    disable_log_stats: bool = False
    seed: int = 0


def install(modules: dict[str, Any]) -> None:
    """Put this double where ``import vllm`` finds it."""
    this = sys.modules[__name__]
    package, config = types.ModuleType("vllm"), types.ModuleType("vllm.config")
    package.__dict__.update(LLMEngine=LLMEngine, EngineArgs=EngineArgs)
    package.__spec__ = ModuleSpec("vllm", None)
    config.__dict__.update(StructuredOutputsConfig=types.SimpleNamespace)
    modules.update({"vllm": package, "vllm.config": config, "vllm.sampling_params": this})


if __name__ == "__main__":
    import torch

    from agentic_compression.serving.worker import run_worker

    install(sys.modules)
    torch.cuda.is_available = lambda: True
    torch.cuda.mem_get_info = lambda: (GPU_BYTES * 3 // 4, GPU_BYTES)  # type: ignore[assignment]
    run_worker(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
