"""One promotion: measure challenger and incumbent, ask the gate, move the alias, try what it serves.

``acf registry promote MODEL/VERSION --alias ALIAS --pipeline`` runs it; so does ``zenml pipeline run
pipelines.promotion.promotion -c FILE`` with ``parameters: {request: {model: …, version: "3", alias: champion}}``.
"""

from zenml import pipeline
from zenml.enums import ExecutionMode

from agentic_compression.records import PromotionRequest
from steps import evaluate_contenders, promote_version, smoke_test, validate_promotion


@pipeline(name="promotion", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def promotion(request: PromotionRequest) -> None:
    """Promote a version, or fail with the numbers that speak against it.

    Args:
        request: which version, to which alias, under which policy.
    """
    contenders = evaluate_contenders(request=request)
    verdict = validate_promotion(request=request, contenders=contenders)
    promoted = promote_version(request=request, verdict=verdict)
    smoke_test(request=request, promotion=promoted)
