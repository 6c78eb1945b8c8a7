"""``acf export`` of the demo model: child processes, the registry's evidence, the card's code, kills, faults."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from agentic_compression.cli.main import app
from agentic_compression.demo import model_path
from agentic_compression.errors import AcfError, ConfigurationError, ModelError, UsageError
from agentic_compression.execution import Supervisor
from agentic_compression.export import ExportRequest, export_checkpoint, exporting
from agentic_compression.export.build import BuildRequest, Built, build
from agentic_compression.progress import Progress
from agentic_compression.records import CheckpointRef, ExportFormat, ExportRecord, StudyConfig
from agentic_compression.settings import Settings
from agentic_compression.spec import infer_spec
from agentic_compression.testing.records import make_evaluation, make_plan, make_record

ROOT = Path(__file__).resolve().parents[2]
NAME = "demo--demo"
PATIENCE_S = 240.0
STRATEGIES = {"packed": "rtn:bits=8,group_size=128", "four": "rtn:bits=4,group_size=64", "gguf": "gguf:type=Q8_0"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(ACF_HOME=tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(preload=("torch", "transformers", "agentic_compression.export.build")) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def checkpoints(state: Settings) -> dict[str, CheckpointRef]:
    """The demo model in 8 and in 4 bits, and as GGUF."""
    from agentic_compression.methods.compress import compress
    from agentic_compression.methods.request import CompressionRequest
    from agentic_compression.records import Strategy

    made = {}
    for name, strategy in STRATEGIES.items():
        outcome = compress(
            CompressionRequest(
                model_path=str(model_path()),
                base_digest=str(infer_spec(str(model_path()), settings=state).digest),
                strategy=Strategy.parse(strategy),
                checkpoints_root=str(state.checkpoints),
                threads=1,
            )
        )
        assert outcome.checkpoint is not None, outcome.error
        made[name] = outcome.checkpoint
    return made


@pytest.fixture(scope="module")
def registered(state: Settings, checkpoints: dict[str, CheckpointRef]) -> str:
    """``models:/demo--demo@smallest``: the packed checkpoint as episode 1 of a recorded study."""
    from agentic_compression.registry import versions
    from agentic_compression.registry.mlflow_model import write_mlflow_model
    from agentic_compression.tracking import MlflowHistory, open_client

    (state.root / "data").mkdir(exist_ok=True)
    client = open_client(state.mlflow_uri)
    history = MlflowHistory(client, state.mlflow_artifacts)
    config = StudyConfig(model="demo", dataset="demo", name="exported")
    history.open_study(config)
    (state.experiments / "exported").mkdir(parents=True)
    (state.experiments / "exported" / "study.json").write_text(config.model_dump_json())
    for episode, accuracy in ((0, 0.97), (1, 0.91)):
        evaluation = make_evaluation(accuracy)
        plan = history.claim(make_plan("exported", episode, "rtn:bits=8,group_size=128" if episode else ""))
        record = make_record(plan, state.root / str(episode), evaluation, environment=evaluation.environment)
        if episode:
            record = record.model_copy(update={"checkpoint": checkpoints["packed"]})
        history.record(record.model_copy(update={"run_id": plan.run_id}))
    versions.ensure_model(client, NAME, "exported")
    source = write_mlflow_model(state.artifacts / "models", NAME, checkpoints["packed"]).as_uri()
    digest = checkpoints["packed"].digest
    tags = {versions.KEY: f"exported/1/{digest}", versions.STUDY: "exported", versions.EPISODE: "1"}
    made = client.create_model_version(NAME, source=source, tags={**tags, "acf.digest": digest})
    client.set_registered_model_alias(NAME, "smallest", made.version)
    return f"models:/{NAME}@smallest"


def exported(
    source: str, wanted: ExportFormat, state: Settings, supervisor: Supervisor, output: Path | None = None
) -> ExportRecord:
    request = ExportRequest(source=source, format=wanted, output=output)
    return export_checkpoint(request, state, supervisor)


def run_card(folder: Path) -> str:
    """What the Python code of an export's card prints, run in its folder by a process that never heard of this one."""
    script = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_registered_version_becomes_a_folder_for_transformers(
    registered: str, checkpoints: dict[str, CheckpointRef], state: Settings, supervisor: Supervisor
) -> None:
    record = exported(registered, "hf", state, supervisor)
    folder = state.root / "data" / "exports" / "demo--demo-smallest-hf"
    assert Path(record.path) == folder
    stored = ExportRecord.model_validate_json((folder / "export.json").read_text())
    assert stored == record.model_copy(update={"path": ""})
    assert record.source_digest == checkpoints["packed"].digest
    assert record.check is not None
    assert record.check.passed
    assert set(record.files) == {path.name for path in folder.iterdir()} - {"export.json"}
    assert all(size == (folder / name).stat().st_size for name, size in record.files.items())
    card = (folder / "README.md").read_text()
    values = yaml.safe_load(card.split("---\n")[1])
    assert values["license"] == "apache-2.0"
    assert values["library_name"] == "transformers"
    assert "| accuracy | 0.91 (0.88 – 0.94) | 0.97 (0.94 – 1) |" in card
    assert "Source model: `demo`" in card
    expected = record.check.prompts[0].expected
    assert run_card(folder).startswith(f"Once upon a time{expected}")


def test_the_same_place_is_taken_then(registered: str, state: Settings, supervisor: Supervisor) -> None:
    output = state.root / "taken"
    output.mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        exported(registered, "hf", state, supervisor, output)
    assert list(output.iterdir()) == []


def test_packed_weights_become_a_file_that_llama_cpp_answers_from(
    checkpoints: dict[str, CheckpointRef], state: Settings, supervisor: Supervisor, tmp_path: Path
) -> None:
    record = exported(checkpoints["packed"].path, "gguf", state, supervisor, tmp_path / "gguf")
    assert str(tmp_path) not in "".join((tmp_path / "gguf" / name).read_text() for name in ("README.md", "export.json"))
    assert record.form == "Q8_0"
    assert record.check is not None
    assert record.check.runtime.startswith("llama.cpp")
    assert all(item.same or (item.gap is not None and item.gap <= 0.5) for item in record.check.prompts)
    assert run_card(tmp_path / "gguf").startswith(record.check.prompts[0].answer)


def test_four_bits_stay_four_bits_in_a_gguf_file(
    checkpoints: dict[str, CheckpointRef], state: Settings, supervisor: Supervisor, tmp_path: Path
) -> None:
    record = exported(checkpoints["four"].path, "gguf", state, supervisor, tmp_path / "gguf")
    assert record.form == "Q4_1 on the checkpoint's own grid, the rest Q8_0"
    assert record.check is not None
    assert record.check.passed
    assert record.check.tolerance.mean_kl == 0.02
    card = (tmp_path / "gguf" / "README.md").read_text().replace("\\", "")
    assert f"- weights: {record.form}; " in card
    assert "linears that keep the checkpoint's own codes: 42 as Q4_1; only scales are rounded, to float16" in card
    whole = (Path(checkpoints["gguf"].path) / "model.gguf").stat().st_size  # the same model, Q8_0 throughout
    assert record.files["model.gguf"] < 0.65 * whole
    assert run_card(tmp_path / "gguf").startswith(record.check.prompts[0].answer)


def test_a_gguf_checkpoint_is_copied_and_answers_exactly_alike(
    checkpoints: dict[str, CheckpointRef], state: Settings, supervisor: Supervisor, tmp_path: Path
) -> None:
    source = Path(checkpoints["gguf"].path)
    record = exported(str(source), "gguf", state, supervisor, tmp_path / "gguf")
    assert (tmp_path / "gguf" / "model.gguf").read_bytes() == (source / "model.gguf").read_bytes()
    assert not (tmp_path / "gguf" / "model.gguf").samefile(source / "model.gguf")
    assert record.check is not None
    assert record.check.max_kl < 1e-6
    assert all(item.same for item in record.check.prompts)
    with pytest.raises(ConfigurationError, match=r"only llama\.cpp reads"):
        exported(str(source), "onnx", state, supervisor, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_recipes_need_no_child(checkpoints: dict[str, CheckpointRef], state: Settings, tmp_path: Path) -> None:
    nobody: Any = None
    record = exported(checkpoints["packed"].path, "recipe", state, nobody, tmp_path / "recipe")
    assert record.check is None
    assert {"strategy.json", "llm_compressor.yaml", "README.md"} <= set(record.files)


def broken_build(request: BuildRequest, progress: Progress) -> Built:
    """As the real one, but the last weights are lost on the way to the disk."""
    made = build(request, progress)
    path = Path(request.folder) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-400_000:] = bytes(400_000)
    path.unlink()
    path.write_bytes(bytes(data))
    return made


def killed_build(request: BuildRequest, progress: Progress) -> Built:
    """Dies half-way, as the kernel ends a process that takes too much memory."""
    (Path(request.folder) / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize(("entry", "said"), [("broken_build", "does not answer as"), ("killed_build", "killed")])
def test_what_goes_wrong_leaves_nothing(
    entry: str,
    said: str,
    checkpoints: dict[str, CheckpointRef],
    state: Settings,
    supervisor: Supervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "_BUILD", f"tests.integration.test_export:{entry}")
    before = (Path(checkpoints["packed"].path) / "model.safetensors").read_bytes()
    with pytest.raises(AcfError, match=said):
        exported(checkpoints["packed"].path, "hf", state, supervisor, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    assert (Path(checkpoints["packed"].path) / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("source", ["models:/nothing@smallest", "models:/demo--demo", "./no-such-folder"])
def test_sources_that_lead_nowhere_are_refused(
    source: str, registered: str, state: Settings, supervisor: Supervisor
) -> None:
    with pytest.raises(ModelError):
        exported(source, "hf", state, supervisor)


@pytest.mark.slow
def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentic_compression.cli.main", "export", "demo", "--format", "hf"]
    environment = {**os.environ, "ACF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    exports = tmp_path / "data" / "exports"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (exports.is_dir() and list(exports.iterdir())):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert list(exports.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["./nowhere", "--format", "hf"], "nowhere"),
        (["demo", "--format", "safetensors"], "hf, gguf"),
        (["demo", "--format", "compressed-tensors"], "use --format hf"),
        (["demo", "--format", "hf", "--type", "Q4_K_M"], "--type"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], named: str, home: Path) -> None:
    done = CliRunner().invoke(app, ["export", *arguments])
    assert isinstance(done.exception, UsageError)
    assert named in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (home / "data").exists()


def test_the_command_prints_a_record_or_lines(
    checkpoints: dict[str, CheckpointRef], supervisor: Supervisor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentic_compression.execution.shared_supervisor", lambda: supervisor)
    arguments = ["export", checkpoints["packed"].path, "--format", "recipe", "--output", "made"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    record = ExportRecord.model_validate_json(done.stdout)
    assert record.path == str(home / "made")
    shown = CliRunner().invoke(app, [*arguments, "--force"])
    assert shown.exit_code == 0, shown.output
    assert f"kB in {home / 'made'}" in shown.stdout
