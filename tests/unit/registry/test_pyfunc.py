"""A registered version is an MLflow model of the stored checkpoint, and answers as the checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agentic_compression import demo
from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.errors import UsageError
from agentic_compression.records import BASELINE
from agentic_compression.registry.mlflow_model import checkpoint_of, write_mlflow_model
from agentic_compression.registry.pyfunc import CheckpointModel

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMPTS = ["Question: Reverse the list lamp net knife cup.\nAnswer:", "Question: Sort the digits 2 7 2 9 8.\nAnswer:"]


@pytest.fixture(scope="module")
def loaded(mlflow_store: tuple[MlflowClient, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The demo model, registered and loaded as a user of MLflow does."""
    import mlflow

    client, root = mlflow_store
    reference = checkpoint_ref(demo.model_path(), BASELINE.key, shared=True)
    name = f"demo-{uuid4().hex[:6]}"
    folder = write_mlflow_model(tmp_path_factory.mktemp("models"), name, reference, PROMPTS[0])
    client.create_registered_model(name)
    client.create_model_version(name, source=folder.as_uri())
    client.set_registered_model_alias(name, "champion", "1")
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{root / 'mlflow.db'}")
    yield mlflow.pyfunc.load_model(f"models:/{name}@champion")
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def _greedy(prompts: list[str], new_tokens: int) -> list[str]:
    """transformers alone, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(demo.model_path())
    model: Any = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype="auto")
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            done = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, attention_mask=torch.ones_like(ids))
            answers.append(tokenizer.decode(done[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def test_predictions_are_the_checkpoints_own_greedy_answers(loaded: Any) -> None:
    assert loaded.predict(PROMPTS, params={"max_new_tokens": 12}) == _greedy(PROMPTS, 12)


def test_a_table_a_series_and_a_list_are_the_same_prompts(loaded: Any) -> None:
    import pandas as pd

    expected = loaded.predict(PROMPTS)
    assert loaded.predict(pd.DataFrame({"prompt": PROMPTS})) == expected
    assert loaded.predict(pd.Series(PROMPTS)) == expected
    assert "cup knife net lamp" in expected[0]


def test_signature_example_and_requirements_are_there(loaded: Any) -> None:
    assert loaded.metadata.signature.inputs.to_dict() == [{"type": "string", "required": True}]
    assert loaded.input_example == [PROMPTS[0]]
    environment = loaded.metadata.flavors["python_function"]["env"]
    assert environment == {"virtualenv": "python_env.yaml"}


def test_a_prompt_without_room_for_an_answer_is_refused(loaded: Any) -> None:
    model = loaded._model_impl
    assert isinstance(model, CheckpointModel)
    with pytest.raises(UsageError, match="tokens, got"):
        model.predict(["word " * 5000])
    with pytest.raises(UsageError, match="texts, got int"):
        model.predict([1])
    with pytest.raises(UsageError, match="max_new_tokens"):
        model.predict(PROMPTS, {"max_new_tokens": 0})


def test_the_checkpoint_is_linked_and_left_as_it_was(tmp_path: Path) -> None:
    import shutil

    stored = tmp_path / "stored"
    shutil.copytree(demo.model_path(), stored)
    before = checkpoint_ref(stored, BASELINE.key)
    names = sorted(path.name for path in stored.iterdir())
    folder = write_mlflow_model(tmp_path / "models", "m", before)
    assert write_mlflow_model(tmp_path / "models", "m", before) == folder
    assert checkpoint_of(folder) == stored
    assert checkpoint_ref(stored, BASELINE.key) == before
    assert sorted(path.name for path in stored.iterdir()) == names
    requirements = (folder / "requirements.txt").read_text()
    assert requirements.startswith("agentic-compression==")
    assert "\ntransformers==" in requirements
    weights = folder / "checkpoint" / "model.safetensors"
    assert weights.samefile(stored / "model.safetensors")
    own = sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    assert own < 10_000
    moved = tmp_path / "moved"
    stored.rename(moved)
    again = write_mlflow_model(tmp_path / "models", "m", checkpoint_ref(moved, BASELINE.key))
    assert checkpoint_of(again) == moved


def test_where_no_hard_link_can_be_made_the_model_says_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    reference = checkpoint_ref(demo.model_path(), BASELINE.key, shared=True)
    folder = write_mlflow_model(tmp_path / "models", "m", reference)
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["location.json"]
    answers = mlflow.pyfunc.load_model(str(folder)).predict([PROMPTS[0]], params={"max_new_tokens": 8})
    assert answers == [" cup knife net lamp"]
