"""What an export wrote, from what, and how near its answers are to the checkpoint's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record

__all__ = ["EXPORT_FORMATS", "ExportCheck", "ExportFormat", "ExportRecord", "ExportTolerance", "PromptCheck"]

ExportFormat = Literal["hf", "gguf", "compressed-tensors", "onnx", "recipe"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("hf", "gguf", "compressed-tensors", "onnx", "recipe")


class ExportTolerance(Record):
    """How far an export's answers may lie from the checkpoint's."""

    mean_kl: float = Field(gt=0, description="Kullback-Leibler divergence from the checkpoint, nats a token")
    max_kl: float | None = Field(description="of a single token, nats; None: not limited")
    top1_agreement: float = Field(ge=0, le=1, description="least share of tokens with the same most likely next token")
    tie: float | None = Field(
        description="greedy answers may part where the checkpoint's log-probabilities of the two tokens differ by no "
        "more than this, nats; None: they may part anywhere"
    )


class PromptCheck(Record):
    """One prompt with the checkpoint's greedy answer and the export's."""

    prompt: str
    expected: str
    answer: str
    same: bool
    gap: float | None = Field(
        default=None, description="where they part: the checkpoint's log-probabilities of the two tokens, difference"
    )


class ExportCheck(Record):
    """The export loaded in the runtime it is for, beside the checkpoint in its own."""

    runtime: str = Field(description="with its version")
    reference: str = Field(description="runtime of the checkpoint, with its version")
    prompts: tuple[PromptCheck, ...]
    tokens: int = Field(ge=1, description="whose next-token distributions were compared")
    top1_agreement: float = Field(ge=0, le=1)
    mean_kl: float = Field(description="of the export from the checkpoint, nats a token")
    max_kl: float
    tolerance: ExportTolerance
    problem: str = Field(default="", description="why it did not pass; empty: it did")

    @property
    def passed(self) -> bool:
        """Within the tolerance."""
        return not self.problem


class ExportRecord(Record):
    """``export.json``."""

    format: ExportFormat
    form: str = Field(description="how the weights are stored: a GGUF type, 'as stored', 'dense' …")
    source: str = Field(description="as the user named it")
    source_digest: str
    base_digest: str = ""
    strategy: str
    code_version: str
    packages: dict[str, str] = Field(default_factory=dict)
    created_at: str = Field(description="UTC, ISO 8601")
    path: str = Field(default="", description="absolute folder; empty in export.json itself")
    files: dict[str, int] = Field(default_factory=dict, description="bytes by name, without export.json")
    checkpoint_bytes: int = Field(ge=0, description="what the checkpoint itself has on disk")
    notes: tuple[str, ...] = Field(default=(), description="in what the export differs from the checkpoint")
    check: ExportCheck | None = Field(default=None, description="None for recipes, which hold no weights")

    @property
    def size_bytes(self) -> int:
        """Of all files but ``export.json``."""
        return sum(self.files.values())
