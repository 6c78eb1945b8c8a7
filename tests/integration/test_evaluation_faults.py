"""What goes wrong in an evaluation is recorded with its reason, and the study goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from agentic_compression import study as domain
from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.execution import Supervisor
from agentic_compression.methods.compress import compress
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.records import (
    CompressionOutcome,
    DatasetSpec,
    DatasetTask,
    EpisodePlan,
    EpisodeRecord,
    EvaluationSettings,
    ModelSpec,
    SpecSource,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.study import episode as stages
from agentic_compression.testing.memory_history import MemoryHistory
from tests.unit.methods.tiny_models import save_tiny, tiny_model, tiny_tokenizer

FAULTS = "tests.integration.faulty_work"
PRELOAD = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "agentic_compression.methods.compress",
    "agentic_compression.evaluation.evaluate",
    "agentic_compression.runtimes.transformers_runtime",
    "lm_eval.evaluator",
    FAULTS,
)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(preload=PRELOAD) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def compressed_model(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The model as this framework stores it."""
    request = CompressionRequest(
        model_path=str(model),
        base_digest="base",
        strategy=Strategy.parse("rtn:bits=8"),
        checkpoints_root=str(tmp_path_factory.mktemp("stored")),
        threads=1,
    )
    outcome = compress(request)
    assert outcome.checkpoint is not None, outcome.error
    return Path(outcome.checkpoint.path)


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """148 MB of weights, which loading has to find room for."""
    folder = tmp_path_factory.mktemp("large")
    shape = tiny_model().config
    shape.update({"intermediate_size": 96_000})
    LlamaForCausalLM(shape).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


class Study:
    """A real study of a tiny model whose history is in memory."""

    def __init__(self, home: Path, model: Path, supervisor: Supervisor) -> None:
        self.home, self.model = home, model
        self.bench = domain.Workbench(get_settings(), MemoryHistory(), supervisor)
        settings = EvaluationSettings(threads=1, runs=3, warmup_runs=1, prompt_tokens=16, new_tokens=4, batch_size=8)
        self.config = StudyConfig(model=str(model), dataset="items", name="faults", evaluation=settings)
        self.dataset = _dataset(home)
        self.bench.history.open_study(self.config)
        self.episodes = 0

    def evaluate(self, checkpoint: Path, **changes: Any) -> EpisodeRecord:
        """Measure a folder as the next episode and record whatever comes of it."""
        reference = checkpoint_ref(checkpoint, f"strategy-{self.episodes}")
        compressed = CompressionOutcome(status="succeeded", checkpoint=reference)
        return self.finish(compressed, **changes)

    def finish(
        self, compressed: CompressionOutcome, spoil: Callable[[], None] = lambda: None, **changes: Any
    ) -> EpisodeRecord:
        """Evaluate and record; ``spoil`` happens in between, ``changes`` are to the study's configuration."""
        config = self.config.model_copy(update=changes)
        strategy = Strategy.parse(f"rtn:bits={2 + self.episodes}") if self.episodes else Strategy()
        plan = EpisodePlan(
            study="faults", episode=self.episodes, strategy=strategy, planner="user", source="user", seed=0
        )
        self.episodes += 1
        spoil()
        evaluated = domain.evaluate(config, self.dataset, compressed, self.bench)
        domain.update_frontier(config, plan, compressed, evaluated, self.bench)
        return self.bench.history.records("faults")[plan.episode]


def _dataset(folder: Path) -> DatasetSpec:
    rows = [
        {"id": f"q{n}", "question": "the cat " * (n + 1), "choices": ["runs", "sleeps"], "answer": n % 2}
        for n in range(8)
    ]
    rows.append({"id": "long", "question": "tree " * 400, "choices": ["a", "b"], "answer": 0})
    items = folder / "items.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = folder / "answers.jsonl"
    answers.write_text(
        "".join(
            json.dumps({"id": f"g{n}", "question": "red " * 40 * n + "dog", "answer": "x"}) + "\n" for n in range(1, 5)
        )
    )
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": "the green house " * 60}) + "\n" for _ in range(3)))
    tasks = (
        DatasetTask(name="items", kind="multiple_choice", path=str(items), items=9, digest="items"),
        DatasetTask(name="answers", kind="generation", path=str(answers), items=4, digest="answers"),
    )
    return DatasetSpec(dataset="items", name="items", tasks=tasks, perplexity_path=str(texts), digest="items")


@pytest.fixture
def faulty(home: Path, model: Path, supervisor: Supervisor) -> Study:
    return Study(home, model, supervisor)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "checkpoint"))


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _goes_on(study: Study) -> None:
    """A sound checkpoint after the fault is measured, and is what the frontier shows."""
    record = study.evaluate(study.model)
    assert record.error is None
    assert record.status == "succeeded"
    document = json.loads((study.bench.folder("faults") / "pareto_frontier.json").read_text())
    assert [solution["episode"] for solution in document["solutions"]] == [record.episode]


def _is_recorded(record: EpisodeRecord, status: str, *words: str) -> None:
    assert record.status == status, record.error
    assert record.objectives is None
    assert record.error is not None
    assert "\n" not in record.error
    for word in words:
        assert word in record.error


@pytest.mark.parametrize(
    ("entry", "status", "words"),
    [
        ("in_little_memory", "oom", "memory"),
        ("aborted", "failed", "SIGABRT"),
        ("killed", "oom", "lack of memory"),
    ],
)
def test_a_process_that_dies_is_a_result(
    faulty: Study, large_model: Path, monkeypatch: pytest.MonkeyPatch, entry: str, status: str, words: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages, "EVALUATE", f"{FAULTS}:{entry}")
        _is_recorded(faulty.evaluate(large_model if status == "oom" else faulty.model), status, words)
    _goes_on(faulty)


def test_an_evaluation_that_takes_too_long_is_ended_with_all_it_started(
    faulty: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = faulty.bench.supervisor._server
    with monkeypatch.context() as patch:
        patch.setattr(stages, "EVALUATE", f"{FAULTS}:stuck")
        _is_recorded(faulty.evaluate(faulty.model, episode_timeout_s=15.0), "timed_out", "15 s", "episode_timeout_s")
    assert server is None or _children(server.pid) == []
    _goes_on(faulty)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_model_that_computes_nan_is_a_result(faulty: Study, copy: Path, name: str) -> None:
    weights = load_file(copy / "model.safetensors")
    weights[name][0, 0] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    _is_recorded(faulty.evaluate(copy), "failed", "logits must be finite", "NaN")
    _goes_on(faulty)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _scramble(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def _scramble_values(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4000:-3000] = bytes(1000)
    path.write_bytes(data)


def _damage_configuration(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text("{" + " " * (path.stat().st_size - 1))


def _damage_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text("[]" + " " * (path.stat().st_size - 2))


@pytest.mark.parametrize(
    ("own", "damage", "words"),
    [
        (True, _cut, "bytes"),
        (True, _scramble, "digest"),
        (True, _scramble_values, "digest"),
        (True, shutil.rmtree, "does not exist"),
        (False, _scramble, "safetensors"),  # a user's own folder: what cannot be read is said where it is read
        (False, _damage_configuration, "config.json"),
        (False, _damage_tokenizer, "tokenizer"),
    ],
)
def test_a_checkpoint_that_is_damaged_before_it_is_measured_is_a_result(
    faulty: Study, compressed_model: Path, tmp_path: Path, own: bool, damage: Callable[[Path], None], words: str
) -> None:
    copy = Path(shutil.copytree(compressed_model if own else faulty.model, tmp_path / "stored"))
    compressed = CompressionOutcome(status="succeeded", checkpoint=checkpoint_ref(copy, "damaged"))
    _is_recorded(faulty.finish(compressed, spoil=lambda: damage(copy)), "failed", words)
    _goes_on(faulty)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a full disk needs root to mount a small tmpfs")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder: Path) -> None:
    (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free))


def test_a_disk_that_is_full_when_the_result_is_stored_is_a_result(faulty: Study, small_disk: Path) -> None:
    _fill(small_disk)
    faulty.home.joinpath("data", "artifacts").mkdir(parents=True, exist_ok=True)
    store = get_settings().artifacts / "evaluations"
    store.symlink_to(small_disk, target_is_directory=True)
    _is_recorded(faulty.evaluate(faulty.model), "failed", "No space left on device")
    (small_disk / "ballast").unlink()
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    _goes_on(faulty)


def test_a_disk_that_is_full_when_the_checkpoint_is_stored_is_a_result(faulty: Study, small_disk: Path) -> None:
    checkpoints = get_settings().checkpoints
    checkpoints.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.symlink_to(small_disk, target_is_directory=True)
    source = SpecSource(source="local_checkpoint", parameters=100_000, exact=True)
    spec = ModelSpec(
        model="tiny", path=str(faulty.model), digest="b" * 16, parameters=100_000, bytes_per_parameter=4,
        dtype="float32", family="llama", size_class="tiny", sources=(source,),
    )  # fmt: skip
    plan = EpisodePlan(
        study="faults", episode=0, strategy=Strategy.parse("rtn:bits=8"), planner="user", source="user", seed=0
    )
    compressed = domain.compress(faulty.config, spec, faulty.dataset, plan, faulty.bench)
    _is_recorded(faulty.finish(compressed), "failed", "No space left on device")
    assert [path.name for path in small_disk.iterdir() if "partial" in path.name or path.name[0] != "."] == []
    _goes_on(faulty)


def test_a_tokenizer_without_padding_and_prompts_beyond_the_context_are_measured(faulty: Study) -> None:
    assert AutoTokenizer.from_pretrained(faulty.model).pad_token_id is None
    record = faulty.evaluate(faulty.model)
    assert record.status == "succeeded", record.error
    assert record.evaluation is not None
    scores = {score.task: score for score in record.evaluation.benchmarks}
    assert scores["items"].score.n == 9
    assert scores["answers"].score.n == 4
