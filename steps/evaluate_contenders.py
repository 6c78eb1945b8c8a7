"""Measure challenger and incumbent."""

from typing import Annotated

from zenml import step

from agentic_compression.records import Contenders, PromotionRequest
from agentic_compression.study import open_workbench
from agentic_compression.study.promotion import measure_contenders, open_desk


@step
def evaluate_contenders(request: PromotionRequest) -> Annotated[Contenders, "contenders"]:
    """Both on the same items, here and now, each in a fresh process."""
    bench = open_workbench()
    return measure_contenders(open_desk(bench, policy=request.policy), request, bench)
