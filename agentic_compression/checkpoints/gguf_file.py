"""Writing a model as a GGUF file, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.checkpoints.ggml import GGML_TYPES, block_width, quantize_rows, row_bytes
from agentic_compression.checkpoints.gguf_architecture import GgufTensor, gguf_layout, row_order
from agentic_compression.checkpoints.gguf_grid import GRID_TYPES, grid_rows, own_codes
from agentic_compression.checkpoints.gguf_plan import GgufPlan
from agentic_compression.checkpoints.gguf_probes import compare_tokens
from agentic_compression.checkpoints.gguf_tokenizer import fitting_form, write_tokenizer
from agentic_compression.checkpoints.gguf_types import FILE_TYPES
from agentic_compression.errors import CompressionError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["weight_bytes", "write_gguf"]

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h: the layout of the blocks


def write_gguf(model: Any, tokenizer: Any, path: Path, plan: GgufPlan) -> tuple[str, ...]:
    """Write a model for llama.cpp and check that its tokenizer reads texts as the model's does.

    Needs memory for one tensor beyond the model. The file depends on the arguments alone.

    Args:
        model: a dense transformers causal language model of a known architecture.
        tokenizer: the model's.
        path: of the file to create.
        plan: types by module.

    Returns:
        In what llama.cpp will differ, one line each.

    Raises:
        CompressionError: when architecture, tokenizer, a weight or a type has no form in GGUF.
        ModelError: when there is no tokenizer.
        UnavailableError: when llama.cpp is not installed.
    """
    import gguf

    if tokenizer is None:
        raise ModelError("a GGUF file holds the tokenizer too, got a model without one; add tokenizer.json")
    layout = gguf_layout(model)
    form = fitting_form(tokenizer, layout.vocabulary, _stops(model), plan.probes)
    writer = gguf.GGUFWriter(path, layout.architecture)
    try:
        writer.add_type("model")
        writer.add_file_type(GRID_TYPES[plan.file_type] if plan.layers else FILE_TYPES[plan.file_type][0])
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        layout.describe(writer)
        write_tokenizer(writer, form)
        for tensor in layout.tensors:
            _announce(writer, tensor, _type_of(tensor, plan))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in layout.tensors:
            writer.write_tensor_data(_data(tensor, plan))
    finally:
        writer.close()
    written = compare_tokens(path, tokenizer, plan.probes)
    if written.disagreements:
        raise CompressionError(f"{path.name} must have the model's tokenizer; {written.problem}; use rtn or gptq")
    return (*layout.notes, *written.notes)


def weight_bytes(model: Any, plan: GgufPlan) -> int:
    """Bytes of the tensors that :func:`write_gguf` would write, without tokenizer and metadata.

    Raises:
        CompressionError: when architecture or a type has no form in GGUF.
    """
    total = 0
    for tensor in gguf_layout(model).tensors:
        rows, *width = (int(size) for size in tensor.parameter.shape)
        total += rows * row_bytes(_type_of(tensor, plan), width[0] if width else 1)
    return total


def _stops(model: Any) -> list[int]:
    """Tokens that end a text, by the model's generation config."""
    stops = getattr(model.generation_config, "eos_token_id", None)
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def _type_of(tensor: GgufTensor, plan: GgufPlan) -> str:
    """The ggml type; vectors are float32, as llama.cpp's operators want them."""
    if tensor.role is None:
        return "F32"
    chosen = plan.types.get(tensor.module, "F16")
    width = int(tensor.parameter.shape[1])
    if chosen not in GGML_TYPES or width % block_width(chosen):
        raise CompressionError(
            f"{tensor.module} has rows of {width} weights, which {chosen} cannot hold; use fallback_type"
        )
    return chosen


def _announce(writer: Any, tensor: GgufTensor, type_name: str) -> None:
    import gguf
    import numpy as np

    number = gguf.GGMLQuantizationType(GGML_TYPES[type_name])
    shape = tuple(tensor.parameter.shape)
    if tensor.role is None:
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * shape[0], raw_dtype=number)
        return
    stored = (shape[0], row_bytes(type_name, shape[1]))
    writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=number)


def _data(tensor: GgufTensor, plan: GgufPlan) -> NDArray[np.uint8] | NDArray[np.float32]:
    """What is written for a tensor, its rows in llama.cpp's order."""
    import numpy as np
    import torch

    order = row_order(int(tensor.parameter.shape[0]), tensor.heads)
    if tensor.role is None:
        values: NDArray[np.float32] = tensor.parameter.detach().to("cpu", torch.float32).numpy()[order]
        if not np.isfinite(values).all():
            raise CompressionError(f"{tensor.module} holds NaN or infinity; use another model")
        return values
    type_name = _type_of(tensor, plan)
    weight = own_codes(plan.layers.get(tensor.module))
    importance = plan.importance.get(tensor.module)
    weighing = None if importance is None else importance.to("cpu", torch.float32).numpy()
    try:
        if weight is not None:
            return grid_rows(weight, type_name, order)
        return quantize_rows(tensor.parameter, type_name, order, weighing, torch.get_num_threads())
    except CompressionError as error:
        raise CompressionError(f"{tensor.module}: {error}") from error
