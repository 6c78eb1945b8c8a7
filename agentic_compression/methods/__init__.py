"""Compression methods, one file each, and the function that applies a strategy. Importing this imports no torch."""

from agentic_compression.methods.compress import compress, content_key
from agentic_compression.methods.interface import (
    ActiveWhen,
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Range,
    Workload,
    parameters_of,
)
from agentic_compression.methods.registry import ENTRY_POINT_GROUP, describe_methods, get_method, search_space
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.methods.templates import Template, read_strategy, templates

__all__ = [
    "ENTRY_POINT_GROUP",
    "ActiveWhen",
    "Choice",
    "Compressed",
    "CompressionContext",
    "CompressionRequest",
    "Method",
    "MethodConfig",
    "Needs",
    "Range",
    "Template",
    "Workload",
    "compress",
    "content_key",
    "describe_methods",
    "get_method",
    "parameters_of",
    "read_strategy",
    "search_space",
    "templates",
]
