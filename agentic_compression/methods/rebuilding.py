"""A model of another shape from the tensors of one: config changed, modules built anew, tensors moved over.

Modules derive much from the config when they are built (heads a group, the layer's place in the key-value cache, the
kind of attention of each layer). Building them anew from the changed config gives exactly what a plain transformers
gives when it loads the checkpoint; nothing is patched.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    import torch

    from agentic_compression.methods.interface import CompressionContext

__all__ = ["ConfigRefusedError", "check_same_output", "empty_mistral", "empty_model", "move_tensors", "probe"]

_PROBE_TOKENS = 64
_NOT_IN_MISTRAL = (
    "model_type",
    "attention_bias",
    "mlp_bias",
    "pretraining_tp",
    "architectures",
    "transformers_version",
)


class ConfigRefusedError(Exception):
    """The architecture cannot have this config; internal to the methods that look for one that it can have."""


def empty_model(model: Any, changes: Mapping[str, Any]) -> Any:
    """The model's architecture with some settings of its decoder changed, parameters without storage.

    The config passes through the form in which it is stored, so that a config that could not be loaded is found here.

    Args:
        model: a transformers causal language model.
        changes: config attributes and their new values.

    Raises:
        ConfigRefusedError: when the architecture does not allow them, with its reason.
    """
    from huggingface_hub.errors import StrictDataclassError

    config = copy.deepcopy(model.config)
    settings = config.get_text_config()
    try:
        for name, value in changes.items():
            setattr(settings, name, value)
        stored = type(config).from_dict(config.to_dict())
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConfigRefusedError(_reason(error)) from error
    return _build(type(model), stored, model)


def empty_mistral(model: Any, changes: Mapping[str, Any]) -> Any:
    """Like :func:`empty_model`, as a Mistral without a sliding window, which computes what a Llama without biases does.

    transformers refuses to load a Llama whose hidden size is no multiple of its number of heads, even where the width
    of a head is given. Mistral has the same modules and does not ask for that; llama.cpp treats the two alike.

    Raises:
        ConfigRefusedError: when the model is no Llama, or has biases.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

    if type(model) is not LlamaForCausalLM:
        raise ConfigRefusedError("only a Llama can become a Mistral")
    if model.config.attention_bias or model.config.mlp_bias:
        raise ConfigRefusedError("a Llama with biases cannot become a Mistral, which has none")
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_IN_MISTRAL}
    try:
        config = MistralConfig(**{**settings, **changes, "sliding_window": None})
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConfigRefusedError(_reason(error)) from error
    return _build(MistralForCausalLM, config, model)


def move_tensors(model: Any, empty: Any, renamed: Mapping[str, str] | None = None) -> Any:
    """Give an empty model the parameters and buffers of another, without copying them.

    Args:
        model: where the tensors are, cut to shape already; not usable afterwards.
        empty: from :func:`empty_model`.
        renamed: prefix of module names in ``model`` to their new prefix, ``""`` for modules that go; others stay.

    Returns:
        ``empty``, filled.

    Raises:
        CompressionError: when tensors do not fit.
    """

    def name_of(old: str) -> str | None:
        for prefix, new in (renamed or {}).items():
            if old.startswith(prefix):
                return new + old.removeprefix(prefix) if new else None
        return old

    tensors = {new: tensor for old, tensor in model.state_dict().items() if (new := name_of(old)) is not None}
    try:
        empty.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise CompressionError(
            f"{type(model).__name__} cannot be built with fewer parts, its modules do not follow the config: {first}; "
            "use an unstructured method"
        ) from error
    for old, buffer in model.named_buffers():
        new = name_of(old)
        if new is not None and new not in tensors:
            owner, _, leaf = new.rpartition(".")
            empty.get_submodule(owner)._buffers[leaf] = buffer
    empty.tie_weights()
    empty.generation_config = model.generation_config
    return empty.train(model.training)


def probe(model: Any, context: CompressionContext) -> torch.Tensor:
    """Logits of the beginning of the first calibration window, float32 ``(tokens, vocabulary)``."""
    import torch

    window = (context.calibration or ())[0][:, :_PROBE_TOKENS].to(context.device)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=window, use_cache=False).logits[0].to(torch.float32)
    return result


def check_same_output(model: Any, expected: torch.Tensor, context: CompressionContext) -> None:
    """Check that the smaller model computes what the large one did with the removed parts switched off.

    An architecture whose modules depend on their place or number in a way unknown here shows in this; a model that is
    smaller and wrong must not leave.

    Raises:
        CompressionError: when the logits differ by more than rounding.
    """
    import torch

    got = probe(model, context)
    difference = float(torch.linalg.norm(got - expected) / torch.linalg.norm(expected).clamp(min=1e-12))
    allowed = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
    if not difference <= allowed:
        raise CompressionError(
            f"{type(model).__name__} with parts removed must compute what it does with them switched off, got logits "
            f"that differ by {difference:.2g} (allowed {allowed}): this architecture is not supported; "
            "use an unstructured method"
        )


def _build(kind: Any, config: Any, like: Any) -> Any:
    from accelerate import init_empty_weights

    config._attn_implementation = like.config._attn_implementation
    config.dtype = like.config.dtype
    try:
        with init_empty_weights(include_buffers=False):
            return kind(config)
    except (ValueError, TypeError) as error:
        raise ConfigRefusedError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error).splitlines()[-1].strip()
