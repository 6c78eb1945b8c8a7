"""How a decoder's attention and MLP are found, by the linears they are made of, and how these are cut.

A model is told by its modules, not by its class: whatever has ``q_proj``, ``k_proj``, ``v_proj`` and an output
projection in every block, or an up and a down projection, is understood, and everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Attention", "Mlp", "attentions_of", "keep_columns", "keep_rows", "mlps_of"]

_OUTPUTS = ("o_proj", "out_proj", "dense")
_MLPS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)


@dataclass(frozen=True)
class Attention:
    """One block's attention.

    Attributes:
        q: name of the query projection, ``(heads * head_dim, hidden)``.
        k: of the key projection, ``(kv_heads * head_dim, hidden)``.
        v: of the value projection, the same shape.
        o: of the output projection, ``(hidden, heads * head_dim)``.
        heads: query heads; ``heads // kv_heads`` neighbouring ones share a key-value head.
        kv_heads: key-value heads.
        head_dim: width of a head.
    """

    q: str
    k: str
    v: str
    o: str
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    def columns(self, heads: Sequence[int]) -> torch.Tensor:
        """Columns of ``o`` (rows of ``q``) of these query heads, or rows of ``k`` and ``v`` of key-value heads."""
        import torch

        starts = torch.tensor(list(heads), dtype=torch.int64) * self.head_dim
        return (starts[:, None] + torch.arange(self.head_dim)).reshape(-1)


@dataclass(frozen=True)
class Mlp:
    """One block's MLP.

    Attributes:
        inputs: names of the projections into the channels (gate and up, or one), ``(width, hidden)``.
        output: name of the projection out of them, ``(hidden, width)``.
        width: channels.
    """

    inputs: tuple[str, ...]
    output: str
    width: int


def attentions_of(model: Any) -> list[Attention]:
    """Every block's attention; all have the same number of heads.

    Raises:
        CompressionError: when a block has none that is understood, naming the model and what is supported.
    """
    found = [_attention(model, prefix, block) for prefix, block in _blocks(model)]
    if len({(one.heads, one.kv_heads, one.head_dim) for one in found}) > 1:
        raise CompressionError(
            f"{type(model).__name__} must have as many heads in every block, got "
            f"{[(one.heads, one.kv_heads) for one in found]}; use drop_layers or drop_channels"
        )
    return found


def mlps_of(model: Any) -> list[Mlp]:
    """Every block's MLP; all have the same width.

    Raises:
        CompressionError: when a block has none that is understood, naming the model and what is supported.
    """
    found = [_mlp(model, prefix, block) for prefix, block in _blocks(model)]
    if len({one.width for one in found}) > 1:
        raise CompressionError(
            f"{type(model).__name__} must have as many MLP channels in every block, got "
            f"{[one.width for one in found]}; use drop_layers or drop_heads"
        )
    return found


def keep_rows(linear: nn.Linear, rows: torch.Tensor) -> None:
    """Cut a linear's outputs, weight and bias, to these rows."""
    rows = rows.to(linear.weight.device)
    linear.weight.data = linear.weight.data[rows].contiguous()
    if linear.bias is not None:
        linear.bias.data = linear.bias.data[rows].contiguous()


def keep_columns(linear: nn.Linear, columns: torch.Tensor) -> None:
    """Cut a linear's inputs to these columns."""
    linear.weight.data = linear.weight.data[:, columns.to(linear.weight.device)].contiguous()


def _blocks(model: Any) -> list[tuple[str, nn.Module]]:
    from agentic_compression.methods.layerwise import blocks_of

    name, blocks = blocks_of(model)
    return [(f"{name}.{index}", block) for index, block in enumerate(blocks)]


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linears right inside a module, by name."""
    from torch import nn

    return {name: child for name, child in module.named_children() if type(child) is nn.Linear}


def _attention(model: Any, prefix: str, block: nn.Module) -> Attention:
    for path, module in block.named_modules(prefix=prefix):
        linears = _linears(module)
        output = next((name for name in _OUTPUTS if name in linears), None)
        if output is None or not {"q_proj", "k_proj", "v_proj"} <= linears.keys():
            continue
        q, k, v, o = (linears[name] for name in ("q_proj", "k_proj", "v_proj", output))
        head_dim = int(getattr(module, "head_dim", 0) or 0)
        if head_dim < 1 or q.out_features % head_dim or k.out_features % head_dim:
            raise _refused(model, f"{path} has no head_dim that divides its {q.out_features} query features")
        heads, kv_heads = q.out_features // head_dim, k.out_features // head_dim
        if o.in_features != q.out_features or v.out_features != k.out_features or heads % kv_heads:
            raise _refused(
                model,
                f"{path} has {q.out_features} query, {k.out_features} key and {v.out_features} value features "
                f"and {o.in_features} into {output}",
            )
        _check_nothing_else(model, path, module, {"q_proj", "k_proj", "v_proj", output}, head_dim)
        return Attention(
            f"{path}.q_proj", f"{path}.k_proj", f"{path}.v_proj", f"{path}.{output}", heads, kv_heads, head_dim
        )
    raise _refused(model, f"{prefix} has no module with q_proj, k_proj, v_proj and {', '.join(_OUTPUTS)} as linears")


def _check_nothing_else(model: Any, path: str, module: nn.Module, known: set[str], head_dim: int) -> None:
    """Refuse parameters that belong to heads in a way this module does not know.

    Norms of queries and keys with ``head_dim`` weights are shared by the heads and stay as they are.
    """
    for name, parameter in module.named_parameters():
        if name.split(".")[0] not in known and tuple(parameter.shape) != (head_dim,):
            raise _refused(model, f"{path}.{name} of shape {tuple(parameter.shape)} is not known to fewer heads")


def _mlp(model: Any, prefix: str, block: nn.Module) -> Mlp:
    if experts := next((name for name, _ in block.named_modules() if name.endswith("experts")), None):
        raise _refused(model, f"{prefix}.{experts} is a mixture of experts", mlp=True)
    for path, module in block.named_modules(prefix=prefix):
        linears = _linears(module)
        for inputs, output in _MLPS:
            if output not in linears or not set(inputs) <= linears.keys():
                continue
            width = linears[output].in_features
            if any(linears[name].out_features != width for name in inputs):
                raise _refused(model, f"{path}.{output} reads {width} features, which {inputs} do not make", mlp=True)
            return Mlp(tuple(f"{path}.{name}" for name in inputs), f"{path}.{output}", width)
    raise _refused(model, f"{prefix} has no dense MLP of linears with known names", mlp=True)


def _refused(model: Any, why: str, mlp: bool = False) -> CompressionError:
    supported = (
        "gate_proj, up_proj, down_proj (Llama, Mistral, Qwen, Gemma), fc1, fc2 (OPT, Phi), c_fc, c_proj (StarCoder2) "
        "or dense_h_to_4h, dense_4h_to_h (GPT-NeoX)"
        if mlp
        else "q_proj, k_proj, v_proj and an output projection, with norms of single heads at most "
        "(Llama, Mistral, Qwen, Gemma)"
    )
    other = "drop_heads" if mlp else "drop_channels"
    return CompressionError(
        f"{type(model).__name__} is not supported: {why}; supported are dense blocks with {supported}; "
        f"use {other}, drop_layers or an unstructured method"
    )
