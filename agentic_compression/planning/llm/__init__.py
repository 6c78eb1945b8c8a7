"""Planning by a language model: what it is told, how it is asked, what its answers may be, and what they were worth."""

from agentic_compression.planning.llm.note import planner_note
from agentic_compression.planning.llm.planner import LlmPlanner
from agentic_compression.planning.llm.review import expectation_errors, planner_usage, source_summaries

__all__ = ["LlmPlanner", "expectation_errors", "planner_note", "planner_usage", "source_summaries"]
