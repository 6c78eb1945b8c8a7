"""The steps of an episode and of a promotion. Each translates between ZenML and one function of the domain."""

from steps.compress import compress
from steps.evaluate import evaluate
from steps.evaluate_contenders import evaluate_contenders
from steps.infer_spec import infer_spec
from steps.llm_plan import llm_plan
from steps.promote_version import promote_version
from steps.smoke_test import smoke_test
from steps.update_frontier import update_frontier
from steps.validate_data import validate_data
from steps.validate_promotion import validate_promotion

__all__ = [
    "compress",
    "evaluate",
    "evaluate_contenders",
    "infer_spec",
    "llm_plan",
    "promote_version",
    "smoke_test",
    "update_frontier",
    "validate_data",
    "validate_promotion",
]
