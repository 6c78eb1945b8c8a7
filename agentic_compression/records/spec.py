"""What is known about a model before anything runs, with where each fact came from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record

__all__ = ["MemoryRequirement", "ModelSpec", "SizeClass", "SpecSource"]

SizeClass = Literal["tiny", "small", "medium", "large", "huge"]


class SpecSource(Record):
    """One source's answer for the parameter count."""

    source: Literal["local_checkpoint", "hub_metadata", "size_table", "name"]
    parameters: int = Field(gt=0)
    exact: bool = Field(description="counted, not looked up or guessed")
    detail: str = ""


class MemoryRequirement(Record):
    """Device memory in bytes for one use of the model; the formula is in docs/memory_formula.md."""

    use: str = Field(description="'inference' or a method's name")
    minimum_bytes: int = Field(ge=0)
    recommended_bytes: int = Field(ge=0)


class ModelSpec(Record):
    """Specification of a causal language model."""

    model: str = Field(description="as the user wrote it")
    path: str | None = Field(default=None, description="local checkpoint folder, when there is one")
    digest: str | None = Field(default=None, description="content digest of the local checkpoint's weights and config")
    parameters: int = Field(gt=0)
    bytes_per_parameter: float = Field(gt=0, description="of the checkpoint's stored dtype")
    bytes_by_dtype: dict[str, int] = Field(
        default_factory=dict, description="whole-model bytes at float32, bfloat16, int8, int4 …"
    )
    dtype: str = Field(description="stored dtype, for example bfloat16")
    family: str = Field(description="model_type, for example llama; 'unknown' when no config was seen")
    architecture: str = "unknown"
    layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    context_length: int | None = None
    tied_embeddings: bool | None = None
    experts: int | None = Field(default=None, description="experts per layer of a mixture-of-experts model")
    gated: bool | None = None
    size_class: SizeClass
    preferred_methods: tuple[str, ...] = ()
    memory: tuple[MemoryRequirement, ...] = ()
    sources: tuple[SpecSource, ...] = Field(description="in order of trust; the first one's count is used")
    warnings: tuple[str, ...] = Field(default=(), description="for example sources that disagree by more than 5 %")
