"""What episodes need from outside: settings, the history, the registry client and the child processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.errors import ConfigurationError
from agentic_compression.execution import Supervisor, shared_supervisor
from agentic_compression.progress import Announcer
from agentic_compression.records.study import STUDY_NAME
from agentic_compression.settings import Settings, get_settings
from agentic_compression.storage import confined
from agentic_compression.study.lease import CheckpointLease
from agentic_compression.tracking import History, MlflowHistory, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Workbench", "bootstrap_lock", "open_workbench", "study_folder"]


@dataclass(frozen=True)
class Workbench:
    """Everything an episode touches outside its own records. ``registry`` None: nothing is registered."""

    settings: Settings
    history: History
    supervisor: Supervisor
    registry: MlflowClient | None = None
    announce: Announcer = field(default_factory=Announcer)

    lease: CheckpointLease = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lease", CheckpointLease(self.settings.checkpoints))

    def folder(self, study: str) -> Path:
        """``data/experiments/<study>``."""
        return study_folder(self.settings, study)

    @contextmanager
    def lock(self, study: str) -> Iterator[None]:
        """One process at a time plans or records in a study; released by the kernel when a process dies."""
        from filelock import FileLock

        folder = self.folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=600):
            yield


def study_folder(settings: Settings, study: str) -> Path:
    """``data/experiments/<study>``.

    Raises:
        ConfigurationError: when that is no name of a study, such as ``.``, ``a/b`` or nothing at all.
    """
    if not re.fullmatch(STUDY_NAME, study):
        raise ConfigurationError(
            f"a study's name is letters, digits, '.', '_' and '-', got {study!r}; see: acf analyze"
        )
    return confined(settings.experiments, study)


@contextmanager
def bootstrap_lock(settings: Settings) -> Iterator[None]:
    """One process at a time creates databases and stacks in a state root."""
    from filelock import FileLock

    folder = settings.root / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".bootstrap.lock", timeout=600):
        yield


@cache
def open_workbench() -> Workbench:
    """The workbench of this process: MLflow's history and registry, the shared supervisor."""
    settings = get_settings()
    with bootstrap_lock(settings):
        client = open_client(settings.mlflow_uri)
    history = MlflowHistory(client, settings.mlflow_artifacts)
    return Workbench(settings=settings, history=history, supervisor=shared_supervisor(), registry=client)
