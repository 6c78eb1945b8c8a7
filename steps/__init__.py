"""The steps of an episode. Each translates between ZenML and one function of ``agentic_compression.study``."""

from steps.compress import compress
from steps.evaluate import evaluate
from steps.infer_spec import infer_spec
from steps.llm_plan import llm_plan
from steps.update_frontier import update_frontier
from steps.validate_data import validate_data

__all__ = ["compress", "evaluate", "infer_spec", "llm_plan", "update_frontier", "validate_data"]
