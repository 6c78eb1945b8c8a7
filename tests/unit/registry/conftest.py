"""A registered model of its own for every test, in the store that all tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.registry.desks import Studio

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture
def studio(home: Path, mlflow_store: tuple[MlflowClient, Path]) -> Studio:
    return Studio(mlflow_store[0], home)
