"""One promotion: measure challenger and incumbent, ask the gate, move the alias, try what it serves.

``acf registry promote MODEL/VERSION --alias ALIAS --pipeline`` runs it; so does ``zenml pipeline run
pipelines.promotion.promotion -c FILE`` with ``parameters: {request: {model: …, version: "3", alias: champion}}``.
"""

from zenml import pipeline
from zenml.enums import ExecutionMode

from agentic_compression.records import PromotionRequest
from agentic_compression.study import open_workbench
from agentic_compression.study.promotion import study_of
from steps import evaluate_contenders, promote_version, smoke_test, validate_promotion
from steps.control_plane import belongs_to


@pipeline(name="promotion", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def promotion(request: PromotionRequest) -> None:
    """Promote a version, or fail with the numbers that speak against it.

    Args:
        request: which version, to which alias, under which policy.
    """
    belongs_to(request.model, study_of(request, open_workbench()))
    contenders = evaluate_contenders(request=request)
    verdict = validate_promotion(request=request, contenders=contenders)
    promoted = promote_version(request=request, verdict=verdict)
    smoke_test(request=request, promotion=promoted)
