"""What episodes need from outside: settings, the history, the registry client and the child processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.execution import Supervisor, shared_supervisor
from agentic_compression.progress import Announcer
from agentic_compression.settings import Settings, get_settings
from agentic_compression.storage import confined
from agentic_compression.tracking import History, MlflowHistory, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Workbench", "open_workbench"]


@dataclass(frozen=True)
class Workbench:
    """Everything an episode touches outside its own records. ``registry`` None: nothing is registered."""

    settings: Settings
    history: History
    supervisor: Supervisor
    registry: MlflowClient | None = None
    announce: Announcer = field(default_factory=Announcer)

    def folder(self, study: str) -> Path:
        """``data/experiments/<study>``."""
        return confined(self.settings.experiments, study)

    @contextmanager
    def lock(self, study: str) -> Iterator[None]:
        """One process at a time plans or records in a study; released by the kernel when a process dies."""
        from filelock import FileLock

        folder = self.folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=600):
            yield


@cache
def open_workbench() -> Workbench:
    """The workbench of this process: MLflow's history and registry, the shared supervisor."""
    settings = get_settings()
    client = open_client(settings.mlflow_uri)
    history = MlflowHistory(client, settings.mlflow_artifacts)
    return Workbench(settings=settings, history=history, supervisor=shared_supervisor(), registry=client)
