"""What an export may be named by: episodes of studies, folders of the same name, and what is said where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agentic_compression import tracking
from agentic_compression.errors import ModelError
from agentic_compression.export.exporting import export_name
from agentic_compression.export.origin import resolve_source
from agentic_compression.records import StudyConfig
from agentic_compression.settings import Settings
from agentic_compression.testing.records import make_evaluation, make_plan, make_record
from agentic_compression.tracking import MlflowHistory

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture
def state(tmp_path: Path, mlflow_store: tuple[MlflowClient, Path], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A state root with the store that all tests share."""
    monkeypatch.setattr(tracking, "open_client", lambda _: mlflow_store[0])
    monkeypatch.chdir(tmp_path)
    settings = Settings(ACF_HOME=tmp_path / "state")
    (settings.root / "data").mkdir(parents=True)
    (settings.root / "data" / "mlflow.db").touch()
    return settings


def test_an_episode_of_a_study_names_its_checkpoint(
    state: Settings, mlflow_store: tuple[MlflowClient, Path], tmp_path: Path
) -> None:
    study = f"exported-{uuid4().hex[:8]}"
    history = MlflowHistory(mlflow_store[0], state.mlflow_artifacts)
    history.open_study(StudyConfig(model="demo", dataset="demo", name=study))
    for episode, evaluation in ((0, make_evaluation(0.9)), (1, None)):
        plan = history.claim(make_plan(study, episode, "rtn" if episode else ""))
        record = make_record(plan, tmp_path / str(episode), evaluation)
        update = {"run_id": plan.run_id, **({} if evaluation else {"status": "failed", "checkpoint": None})}
        history.record(record.model_copy(update=update))
    (stored, _) = history.records(study)
    assert stored.checkpoint is not None
    folder = Path(stored.checkpoint.path)
    folder.mkdir(exist_ok=True)
    assert resolve_source(f"{study}:0", state) == folder.resolve()
    assert export_name(f"{study}:0") == f"{study}-0"
    with pytest.raises(ModelError, match=f"{study}:1 has no checkpoint: it failed"):
        resolve_source(f"{study}:1", state)
    with pytest.raises(ModelError, match=r"no episode 7 .*; its episodes: 0, 1"):
        resolve_source(f"{study}:7", state)
    folder.rmdir()
    with pytest.raises(ModelError, match=f"acf rebuild {study} 0"):
        resolve_source(f"{study}:0", state)
    Path(f"{study}:7").mkdir()
    assert resolve_source(f"{study}:7", state) == tmp_path / f"{study}:7"


def test_what_leads_nowhere_is_refused_with_what_may_be_given(state: Settings) -> None:
    with pytest.raises(ModelError, match=r"a folder, models:/NAME@ALIAS or STUDY:EPISODE, got './small'"):
        resolve_source("./small", state)
    with pytest.raises(ModelError, match=r"no episode 3 of study 'nostudy'.*there is no such study"):
        resolve_source("nostudy:3", state)
    (state.root / "data" / "mlflow.db").unlink()
    with pytest.raises(ModelError, match="there is no such study"):
        resolve_source("nostudy:3", state)
