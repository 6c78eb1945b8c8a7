"""Where a served model comes from: a folder, or a version of a registered model, with smaller ones to fall back on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentic_compression.checkpoints.folders import weight_files
from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.registry import RegisteredVersion, list_versions, model_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["FolderSource", "RegistrySource", "Source", "Target", "read_sources"]

_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")


@dataclass(frozen=True)
class Target:
    """A checkpoint to load: its folder and, where it is registered, its version."""

    folder: Path
    version: str | None = None

    @property
    def label(self) -> str:
        """``version 3``, or the folder's name."""
        return self.folder.name if self.version is None else f"version {self.version}"

    def weights_bytes(self) -> int:
        """Bytes of its weight files.

        Raises:
            ModelError: when it has none.
        """
        return sum(path.stat().st_size for path in weight_files(self.folder))


class Source(Protocol):
    """Tells what to load. Its methods read databases and disks: call them outside the event loop."""

    reference: str
    follows: bool
    """Whether what it stands for may change."""

    def resolve(self) -> Target:
        """What it stands for now.

        Raises:
            ModelError: when that is nothing.
        """
        ...

    def smaller(self, target: Target) -> list[Target]:
        """Other promoted versions with fewer bytes of weights, the largest first."""
        ...


class FolderSource:
    """A checkpoint folder."""

    follows = False

    def __init__(self, folder: Path) -> None:
        self.reference, self._folder = str(folder), folder.resolve()

    def resolve(self) -> Target:
        if not self._folder.is_dir():
            raise ModelError(f"a served model is a folder or models:/NAME@ALIAS, got {self._folder}; check the path")
        return Target(self._folder)

    def smaller(self, target: Target) -> list[Target]:
        return []


class RegistrySource:
    """``models:/NAME@ALIAS``, which follows the alias, or ``models:/NAME/VERSION``."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        match = _URI.fullmatch(uri)
        if match is None:
            raise ModelError(f"a registered model is models:/NAME@ALIAS or models:/NAME/VERSION, got {uri!r}")
        self.reference, self._client = uri, client
        self._model, self._alias, self._version = match["name"], match["alias"], match["version"]
        self.follows = self._alias is not None

    def resolve(self) -> Target:
        number = self._version or self._holder()  # asked once: the alias may move while its folder is looked up
        return Target(model_folder(self._client, f"models:/{self._model}/{number}").resolve(), number)

    def smaller(self, target: Target) -> list[Target]:
        """Promoted means: it has an alias or is a member of its study's frontier."""
        sizes: dict[Target, int] = {}
        for item in self._versions():
            other = Target(Path(item.source).resolve(), item.version)
            if item.aliases or item.state == "frontier":
                with suppress(ModelError):  # a checkpoint that was deleted is no alternative
                    sizes[other] = other.weights_bytes()
        limit = target.weights_bytes()
        return sorted((other for other, size in sizes.items() if size < limit), key=lambda other: -sizes[other])

    def _holder(self) -> str:
        """The version that the alias names."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(self._model, self._alias).version)
        except MlflowException as error:
            raise ModelError(f"{self.reference}: {error.message}; see: acf registry list") from error

    def _versions(self) -> list[RegisteredVersion]:
        return list_versions(self._client, self._model)


def read_sources(
    references: Sequence[str], names: Sequence[str], open_client: Callable[[], MlflowClient]
) -> dict[str, Source]:
    """The models of a command line by the name under which they are served.

    Args:
        references: folders and ``models:/…``.
        names: in the order of the references; the rest are named after the folder or the registered model.
        open_client: of the registry; called when a reference needs it.

    Raises:
        ConfigurationError: when a name is given twice, is malformed, or has no model.
        ModelError: when a reference leads nowhere.
    """
    if len(names) > len(references):
        raise ConfigurationError(f"--name must be given once a model at most, got {len(names)} for {len(references)}")
    client: MlflowClient | None = None
    sources: dict[str, Source] = {}
    for place, reference in enumerate(references):
        source: Source
        if reference.startswith("models:/"):
            client = client or open_client()
            source = RegistrySource(client, reference)
        else:
            source = FolderSource(Path(reference).expanduser())
        source.resolve()
        name = names[place] if place < len(names) else reference.removeprefix("models:/")
        if place >= len(names) and isinstance(source, FolderSource):
            name = Path(reference).expanduser().resolve().name
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"a served name has letters, digits and ._:@/-, got {name!r}; give --name")
        if name in sources:
            raise ConfigurationError(f"every served name must be given once, got {name!r} twice; give --name")
        sources[name] = source
    return sources
