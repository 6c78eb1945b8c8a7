"""A resolved dataset: what is asked, where the items lie, and what they were checked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record

__all__ = ["DatasetSpec", "DatasetTask", "TaskKind", "ValidationCheck", "ValidationReport"]

TaskKind = Literal["multiple_choice", "generation", "text", "benchmark"]


class DatasetTask(Record):
    """One task. Items are canonical JSONL:

    ``multiple_choice``: ``{id, question, choices: [str, …], answer: int}``;
    ``generation``: ``{id, question, answer: str}``; ``text``: ``{id, text}``;
    ``benchmark``: whatever the harness's own definition of ``lm_eval_task`` reads, one file a split.
    """

    name: str
    kind: TaskKind
    path: str = Field(description="absolute path of the evaluated items (JSONL)")
    items: int = Field(ge=1)
    digest: str = Field(description="content digest of the evaluated items")
    lm_eval_task: str | None = Field(default=None, description="the harness's own task definition, for benchmarks")
    split_files: dict[str, str] = Field(
        default_factory=dict, description="split name to absolute JSONL path, for benchmarks"
    )
    few_shot: int | None = Field(
        default=None, ge=0, description="answered examples before every question; the definition's own number when None"
    )
    weight: float = Field(default=1.0, gt=0, description="share of the dataset's accuracy")


class DatasetSpec(Record):
    """Everything evaluation and calibration need to know of a dataset."""

    dataset: str = Field(description="as the user wrote it")
    name: str = Field(description="short name fit for a file or a registered model")
    tasks: tuple[DatasetTask, ...] = Field(min_length=1)
    perplexity_path: str | None = Field(default=None, description="JSONL of {text} never used for calibration")
    calibration_path: str | None = Field(
        default=None, description="JSONL of {text} that shares no item with the evaluated ones"
    )
    calibration_digest: str | None = None
    calibration_source: str = Field(default="", description="where the calibration text comes from, in words")
    digest: str


class ValidationCheck(Record):
    """One expectation and whether it held."""

    expectation: str
    column: str | None = None
    success: bool
    unexpected_count: int = 0
    examples: tuple[str, ...] = ()


class ValidationReport(Record):
    """Outcome of validating a dataset with Great Expectations."""

    dataset: str
    success: bool
    checks: tuple[ValidationCheck, ...]
    items: int
    library_version: str
