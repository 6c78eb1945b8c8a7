"""vLLM as an engine of the server, on an NVIDIA GPU. Used only when asked for by name (``ACF_SERVE_ENGINE=vllm``).

Written against vLLM 0.33 (``LLMEngine.add_request``, ``step`` and ``abort_request``; Kwon et al. 2023, arXiv
2309.06180), read in its sources and never run: the tests drive it with a double of that engine. vLLM batches by itself,
so jobs go to it one by one and tokens come back; the text, stop strings and finish reasons are made of the tokens as
for the other engines. Where it differs from them:

* an engine takes a fixed share of the GPU's memory when it loads (``EngineOptions.gpu_share``), whatever its model
  needs;
* a seed repeats an answer of vLLM, but not that of another engine; temperatures below 0.01 are raised to it;
* schemas are kept by vLLM's own use of llguidance, with the same options as ours. Log-probabilities are then those of
  what the schema allows, and an answer that is complete with the last token it may have ends with ``length``;
* it either generates or embeds, and here it generates;
* once a step fails, vLLM's state is not known any more: its requests fail, and the engine's process ends.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
import traceback
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agentic_compression.checkpoints.folders import weight_files
from agentic_compression.errors import AcfError, CompressionError, ModelError, UnavailableError
from agentic_compression.runtimes.select import runtime_version
from agentic_compression.runtimes.tokenizer import end_ids, load_tokenizer
from agentic_compression.runtimes.vllm_runtime import require_vllm
from agentic_compression.runtimes.vllm_schemes import check_vllm_loads
from agentic_compression.serving.batching import Emit, Job, JobQueue, failure_event, text_of
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.loading import LoadedModel, cache_cells
from agentic_compression.serving.schema_trial import SCHEMA_OPTIONS

__all__ = ["VllmScheduler", "open_vllm", "require_vllm", "sampling_of"]

_NAP_S = 0.0005
_MOST_LOGPROBS = 20
_OVER = object()


class VllmScheduler(JobQueue):
    """See ``JobScheduler``.

    Args:
        engine: vLLM's ``LLMEngine``. Used from the thread of ``run`` alone.
        sampling: the module ``vllm.sampling_params``.
        tokenizer: for the text of tokens whose log-probabilities are asked for.
        places: jobs that vLLM has at once.
        emit: see ``Scheduler``.
        queue: jobs that may wait besides.
    """

    def __init__(self, engine: Any, sampling: Any, tokenizer: Any, places: int, emit: Emit, queue: int = 256) -> None:
        super().__init__()
        self._engine, self._sampling, self._tokenizer = engine, sampling, tokenizer
        self._emit, self._queue, self._places = emit, queue, places
        self._running: dict[str, Job] = {}
        """By the name that vLLM knows them under."""
        self._told = (0, 0)

    def has_room(self) -> bool:
        """See ``JobScheduler``."""
        with self._changed:
            return len(self._waiting) + len(self._tasks) + len(self._running) < self._queue + self._places

    def cancel(self, key: int) -> None:
        """See ``JobScheduler``."""
        with self._changed:
            for job in (*self._waiting, *self._running.values()):
                if job.key == key:
                    job.cancelled = True
            self._tasks = deque(item for item in self._tasks if item[0] != key)
            self._changed.notify()

    def step(self) -> None:
        """Hand over what waits, let vLLM make a step, and tell what came of it."""
        events: list[dict[str, Any]] = []
        try:
            self._drop()
            self._admit(events)
            if self._running:
                self._advance(events)
        except Exception as error:  # whatever vLLM raises here leaves it in a state that nobody knows
            traceback.print_exc()
            events += [failure_event(job, error) for job in self._running.values()]
            with self._changed:
                self._running.clear()
            self.close()
        counts = len(self._running), len(self._waiting)
        if events or counts != self._told:
            self._told = counts
            self._emit(events, *counts)
        self._work()

    def _drop(self) -> None:
        """Forget cancelled jobs, in vLLM too."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            names = [name for name, job in self._running.items() if job.cancelled]
        self._leave(names)
        self._abort(names)

    def _admit(self, events: list[dict[str, Any]]) -> None:
        while True:
            with self._changed:
                if not self._waiting or len(self._running) >= self._places:
                    return
                job = self._waiting.popleft()
                name = str(job.key)
                self._running[name] = job
            try:
                params = sampling_of(self._sampling, job)
                self._engine.add_request(name, {"prompt_token_ids": list(job.ids)}, params)
            except Exception as error:  # it checks a request before it takes it, so that the others go on
                self._leave([name])
                self._abort([name])
                events.append(_refusal(job, error) if _is_refusal(error) else failure_event(job, error))

    def _advance(self, events: list[dict[str, Any]]) -> None:
        outputs = self._engine.step()
        ended = []
        for output in outputs:
            job = self._running.get(output.request_id)
            if job is None:
                continue
            told = self._read(job, output)
            events += told
            if told and ("error" in told[-1] or told[-1]["finish"] is not None):
                self._leave([output.request_id])
                if not output.finished:
                    ended.append(output.request_id)
        self._abort(ended)
        if not outputs:  # it reads a long prompt, or waits for a schema to be compiled
            time.sleep(_NAP_S)

    def _read(self, job: Job, output: Any) -> list[dict[str, Any]]:
        """What is told of an output: its new tokens (``RequestOutputKind.DELTA``), up to the one that ends the job."""
        answer, events = output.outputs[0], []
        reason = answer.finish_reason if output.finished else None
        if reason not in (None, "stop", "length"):
            return [failure_event(job, CompressionError(f"vLLM must answer the request, got {reason!r} in its place"))]
        tokens = [int(token) for token in answer.token_ids]
        entries = answer.logprobs if job.top_logprobs is not None else None
        for place, token in enumerate(tokens):
            try:
                entry = None if entries is None else entries[place]
                events.append(self._token(job, token, entry, reason if place == len(tokens) - 1 else None))
            except AcfError as error:
                return [*events, failure_event(job, error)]
            if events[-1]["finish"] is not None:
                return events
        if reason is not None:  # an end without a token of its own
            events.append({"id": job.key, "text": job.text.finish(), "finish": reason})
        return events

    def _token(self, job: Job, token: int, entry: Mapping[int, Any] | None, reason: str | None) -> dict[str, Any]:
        """The job's next token: the same order of questions as ``Scheduler`` asks."""
        job.answered += 1
        event: dict[str, Any] = {"id": job.key, "finish": None}
        if token in job.ends:
            return event | {"text": job.text.finish(), "finish": "stop"}
        shown, stopped = job.text.push(token)
        if stopped:
            event["finish"] = "stop"
        elif reason is not None or job.answered == job.options.new_tokens:
            shown += job.text.finish()
            event["finish"] = reason or "length"
        event["text"] = shown
        if entry is not None and job.top_logprobs is not None:
            event["logprobs"] = _log_probabilities(entry, token, job.top_logprobs, self._tokenizer)
        return event

    def _leave(self, names: list[str]) -> None:
        with self._changed:
            for name in names:
                del self._running[name]

    def _abort(self, names: list[str]) -> None:
        if names:
            self._engine.abort_request(names)

    def _work(self) -> None:
        """One piece of the oldest task."""
        with self._changed:
            current = self._tasks[0] if self._tasks else None
        if current is not None and next(current[1], _OVER) is _OVER:
            with self._changed:
                self._tasks = deque(item for item in self._tasks if item is not current)


def sampling_of(sampling: Any, job: Job) -> Any:
    """A job's ``SamplingParams``.

    Args:
        sampling: the module ``vllm.sampling_params``.
        job: with token ids as its prompt.
    """
    shape = None
    if job.schema is not None:  # a schema may carry options for its compiler, and those are not the client's to set
        bounded = {**json.loads(job.schema), "x-guidance": dict(SCHEMA_OPTIONS)}
        shape = sampling.StructuredOutputsParams(json=json.dumps(bounded))
    return sampling.SamplingParams(
        max_tokens=job.options.new_tokens,
        temperature=max(0.0, job.options.temperature),
        top_p=job.options.top_p,
        seed=job.options.seed,
        stop_token_ids=sorted(job.ends),
        ignore_eos=True,  # its own idea of the tokens that end an answer; ours are all named above
        logprobs=job.top_logprobs,
        detokenize=False,
        structured_outputs=shape,
        output_kind=sampling.RequestOutputKind.DELTA,
    )


def _is_refusal(error: Exception) -> bool:
    """Whether vLLM found fault with the request: an error of its own, or the ValueError of older versions."""
    return isinstance(error, ValueError) or type(error).__name__ == "VLLMValidationError"


def _refusal(job: Job, error: Exception) -> dict[str, Any]:
    """What is told of a job that vLLM does not take. Of what it looks at, only schemas were not checked before."""
    code, param = ("invalid_prompt", None) if job.schema is None else ("invalid_json_schema", "response_format")
    return {"id": job.key, "error": "prompt", "message": str(error)[:500], "code": code, "param": param}


def _log_probabilities(entry: Mapping[int, Any], token: int, top: int, tokenizer: Any) -> list[Any]:
    """See ``batching.log_probabilities``. vLLM gives the ``top`` most likely tokens, and the chosen one besides."""
    chosen = float(entry[token].logprob)
    if math.isnan(chosen):
        raise CompressionError(
            "the checkpoint's logits must be numbers, got NaN; the compression broke the model: use another checkpoint"
        )
    likely = sorted(((float(item.logprob), other) for other, item in entry.items()), key=lambda pair: -pair[0])[:top]
    named = [[text_of(tokenizer, other), value] for value, other in likely if math.isfinite(value)]
    return [text_of(tokenizer, token), chosen, named]


def open_vllm(folder: Path, options: EngineOptions) -> LoadedModel:
    """Load a folder of safetensors into an engine of vLLM's, in this process.

    Raises:
        UnavailableError: when vLLM is not installed or cannot be imported, or when there is no GPU.
        ModelError: when vLLM cannot load the folder.
        MemoryError: when the GPU has less memory free than the share that it is to take, or that is too little.
    """
    check_vllm_loads(folder)
    require_vllm(options.device)
    _require_memory(options)
    tokenizer = load_tokenizer(folder)
    # In a process of its own, vLLM's core would outlive this one when it is killed, and its memory be nobody's.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        vllm, sampling = importlib.import_module("vllm"), importlib.import_module("vllm.sampling_params")
    except ImportError as error:
        raise UnavailableError(f"vllm is not available, because it cannot be imported: {error}; repair it") from error
    engine = _start(vllm, folder, options)
    config = engine.model_config
    vocabulary, context = int(config.get_vocab_size()), int(config.max_model_len)
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"{folder} must have a token for each of the tokenizer's {len(tokenizer)}, got {vocabulary}; "
            "model and tokenizer do not belong together"
        )
    return LoadedModel(
        engine=runtime_version("vllm"),
        device=options.device,
        tokenizer=tokenizer,
        ends=end_ids(tokenizer, folder),
        context_length=context,
        weights_bytes=sum(file.stat().st_size for file in weight_files(folder)),
        places=options.slots,
        cells=cache_cells(options, context),
        batched=True,
        embedder=None,
        open_scheduler=partial(VllmScheduler, engine, sampling, tokenizer, options.slots),
    )


def _require_memory(options: EngineOptions) -> None:
    """That there is a GPU which vLLM will take, and that its share is free."""
    import torch

    if options.device not in ("cuda", "cuda:0"):
        raise UnavailableError(
            f"vllm takes the first GPU that it sees, got {options.device}; choose it by CUDA_VISIBLE_DEVICES and use "
            "device: cuda"
        )
    if not torch.cuda.is_available():
        raise UnavailableError(
            "vllm is not available, because torch sees no GPU; use a machine with an NVIDIA GPU, or another engine"
        )
    free, total = torch.cuda.mem_get_info()
    if free < options.gpu_share * total:
        raise MemoryError(
            f"vLLM must find {options.gpu_share:.0%} of the GPU's memory free, {options.gpu_share * total / 1e6:.0f} "
            f"MB, got {free / 1e6:.0f} MB; lower ACF_SERVE_GPU_SHARE"
        )


def _start(vllm: Any, folder: Path, options: EngineOptions) -> Any:
    shapes = importlib.import_module("vllm.config").StructuredOutputsConfig(backend="guidance")
    arguments: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "trust_remote_code": False,
        "gpu_memory_utilization": options.gpu_share,
        "max_num_seqs": options.slots,
        "max_logprobs": _MOST_LOGPROBS,
        "structured_outputs_config": shapes,
        "disable_log_stats": True,
        "seed": 0,
    }
    try:
        if options.cache_tokens:
            arguments["max_model_len"] = _context_of(folder, options)
        return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
    except Exception as error:  # its own kinds and those of torch, which say what is wrong in words only
        text = f"{type(error).__name__}: {error}"
        if "memory" in text.lower() or "OutOfMemory" in text:
            raise MemoryError(
                f"{folder} must fit {options.gpu_share:.0%} of the GPU's memory in vLLM, got {text[:400]}; raise "
                "ACF_SERVE_GPU_SHARE, or lower ACF_SERVE_CACHE_TOKENS to shorten the context"
            ) from error
        raise ModelError(
            f"vLLM must be able to load {folder}, got {text[:400]}; serve it without naming an engine"
        ) from error


def _context_of(folder: Path, options: EngineOptions) -> int:
    """The model's context, or the cache asked for where that is less: vLLM wants memory for a whole context."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    context = int(getattr(config, "max_position_embeddings", 0) or options.cache_tokens)
    return min(context, cache_cells(options, context))
