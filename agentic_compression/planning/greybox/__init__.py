"""The default search: what is known is computed, what is not is learned from as few episodes as possible."""

from agentic_compression.planning.greybox.planner import GreyboxPlanner, greybox_planner

__all__ = ["GreyboxPlanner", "greybox_planner"]
