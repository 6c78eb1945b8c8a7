"""MLflow's registry as a dictionary: what the state machine of moves needs of the client, thousands of steps a second.

A few runs of the same machine over a real store show that it behaves alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList


@dataclass
class _Version:
    name: str
    version: str
    source: str
    tags: dict[str, str]


@dataclass
class _Model:
    name: str
    creation_timestamp: int
    aliases: dict[str, str] = field(default_factory=dict)
    versions: dict[str, _Version] = field(default_factory=dict)
    made: int = 0


class MemoryRegistry:
    """Registered models by name."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._clock = 0

    def create_registered_model(self, name: str) -> _Model:
        self._clock += 1
        self._models[name] = _Model(name, self._clock)
        return self._models[name]

    def delete_registered_model(self, name: str) -> None:
        del self._models[name]

    def get_registered_model(self, name: str) -> _Model:
        if name not in self._models:
            raise MlflowException("no such model", error_code=RESOURCE_DOES_NOT_EXIST)
        return self._models[name]

    def search_registered_models(self, **_: object) -> PagedList[_Model]:
        return PagedList(list(self._models.values()), None)

    def search_model_versions(self, only: str | None = None, **_: object) -> PagedList[_Version]:
        found = [item for model in self._models.values() for item in model.versions.values()]
        return PagedList([item for item in found if only in {None, f"name = '{item.name}'"}], None)

    def create_model_version(self, name: str, source: str, tags: Mapping[str, str]) -> SimpleNamespace:
        model = self.get_registered_model(name)
        model.made += 1  # a number is not given again while the model is there
        number = str(model.made)
        model.versions[number] = _Version(name, number, source, dict(tags))
        return SimpleNamespace(version=number)

    def delete_model_version(self, name: str, version: str) -> None:
        model = self.get_registered_model(name)
        del model.versions[version]
        model.aliases = {alias: held for alias, held in model.aliases.items() if held != version}

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._models[name].versions[version].tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if version not in self.get_registered_model(name).versions:
            raise MlflowException("no such version", error_code=RESOURCE_DOES_NOT_EXIST)
        self._models[name].aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.get_registered_model(name).aliases.pop(alias, None)
