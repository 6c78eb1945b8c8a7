"""A checkpoint is stored once, by content key; its artifact is the reference with the facts about it."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType

from agentic_compression.records import CompressionOutcome
from materializers.record import RecordMaterializer


class CheckpointMaterializer(RecordMaterializer):
    """Stores where the checkpoint is, never its weights again."""

    SKIP_REGISTRATION: ClassVar[bool] = False
    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (CompressionOutcome,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def extract_metadata(self, data: CompressionOutcome) -> dict[str, Any]:
        """Status, size and place, searchable in the dashboard."""
        facts: dict[str, Any] = {"status": data.status, "seconds": data.seconds, "cached": data.cached}
        if data.checkpoint is not None:
            facts |= {
                "path": data.checkpoint.path,
                "digest": data.checkpoint.digest,
                "size_bytes": data.checkpoint.size_bytes,
            }
        return facts

    def save_visualizations(self, data: CompressionOutcome) -> dict[str, VisualizationType]:
        """What was done and how long each stage took."""
        lines = [f"# {data.status}", "", data.error or "", "", "| stage | seconds | cached |", "|---|---|---|"]
        lines += [f"| `{stage.stage}` | {stage.seconds:.2f} | {stage.cached} |" for stage in data.stages]
        if data.checkpoint is not None:
            lines += ["", f"{data.checkpoint.size_bytes / 1e6:.2f} MB in `{data.checkpoint.path}`"]
        return self.markdown("\n".join(lines))
