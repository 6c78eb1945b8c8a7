"""What to compress, how and where to: the input of a compression's child process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records import Record, Strategy

__all__ = ["CompressionRequest"]


class CompressionRequest(Record):
    """One strategy to apply to one model."""

    model_path: str = Field(description="folder of the base model, absolute")
    base_digest: str = Field(description="content digest of the base model's weights and config")
    strategy: Strategy
    seed: int = Field(default=0, ge=0, lt=2**31)
    calibration_path: str | None = Field(default=None, description="JSONL of {text}")
    calibration_digest: str | None = None
    calibration_samples: int = Field(default=128, ge=1, description="documents drawn, seeded")
    calibration_tokens: int = Field(default=256, ge=8, description="a document is cut to this many tokens")
    training_tokens: int = Field(
        default=512, ge=8, description="the same for methods that train, which see all documents"
    )
    calibration_packing: Literal["documents", "packed"] = Field(
        default="documents", description="a document a window, or documents joined and cut into equal windows"
    )
    batch_size: int = Field(
        default=16, ge=1, description="windows at once; halved once for a stage that ran out of memory"
    )
    prefix_cache_bytes: int = Field(
        default=4_000_000_000, ge=0, description="results of first stages may take so much; 0 keeps none"
    )
    intermediate: bool = Field(
        default=False, description="the result is only looked at before the strategy goes on; kept as a prefix"
    )
    checkpoints_root: str = Field(description="folder that holds one checkpoint folder a content key")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; torch's own choice when None")
    trust_remote_code: bool = False
