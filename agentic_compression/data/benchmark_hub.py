"""Load a benchmark's documents from the Hub dataset that the harness's own task definition names."""

from __future__ import annotations

from agentic_compression.data.benchmarks import Benchmark, HarnessTask, check_readings
from agentic_compression.data.split import Document
from agentic_compression.errors import DatasetError
from agentic_compression.settings import Settings

__all__ = ["load_benchmark"]

_TIMEOUT_SECONDS = 10.0


def load_benchmark(benchmark: Benchmark, settings: Settings) -> list[HarnessTask]:
    """The harness tasks of one benchmark from the Hub; downloads are kept under ``data/hub`` of the state root.

    Raises:
        DatasetError: when the Hub cannot be reached or does not have it; names ``--benchmark-dir``.
    """
    require_reachable(benchmark, settings)
    tasks = []
    for task, path, configuration in benchmark.hub:
        evaluated = _load(benchmark.name, path, configuration, benchmark.evaluated, settings)
        if evaluated is None:
            raise DatasetError(f"{path} has no split {benchmark.evaluated}; give local files with --benchmark-dir")
        splits = {benchmark.evaluated: evaluated}
        for spare in benchmark.spare[:1]:
            if (documents := _load(benchmark.name, path, configuration, spare, settings)) is not None:
                splits[spare] = documents
        for split, documents in splits.items():
            for number, document in enumerate(documents):
                document.setdefault("id", document.get("task_id") or f"{task}-{split}-{number:05d}")
        tasks.append(HarnessTask(task, splits, benchmark.evaluated))
    try:
        check_readings(benchmark, tasks)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise DatasetError(
            f"{benchmark.hub[0][1]} is not as the harness's definition reads it ({_line(error)}); "
            f"give {benchmark.name} with --benchmark-dir"
        ) from None
    return tasks


def require_reachable(benchmark: Benchmark, settings: Settings) -> None:
    """One quick question, so that an offline machine hears at once what to do instead of waiting for retries.

    Raises:
        DatasetError: when the Hub does not answer, or what answers is none.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    api = HfApi(endpoint=settings.hf_endpoint.rstrip("/"), token=token)
    path = benchmark.hub[0][1]
    try:
        api.dataset_info(path, timeout=_TIMEOUT_SECONDS)
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        raise DatasetError(
            f"{benchmark.name} comes from {settings.hf_endpoint} and that cannot be reached ({type(error).__name__}); "
            f"give a folder with local copies: --benchmark-dir FOLDER (with {benchmark.name}/ in it)"
        ) from None
    except HfHubHTTPError as error:
        raise DatasetError(
            f"{settings.hf_endpoint} answered {error.response.status_code} for {path}; "
            f"set HF_TOKEN, or give local copies of {benchmark.name} with --benchmark-dir FOLDER"
        ) from None
    except (ValueError, TypeError, LookupError) as error:  # a proxy's page, or another service
        raise DatasetError(
            f"{settings.hf_endpoint} answers, but not as a Hub does ({_line(error)}); "
            f"check HF_ENDPOINT, or give local copies of {benchmark.name} with --benchmark-dir FOLDER"
        ) from None


def _load(name: str, path: str, configuration: str | None, split: str, settings: Settings) -> list[Document] | None:
    import datasets

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    cache = settings.root / "data" / "hub"
    try:
        loaded = datasets.load_dataset(path, configuration, split=split, token=token, cache_dir=str(cache))
    except ValueError as error:  # an unknown split
        if "split" in str(error).lower():
            return None
        raise DatasetError(f"{path} could not be read: {_line(error)}; give {name} with --benchmark-dir") from None
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(
            f"{path} could not be downloaded: {_line(error)}; give {name} with --benchmark-dir"
        ) from None
    return [dict(document) for document in loaded]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
