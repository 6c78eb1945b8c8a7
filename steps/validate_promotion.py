"""Ask the promotion gate."""

from typing import Annotated

from zenml import step

from agentic_compression.records import Contenders, GateVerdict, PromotionRequest
from agentic_compression.study import open_workbench
from agentic_compression.study.promotion import open_desk, verdict_on_measured


@step
def validate_promotion(request: PromotionRequest, contenders: Contenders) -> Annotated[GateVerdict, "verdict"]:
    """Every condition of the policy with the numbers that decide it."""
    return verdict_on_measured(open_desk(open_workbench(), policy=request.policy), request, contenders)
