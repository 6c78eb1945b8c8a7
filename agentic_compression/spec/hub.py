"""Ask the Hugging Face Hub about a model without downloading its weights or writing to any cache."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from agentic_compression.errors import AcfError, ModelError
from agentic_compression.settings import Settings
from agentic_compression.spec.architecture import parameters_of_shape
from agentic_compression.spec.counting import ParameterCount, count_parameters, quantized_bits
from agentic_compression.spec.local import PICKLE_REASON, require_causal
from agentic_compression.spec.safetensors_header import DTYPE_BITS, DTYPE_NAMES, TensorHeader
from agentic_compression.spec.shape import ModelShape, shape_of_config
from agentic_compression.spec.size_table import nearest_ids

__all__ = ["HubAnswer", "HubUnreachableError", "ask_hub"]

_log = logging.getLogger(__name__)
_ATTEMPTS = 4
_BASE_SECONDS = 0.5
_LONGEST_SECONDS = 30.0
_TIMEOUT_SECONDS = 10.0
_MAXIMUM_SHARDS = 512
_MAXIMUM_JSON = 64 << 20
_JITTER = random.SystemRandom()
_T = TypeVar("_T")


class HubUnreachableError(AcfError):
    """The Hub did not answer; the offline sources are next."""


@dataclass(frozen=True)
class HubAnswer:
    """What the Hub says of a model."""

    config: Mapping[str, Any]
    shape: ModelShape
    count: ParameterCount
    gated: bool


def ask_hub(model: str, settings: Settings, *, trust_remote_code: bool = False) -> HubAnswer:
    """Metadata of a Hub model: its safetensors counts, ``config.json`` and whether it is gated.

    Raises:
        HubUnreachableError: no answer after retries with exponential backoff and jitter (connection, 429, 5xx).
        ModelError: missing, gated without access, pickle-only, or not a causal language model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    api = HfApi(endpoint=settings.hf_endpoint.rstrip("/"), token=token)
    try:
        info = _patiently(
            lambda: api.model_info(model, timeout=_TIMEOUT_SECONDS, expand=["safetensors", "gated", "siblings"])
        )
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        _require_safetensors(model, files)
        config = _fetch_json(api, model, "config.json")
        require_causal(config, model, trust_remote_code=trust_remote_code)
        shape = shape_of_config(config)
        count = _count(api, model, info.safetensors, config, shape, files)
    except GatedRepoError:
        raise ModelError(
            f"{model} is gated; accept its licence at {api.endpoint}/{model} and set HF_TOKEN of that account"
        ) from None
    except RepositoryNotFoundError:
        near = nearest_ids(model)
        hint = f"did you mean {', '.join(near)}?" if near else "check the spelling, or set HF_TOKEN if it is private"
        raise ModelError(f"model {model} does not exist on {settings.hf_endpoint}; {hint}") from None
    except HFValidationError:
        raise ModelError(f"{model!r} is no Hub id and no local folder; write ORGANISATION/NAME or a folder") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise ModelError(
                f"{settings.hf_endpoint} refuses access to {model} ({status}); set HF_TOKEN to a token that may read it"
            ) from None
        raise ModelError(
            f"{settings.hf_endpoint} answered {status} for {model}; try again or give a local folder"
        ) from None
    return HubAnswer(config=config, shape=shape, count=count, gated=bool(info.gated))


def _require_safetensors(model: str, files: frozenset[str]) -> None:
    if "config.json" not in files:
        raise ModelError(f"{model} has no config.json on the Hub; it is not a transformers model, choose another")
    if files & {"model.safetensors", "model.safetensors.index.json"}:
        return
    pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
    if pickles:
        raise ModelError(
            f"{model} has only pickle weights ({pickles[0]}): {PICKLE_REASON}; choose a copy with *.safetensors"
        )
    raise ModelError(f"{model} has no model.safetensors on the Hub; choose a repository that has one")


def _count(
    api: Any, model: str, safetensors: Any, config: Mapping[str, Any], shape: ModelShape, files: frozenset[str]
) -> ParameterCount:
    by_dtype = dict(safetensors.parameters) if safetensors else {}
    if not by_dtype or quantized_bits(config) is not None or "quantization_config" in config:
        return count_parameters(_headers(api, model, files), config, tied=shape.tied)
    stored = sum(by_dtype.values())
    total = stored
    formula = parameters_of_shape(shape)
    detail = "safetensors metadata"
    if formula and shape.tied and shape.vocabulary and shape.hidden:
        once = stored - shape.vocabulary * shape.hidden
        if abs(once - formula) < 0.001 * formula:
            total, detail = once, "safetensors metadata; the tied embedding is stored twice and counted once"
    dtype = max(by_dtype, key=lambda name: by_dtype[name])
    size = sum(number * DTYPE_BITS.get(name, 16) // 8 for name, number in by_dtype.items())
    return ParameterCount(total, size, DTYPE_NAMES.get(dtype, dtype.lower()), detail)


def _headers(api: Any, model: str, files: frozenset[str]) -> dict[str, TensorHeader]:
    """Headers of every shard, fetched with range requests."""
    names = ["model.safetensors"]
    if "model.safetensors" not in files:
        index = _fetch_json(api, model, "model.safetensors.index.json").get("weight_map")
        names = sorted({str(name) for name in index.values()}) if isinstance(index, dict) else []
        if not 0 < len(names) <= _MAXIMUM_SHARDS:
            raise ModelError(f"{model}: its safetensors index names {len(names)} shards, allowed 1..{_MAXIMUM_SHARDS}")
    tensors: dict[str, TensorHeader] = {}
    for name in names:
        metadata = _patiently(partial(api.parse_safetensors_file_metadata, model, name, timeout=_TIMEOUT_SECONDS))
        for tensor, info in metadata.tensors.items():
            begin, end = info.data_offsets
            tensors[tensor] = TensorHeader(info.dtype, tuple(info.shape), begin, end)
    return tensors


def _fetch_json(api: Any, model: str, name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session, hf_raise_for_status

    url = hf_hub_url(model, name, endpoint=api.endpoint)

    def fetch() -> bytes:
        with get_session().stream("GET", url, headers=api._build_hf_headers(), timeout=_TIMEOUT_SECONDS) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAXIMUM_JSON:
                    raise ModelError(f"{model}: {name} is larger than {_MAXIMUM_JSON:,} bytes; choose another model")
            return content

    try:
        value = json.loads(_patiently(fetch))
    except ValueError as error:
        raise ModelError(f"{model}: {name} on the Hub is not valid JSON: {error}; choose another revision") from None
    if not isinstance(value, dict):
        raise ModelError(f"{model}: {name} on the Hub must be a JSON object, got {type(value).__name__}")
    return value


def _patiently(call: Callable[[], _T]) -> _T:
    """Call; on connection errors, 429 and 5xx wait 0.5, 1, 2 s (each times 1..1.5, or ``Retry-After``) and retry."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for attempt in range(1, _ATTEMPTS + 1):
        wait = _BASE_SECONDS * 2 ** (attempt - 1) * (1 + _JITTER.random() / 2)
        try:
            return call()
        except OfflineModeIsEnabled:
            raise HubUnreachableError("HF_HUB_OFFLINE is set") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise
            reason = f"status {status}"
            after = error.response.headers.get("Retry-After", "")
            wait = max(wait, float(after)) if after.isdigit() else wait
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
        if attempt < _ATTEMPTS:
            _log.info("the Hub did not answer (%s); attempt %d of %d", reason, attempt, _ATTEMPTS)
            time.sleep(min(wait, _LONGEST_SECONDS))
    raise HubUnreachableError(f"{reason} after {_ATTEMPTS} attempts")
