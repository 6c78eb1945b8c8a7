"""Try what the alias serves now."""

from typing import Annotated

from zenml import step

from agentic_compression import study as domain
from agentic_compression.records import Promoted, PromotionRequest
from agentic_compression.study.promotion import open_desk, require_promoted
from agentic_compression.study.promotion import smoke_test as try_promoted
from steps.control_plane import note_registry


@step
def smoke_test(request: PromotionRequest, promotion: Promoted) -> Annotated[Promoted, "promoted"]:
    """One question through MLflow; a wrong answer takes the move back and fails the run."""
    bench = domain.open_workbench()
    tried = try_promoted(open_desk(bench, policy=request.policy), promotion, bench)
    note_registry(request.model, bench)
    return require_promoted(tried)
