"""What to try next: the baseline, the same seeds for every planner, then a planner that learns from the history."""

from agentic_compression.planning.episode import propose_episode
from agentic_compression.planning.grid import StrategyGrid, canonical, enumerate_strategies, tried_keys
from agentic_compression.planning.interface import ConsultingPlanner, Optimizer, Planner
from agentic_compression.planning.registry import CONSULTING_FACTORIES, PLANNER_FACTORIES, load_planner, select_planner
from agentic_compression.planning.seeds import seed_strategies

__all__ = [
    "CONSULTING_FACTORIES",
    "PLANNER_FACTORIES",
    "ConsultingPlanner",
    "Optimizer",
    "Planner",
    "StrategyGrid",
    "canonical",
    "enumerate_strategies",
    "load_planner",
    "propose_episode",
    "seed_strategies",
    "select_planner",
    "tried_keys",
]
