"""A registered model of its own for every test, in the store that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.registry.desks import Studio

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture
def studio(home: Path, mlflow_store: tuple[MlflowClient, Path]) -> Iterator[Studio]:
    client = mlflow_store[0]
    before = {model.name for model in client.search_registered_models()}
    yield Studio(client, home)
    for name in {model.name for model in client.search_registered_models()} - before:
        client.delete_registered_model(name)  # every later listing would have it
