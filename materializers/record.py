"""Common ground of the materializers: a record is one JSON file."""

from pathlib import PurePosixPath
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from agentic_compression.records import Record


class RecordMaterializer(BaseMaterializer):
    """Stores a record as ``record.json`` in the artifact's folder."""

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Record,)

    def path(self, name: str) -> str:
        """Location of a file of this artifact."""
        return str(PurePosixPath(self.uri) / name) if "://" not in self.uri else f"{self.uri}/{name}"

    def load(self, data_type: type[Any]) -> Any:
        """Read and validate the record."""
        with self.artifact_store.open(self.path("record.json"), "r") as file:
            return data_type.model_validate_json(file.read())

    def save(self, data: Any) -> None:
        """Write the record."""
        self.write("record.json", data.model_dump_json(indent=2))

    def write(self, name: str, text: str) -> str:
        """Write a text file beside the record; returns its location."""
        location = self.path(name)
        with self.artifact_store.open(location, "w") as file:
            file.write(text)
        return location

    def html(self, text: str) -> dict[str, VisualizationType]:
        """A page for the dashboard."""
        return {self.write("visualization.html", text): VisualizationType.HTML}

    def markdown(self, text: str) -> dict[str, VisualizationType]:
        """A text for the dashboard."""
        return {self.write("visualization.md", text): VisualizationType.MARKDOWN}
