"""Apply a strategy to a model and store the result under its content key."""

from __future__ import annotations

import gc
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agentic_compression.checkpoints import (
    AppliedStage,
    CheckpointOrigin,
    LoadedCheckpoint,
    checkpoint_ref,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
)
from agentic_compression.errors import AcfError, CompressionError, ModelError, StrategyError
from agentic_compression.methods.calibration import calibration_tokens
from agentic_compression.methods.growth import Growth
from agentic_compression.methods.interface import Compressed, CompressionContext, Method
from agentic_compression.methods.out_of_memory import is_out_of_memory, memory_errors
from agentic_compression.methods.prefixes import PREFIXES, discard, make_room, promote, set_aside, stored_prefix
from agentic_compression.methods.registry import get_method, search_space
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import (
    CheckpointRef,
    CompressionOutcome,
    Stage,
    StageTiming,
    Strategy,
    content_digest,
)

if TYPE_CHECKING:
    import torch

__all__ = ["compress", "content_key"]

_LONGEST = 8
_WORTH_KEEPING_SECONDS = 10.0
_CHECKED_AT_ONCE = 1 << 22


def compress(request: CompressionRequest, progress: Progress = no_progress) -> CompressionOutcome:
    """Apply the strategy's stages in order and save the result to ``<checkpoints_root>/<content key>/``.

    A complete folder of that key is returned at once with ``cached=True``. The baseline is the user's own folder,
    ``shared=True``. Where a result of the strategy's first stages is stored, work starts from it; results of stages
    that took long are stored on the way.

    Args:
        request: model, strategy, seed, calibration text and where to store.
        progress: told as layers are done.

    Returns:
        An outcome with status ``succeeded``; failures are exceptions.

    Raises:
        StrategyError: the strategy is refused, with the reason.
        ModelError: the base model cannot be loaded or is compressed already.
        CompressionError: a stage failed; names the stage, the cause and what to change.
        MemoryError: memory ran out.
    """
    started = time.perf_counter()
    base = Path(request.model_path)
    if request.strategy.is_baseline:
        reference = checkpoint_ref(base, request.strategy.key, shared=True)
        return CompressionOutcome(
            status="succeeded", checkpoint=reference, seconds=time.perf_counter() - started, cached=True
        )
    strategy = _checked(request.strategy)
    root, key = Path(request.checkpoints_root), content_key(request, strategy)
    growth = Growth(request.device)
    with _alone(root, key), memory_errors():
        if not request.intermediate:
            promote(root, key)
        folder = root / PREFIXES / key if request.intermediate and not (root / key).is_dir() else root / key
        if stored := _stored(folder, strategy):
            timings = tuple(StageTiming(stage=stage.label, seconds=0.0, cached=True) for stage in strategy.stages)
            seconds = time.perf_counter() - started
            return CompressionOutcome(
                status="succeeded", checkpoint=stored, stages=timings, seconds=seconds, cached=True
            )
        reference, timings = _build_within_memory(request, strategy, folder, progress, growth)
    return CompressionOutcome(
        status="succeeded",
        checkpoint=reference,
        stages=timings,
        seconds=time.perf_counter() - started,
        peak_bytes=growth.peak,
    )


def content_key(request: CompressionRequest, strategy: Strategy | None = None) -> str:
    """The key of the result: base model, stages with parameters and method versions, seed, calibration if it is used.

    Args:
        request: the work.
        strategy: what to key instead of the request's own strategy; parameters left out take their defaults.

    Raises:
        StrategyError: when the strategy names an unknown method.
    """
    strategy = search_space(_LONGEST).complete(strategy or request.strategy)
    methods = [get_method(stage.method) for stage in strategy.stages]
    calibration = None
    if _calibrates(strategy):
        calibration = [request.calibration_digest, request.calibration_samples, request.calibration_tokens]
        if request.calibration_packing != "documents":
            calibration.append(request.calibration_packing)
        if any(method.trains for method in methods):
            calibration.append(request.training_tokens)
    return content_digest(
        {
            "base": request.base_digest,
            "stages": [
                [stage.method, method.version, stage.parameters]
                for method, stage in zip(methods, strategy.stages, strict=True)
            ],
            "seed": request.seed,
            "calibration": calibration,
        }
    )


def _checked(strategy: Strategy) -> Strategy:
    """The strategy with all defaults, refused when it is not legal."""
    space = search_space(_LONGEST)
    if problem := space.problem_with(strategy):
        raise StrategyError(problem)
    complete = space.complete(strategy)
    for stage in complete.stages:
        _config(stage)
        if stage.when is not None:
            raise StrategyError(f"stage {stage.label}: its condition must be decided before it is carried out")
    return complete


def _config(stage: Stage) -> Any:
    method = get_method(stage.method)
    try:
        return method.config.model_validate(stage.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StrategyError(
            f"{stage.method}: {where + ': ' if where else ''}{first['msg']} (see: acf methods show {stage.method})"
        ) from error


def _calibrates(strategy: Strategy) -> bool:
    methods = [(get_method(stage.method), _config(stage)) for stage in strategy.stages]
    return any(method.trains or method.needs_calibration_for(config) for method, config in methods)


@contextmanager
def _alone(root: Path, key: str) -> Iterator[None]:
    """One process at a time builds a result and uses its scratch folder; another waits and then finds the result."""
    from filelock import FileLock

    locks = root / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{key}.lock"):
        yield


def _stored(folder: Path, strategy: Strategy) -> CheckpointRef | None:
    """The checkpoint in this folder; a folder that is not complete is set aside, so that it is built again."""
    if not folder.is_dir():
        return None
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            return checkpoint_ref(folder, strategy.key, manifest.loads_with)
    except ModelError:
        pass
    set_aside(folder)
    return None


class _StageOutOfMemory(Exception):  # noqa: N818 - a signal, not an error
    """A stage ran out of memory that may succeed with smaller batches."""

    def __init__(self, stage: int) -> None:
        super().__init__(stage)
        self.stage = stage


def _build_within_memory(
    request: CompressionRequest, strategy: Strategy, folder: Path, progress: Progress, growth: Growth
) -> tuple[CheckpointRef, tuple[StageTiming, ...]]:
    """Build; once for every stage that ran out of memory, begin again with its batches halved.

    A stage that was broken off has changed the model already, so that it begins with a model loaded again.
    """
    import torch

    if request.threads:
        torch.set_num_threads(request.threads)
    batch_sizes: dict[int, int] = {}
    while True:
        try:
            return _build(request, strategy, folder, progress, growth, batch_sizes)
        except _StageOutOfMemory as error:
            batch_sizes[error.stage] = request.batch_size // 2
        # Here, where the error and with it the frames that hold the model are gone.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _build(
    request: CompressionRequest,
    strategy: Strategy,
    folder: Path,
    progress: Progress,
    growth: Growth,
    batch_sizes: Mapping[int, int],
) -> tuple[CheckpointRef, tuple[StageTiming, ...]]:
    import torch

    scratch = Path(request.checkpoints_root) / f".{folder.name}.scratch"
    model, tokenizer, applied = _start(request, strategy)
    timings = [StageTiming(stage=stage.label, seconds=0.0, cached=True) for stage in strategy.stages[: len(applied)]]
    windows = _Windows(request, strategy, tokenizer)
    gguf = None
    for index, stage in enumerate(strategy.stages[len(applied) :], start=len(applied)):
        started = time.perf_counter()
        method = get_method(stage.method)
        context = CompressionContext(
            seed=request.seed + index,
            calibration=windows.calibration() if method.needs_calibration_for(_config(stage)) else None,
            training=windows.training() if method.trains else None,
            tokenizer=tokenizer,
            load_base=lambda: _load_base(request).model,
            scratch=scratch / str(index),
            device=request.device,
            batch_size=batch_sizes.get(index, request.batch_size),
            progress=progress,
        )
        torch.manual_seed(context.seed)
        growth.begin()
        try:
            result = _apply(method, stage, model, context)
        except Exception as error:
            if is_out_of_memory(error) and index not in batch_sizes and request.batch_size > 1:
                raise _StageOutOfMemory(index) from error
            raise
        model, gguf = result.model, result.gguf
        notes = result.notes
        if index in batch_sizes:
            tried = f"ran out of memory with {request.batch_size} windows at once, done again with {context.batch_size}"
            notes = (*notes, tried)
        applied.append(AppliedStage(method=stage.method, version=method.version, notes=notes))
        seconds = time.perf_counter() - started
        timings.append(StageTiming(stage=stage.label, seconds=seconds, peak_bytes=growth.end()))
        if index + 1 < len(strategy.stages) and (method.trains or seconds >= _WORTH_KEEPING_SECONDS):
            _keep_prefix(request, strategy, applied, model, tokenizer)
    reference = save_checkpoint(model, tokenizer, folder, _origin(request, strategy, applied), gguf=gguf)
    shutil.rmtree(scratch, ignore_errors=True)
    return reference, tuple(timings)


def _origin(request: CompressionRequest, strategy: Strategy, applied: Sequence[AppliedStage]) -> CheckpointOrigin:
    return CheckpointOrigin(
        base_digest=request.base_digest, strategy=strategy, seed=request.seed, stages=tuple(applied)
    )


def _keep_prefix(
    request: CompressionRequest, strategy: Strategy, applied: Sequence[AppliedStage], model: Any, tokenizer: Any
) -> None:
    """Store what the stages so far made, for strategies that begin alike and for going on after a kill.

    It is only a cache: a full disk costs the strategy nothing.
    """
    prefix = Strategy(stages=strategy.stages[: len(applied)])
    root = Path(request.checkpoints_root)
    key = content_key(request, prefix)
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with suppress(OSError):
        if stored_prefix(root, key) is not None or not make_room(root, needed, request.prefix_cache_bytes):
            return
        save_checkpoint(model, tokenizer, root / PREFIXES / key, _origin(request, prefix, applied))


def _start(request: CompressionRequest, strategy: Strategy) -> tuple[Any, Any, list[AppliedStage]]:
    """The base model, or a stored result of the strategy's first stages: layers come back from disk bit for bit."""
    for length in range(len(strategy.stages) - 1, 0, -1):
        prefix = Strategy(stages=strategy.stages[:length])
        folder = stored_prefix(Path(request.checkpoints_root), content_key(request, prefix))
        if folder is None:
            continue
        try:
            manifest = read_manifest(folder)
            if manifest is not None and "acf" in manifest.loads_with:
                loaded = load_checkpoint(folder, device=request.device)
                return loaded.model, loaded.tokenizer, list(manifest.stages)
        except (ModelError, OSError):  # damaged, or deleted while it was read: the stages are carried out again
            if folder.parent.name == PREFIXES:
                discard(folder)
    loaded = _load_base(request)
    _check_finite(loaded.model, f"the base model {request.model_path}")
    return loaded.model, loaded.tokenizer, []


def _load_base(request: CompressionRequest) -> LoadedCheckpoint:
    base = Path(request.model_path)
    if read_manifest(base) is not None:
        raise ModelError(f"the base model must not be compressed, got {base}; start from the original model")
    loaded = load_checkpoint(base, device=request.device, trust_remote_code=request.trust_remote_code)
    if getattr(loaded.model.config, "quantization_config", None) is not None:
        raise ModelError(f"the base model must not be quantized, got {base}; start from the original model")
    return loaded


class _Windows:
    """Token windows of the calibration text, made when the first stage that needs them comes."""

    def __init__(self, request: CompressionRequest, strategy: Strategy, tokenizer: Any) -> None:
        self._request, self._strategy, self._tokenizer = request, strategy, tokenizer
        self._calibration: list[torch.Tensor] | None = None
        self._training: list[torch.Tensor] | None = None

    def calibration(self) -> list[torch.Tensor]:
        """A seeded sample of documents."""
        if self._calibration is None:
            self._calibration = self._read(self._request.calibration_samples, self._request.calibration_tokens)
        return self._calibration

    def training(self) -> list[torch.Tensor]:
        """All documents."""
        if self._training is None:
            self._training = self._read(sys.maxsize, self._request.training_tokens)
        return self._training

    def _read(self, samples: int, tokens: int) -> list[torch.Tensor]:
        request = self._request
        names = ", ".join(
            stage.method
            for stage in self._strategy.stages
            if get_method(stage.method).trains or get_method(stage.method).needs_calibration
        )
        if request.calibration_path is None:
            raise CompressionError(
                f"{names} needs calibration text, got no calibration_path; give a JSONL file of {{text}}, or use a "
                "method that needs none (see: acf methods)"
            )
        if self._tokenizer is None:
            raise CompressionError(f"{names} needs a tokenizer, {request.model_path} has none; add tokenizer.json")
        path = Path(request.calibration_path)
        return calibration_tokens(path, self._tokenizer, samples, tokens, request.seed, request.calibration_packing)


def _apply(method: Method, stage: Stage, model: Any, context: CompressionContext) -> Compressed:
    """Run one stage; whatever goes wrong names the stage."""
    try:
        result = method.apply(model, _config(stage), context)
        _check_finite(result.model, "its result")
    except (AcfError, MemoryError) as error:
        if isinstance(error, CompressionError):
            raise CompressionError(f"stage {stage.label}: {error}") from error
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise CompressionError(f"stage {stage.label}: {error}; try other parameters or another method") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise CompressionError(f"stage {stage.label}: {cause}; try other parameters or another method") from error
    return result


def _check_finite(model: Any, what: str) -> None:
    import torch

    def finite(tensor: torch.Tensor) -> bool:  # by parts: the test makes copies, and an embedding may be large
        return all(bool(torch.isfinite(part).all()) for part in tensor.detach().reshape(-1).split(_CHECKED_AT_ONCE))

    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not finite(tensor):
            raise CompressionError(f"{what} holds NaN or infinite weights in {name}; use another model or strategy")
