"""Memory: how much a fresh process grows, at its peak, to load a checkpoint and serve one request.

Each repetition is a process of its own, forked before this process computes anything (an OpenMP runtime does
not survive a fork), or a child of a fresh interpreter where that is too late. In it:

1. a throwaway checkpoint of a few kilobytes is loaded and runs once, so that the runtime's own pages (libraries,
   loader, thread pools: some 45 MB that every candidate would pay alike) are in memory;
2. free heap is given back, the resident size is read, and the kernel's peak is reset (``/proc/self/clear_refs``);
3. the checkpoint is loaded and serves the latency workload once;
4. the peak (``VmHWM``) minus the size of step 2 is one observation. Pages of a memory-mapped weights file count
   as soon as they are touched, as they must: they have to be resident to serve.

On a GPU the observation is the CUDA allocator's peak above its size before loading. Where the peak cannot be
reset (no ``/proc``) it is the process's lifetime peak minus the size before loading: an upper bound.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from agentic_compression.errors import CompressionError
from agentic_compression.evaluation.intervals import mean_estimate
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import EvaluationSettings, MemoryMeasurement, Record

__all__ = ["MemoryProbe", "Observation", "measure_memory", "observe", "peak_bytes", "reset_peak", "resident_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryProbe(Record):
    """What one repetition loads and serves."""

    path: str
    device: str
    threads: int
    settings: EvaluationSettings


class Observation(Record):
    """One repetition, in bytes."""

    growth: int
    peak_rss: int
    weights: int
    device_peak: int | None = None
    peak_was_reset: bool = True


def measure_memory(probe: MemoryProbe, repeats: int, progress: Progress = no_progress) -> MemoryMeasurement:
    """Run the repetitions and put them together: mean, Student's t interval, the largest whole process.

    Raises:
        MemoryError: when a repetition ran out of memory.
        CompressionError: when a repetition failed; with its reason.
    """
    if _may_fork():
        gc.freeze()  # the children then write to fewer shared pages
        observations = []
        for number in range(repeats):
            observations.append(_read_answer(_fork_and_observe(probe)))
            progress("memory", number + 1, repeats)
    else:
        observations = _observe_in_new_interpreter(probe, repeats)
        progress("memory", repeats, repeats)
    peaks = [item.device_peak for item in observations if item.device_peak is not None]
    return MemoryMeasurement(
        peak_growth_bytes=mean_estimate([item.growth for item in observations]),
        peak_rss_bytes=max(item.peak_rss for item in observations),
        weights_bytes=max(item.weights for item in observations),
        device_peak_bytes=max(peaks) if peaks else None,
    )


def observe(probe: MemoryProbe) -> Observation:
    """Steps 1 to 4 in this very process; meant for a fresh one."""
    import torch

    from agentic_compression.evaluation.loading import load_model
    from agentic_compression.evaluation.workload import Server, build_workload, make_clock

    on_gpu = probe.device.startswith("cuda")
    torch.set_num_threads(probe.threads)
    _start_runtime(probe.device)
    _give_back_heap()
    device_before = _device_bytes(probe.device) if on_gpu else 0
    before, was_reset = resident_bytes(), reset_peak()
    loaded = load_model(probe.path, probe.device)
    with torch.inference_mode():
        server = Server(loaded.model, build_workload(loaded, probe.settings), make_clock(probe.device))
        server.serve()
    peak = peak_bytes()
    device_peak = int(torch.cuda.max_memory_allocated(probe.device)) if on_gpu else None
    return Observation(
        growth=max(0, peak - before) if device_peak is None else device_peak - device_before,
        peak_rss=peak,
        weights=loaded.weights_bytes,
        device_peak=device_peak,
        peak_was_reset=was_reset,
    )


def resident_bytes() -> int:
    """This process's resident set now."""
    import psutil

    status = _status_bytes("VmRSS")
    return status if status is not None else int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Begin a new peak of the resident set; False where the kernel cannot."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The peak of the resident set since the last reset, or over the process's life where there is no reset."""
    status = _status_bytes("VmHWM")
    if status is not None:
        return status
    import resource

    lifetime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return lifetime if sys.platform == "darwin" else lifetime * 1024


def _status_bytes(field: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _device_bytes(device: str) -> int:
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _start_runtime(device: str) -> None:
    """Save, load and run throwaway checkpoints, dense in both common dtypes and packed at both code widths.

    What a candidate loads by another code path (packed layers, low-rank ones) must not count against it.
    """
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from agentic_compression.checkpoints import CheckpointOrigin, preload_runtime, save_checkpoint
    from agentic_compression.evaluation.loading import load_model

    preload_runtime()
    shape = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    words = models.WordLevel({"a": 0}, unk_token="a")  # noqa: S106
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    prompt = torch.ones(1, 160, dtype=torch.long, device=device)
    for dtype, bits in ((torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 4), (torch.bfloat16, 8)):
        throwaway = LlamaForCausalLM(shape).to(dtype)
        if bits:
            _pack_linears(throwaway, bits)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "throwaway"
            save_checkpoint(throwaway, tokenizer, path, CheckpointOrigin())
            model = load_model(str(path), device).model
        with torch.inference_mode():
            model(input_ids=prompt, use_cache=False)  # many rows at once take another path in packed layers
            output = model(input_ids=prompt[:, :16], use_cache=True)
            model(input_ids=prompt[:, :1], past_key_values=output.past_key_values, use_cache=True)


def _pack_linears(model: Any, bits: int) -> None:
    """Replace every linear layer of the blocks by a packed one with random codes."""
    import torch
    from torch import nn

    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.checkpoints.quantized import QuantizedTensor

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.Linear):
                    groups = module.in_features // 64
                    codes = torch.randint(low, high, module.weight.shape).to(torch.int8)
                    scale = torch.full((module.out_features, groups), 0.01, dtype=torch.bfloat16)
                    zero = torch.zeros((module.out_features, groups), dtype=torch.int8)
                    setattr(parent, name, PackedLinear(QuantizedTensor(codes, scale, zero, bits)))


def _give_back_heap() -> None:
    """Return free heap pages to the system, so that loading cannot hide in them (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _may_fork() -> bool:
    """Whether a fork is safe: one thread only, and CUDA not started."""
    torch = sys.modules.get("torch")
    if not hasattr(os, "fork") or (torch is not None and torch.cuda.is_initialized()):
        return False
    tasks = Path("/proc/self/task")
    return tasks.is_dir() and len(list(tasks.iterdir())) == 1


def _fork_and_observe(probe: MemoryProbe) -> str:
    """One repetition in a forked child; its answer as JSON, an error included."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(probe, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer:
        return answer
    kind = "MemoryError" if code == -signal.SIGKILL else "ChildProcessError"
    return json.dumps({"error": f"the process that loads the checkpoint ended with code {code}", "kind": kind})


def _answer(probe: MemoryProbe, writer: int) -> NoReturn:
    """The forked child: observe, write one JSON object, leave without running anybody's exit handlers."""
    code = 1
    try:
        answer: dict[str, Any] = observe(probe).model_dump()
        code = 0
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": str(error), "kind": type(error).__name__}
    try:
        os.write(writer, json.dumps(answer).encode()[:60_000])
    finally:
        os._exit(code)


def _observe_in_new_interpreter(probe: MemoryProbe, repeats: int) -> list[Observation]:
    """For a process that already computes with threads: a new interpreter imports torch once and forks."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "agentic_compression.evaluation.memory", str(repeats)],
        input=probe.model_dump_json(),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    lines = ran.stdout.splitlines()
    if len(lines) != repeats:
        raise CompressionError(f"measuring memory in a new interpreter failed: {ran.stderr.strip()[-500:]}")
    return [_read_answer(line) for line in lines]


def _read_answer(answer: str) -> Observation:
    values = json.loads(answer)
    if "error" in values:
        if values["kind"] in {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in values["error"]:
            raise MemoryError(values["error"])
        raise CompressionError(f"loading and serving the checkpoint failed: {values['kind']}: {values['error']}")
    return Observation.model_validate(values)


def _main() -> None:
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    probe = MemoryProbe.model_validate_json(sys.stdin.read())
    for _ in range(int(sys.argv[1])):
        print(_fork_and_observe(probe), flush=True)


if __name__ == "__main__":
    _main()
