"""An evaluation, with a table of its numbers for the dashboard."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from agentic_compression.records import EvaluationOutcome
from materializers.record import RecordMaterializer


class EvaluationMaterializer(RecordMaterializer):
    """Stores an evaluation outcome and shows every objective with its 95 % interval."""

    SKIP_REGISTRATION: ClassVar[bool] = False
    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (EvaluationOutcome,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA_ANALYSIS

    def extract_metadata(self, data: EvaluationOutcome) -> dict[str, Any]:
        """The five objectives, searchable in the dashboard."""
        facts: dict[str, Any] = {"status": data.status, "cached": data.cached}
        return facts | (data.evaluation.objectives.model_dump() if data.evaluation else {})

    def save_visualizations(self, data: EvaluationOutcome) -> dict[str, VisualizationType]:
        """A table of objectives and benchmark scores."""
        lines = [f"# {data.status}", "", data.error or ""]
        if data.evaluation is not None:
            lines += ["| objective | value | 95 % interval |", "|---|---|---|"]
            for name, value in data.evaluation.objectives.model_dump().items():
                low, high = data.evaluation.intervals[name]
                lines.append(f"| {name} | {value:.5g} | {low:.5g} – {high:.5g} |")
            lines += ["", "| task | metric | score | n |", "|---|---|---|---|"]
            lines += [
                f"| {score.task} | {score.metric} | {score.score.value:.4f} | {score.score.n} |"
                for score in data.evaluation.benchmarks
            ]
        return self.markdown("\n".join(lines))
