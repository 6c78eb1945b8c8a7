"""The Pareto frontier of accuracy against latency, memory, size and CO2: pure functions of the recorded episodes."""

from agentic_compression.frontier.comparable import comparable, compared_versions, excluded
from agentic_compression.frontier.document import FrontierBuilder, build_frontier, rebuild_command
from agentic_compression.frontier.hypervolume import has_converged, hypervolume_by_episode
from agentic_compression.frontier.objectives import NAMES, OBJECTIVES, fixed_reference
from agentic_compression.frontier.reported import displayed, reported
from agentic_compression.frontier.termination import termination

__all__ = [
    "NAMES",
    "OBJECTIVES",
    "FrontierBuilder",
    "build_frontier",
    "comparable",
    "compared_versions",
    "displayed",
    "excluded",
    "fixed_reference",
    "has_converged",
    "hypervolume_by_episode",
    "rebuild_command",
    "reported",
    "termination",
]
