"""Fixtures shared by all tests: nothing leaves the temporary folder, no network, quiet libraries."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentic_compression.settings import get_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Started with "&" by a shell without job control, this process would ignore Ctrl-C, and so would every child it
# starts to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh state root."""
    monkeypatch.setenv("ACF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, Path]:
    """One MLflow store for all tests (creating a database takes seconds); tests use names of their own."""
    from agentic_compression.tracking import open_client

    folder = tmp_path_factory.mktemp("mlflow")
    return open_client(f"sqlite:///{folder / 'mlflow.db'}"), folder
