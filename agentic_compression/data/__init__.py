"""Datasets: resolve what the user names into stored items, keep calibration apart from evaluation, and validate."""

from agentic_compression.data.report import report_html, write_report
from agentic_compression.data.resolve import resolve_dataset
from agentic_compression.data.validation import require_valid, validate_dataset

__all__ = ["report_html", "require_valid", "resolve_dataset", "validate_dataset", "write_report"]
