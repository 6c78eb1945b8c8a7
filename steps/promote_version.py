"""Move the alias."""

from typing import Annotated

from zenml import step

from agentic_compression.records import GateVerdict, Promoted, PromotionRequest
from agentic_compression.study import open_workbench
from agentic_compression.study.promotion import open_desk, promote, require_promoted


@step
def promote_version(request: PromotionRequest, verdict: GateVerdict) -> Annotated[Promoted, "promotion"]:
    """Through the journal; a refusal fails the run with the gate's numbers."""
    return require_promoted(promote(open_desk(open_workbench(), policy=request.policy), request, verdict))
