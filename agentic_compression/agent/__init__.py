"""Plans, carries out and learns from compression experiments for a wish in natural language."""

from agentic_compression.agent.execute import Experiment, carry_out_plan, execute_experiment, resume_plan
from agentic_compression.agent.plan import CompressionPlan, PlanItem
from agentic_compression.agent.planner import plan_compression
from agentic_compression.agent.reflection import Reflection, frontier_of, reflect_and_improve
from agentic_compression.agent.wish import Wish

__all__ = [
    "CompressionPlan",
    "Experiment",
    "PlanItem",
    "Reflection",
    "Wish",
    "carry_out_plan",
    "execute_experiment",
    "frontier_of",
    "plan_compression",
    "reflect_and_improve",
    "resume_plan",
]
