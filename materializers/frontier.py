"""The frontier draws itself in the ZenML dashboard."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from agentic_compression.frontier.plot import figure_html
from agentic_compression.records import FrontierDocument
from materializers.record import RecordMaterializer


class FrontierMaterializer(RecordMaterializer):
    """Stores the frontier document and an interactive, self-contained plot of it."""

    SKIP_REGISTRATION: ClassVar[bool] = False
    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (FrontierDocument,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA_ANALYSIS

    def extract_metadata(self, data: FrontierDocument) -> dict[str, Any]:
        """Size and quality of the frontier, searchable in the dashboard."""
        return {"study": data.study, "solutions": len(data.solutions), "hypervolume": data.hypervolume}

    def save_visualizations(self, data: FrontierDocument) -> dict[str, VisualizationType]:
        """The interactive plot."""
        return self.html(figure_html(data, ()))
