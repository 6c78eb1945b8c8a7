"""A strategy from request to stored checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentic_compression.checkpoints import load_checkpoint, read_manifest
from agentic_compression.errors import CompressionError, ModelError, StrategyError
from agentic_compression.methods import CompressionRequest, compress, content_key
from agentic_compression.records import CompressionOutcome, Strategy
from tests.unit.methods.tiny_models import logits, save_tiny, write_text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_text(folder / "text.jsonl")
    return save_tiny(folder / "model", "tied")


def request(base: Path, root: Path, strategy: str, **changes: object) -> CompressionRequest:
    values: dict[str, object] = {
        "model_path": str(base),
        "base_digest": "base",
        "strategy": Strategy.parse(strategy),
        "calibration_path": str(base.parent / "text.jsonl"),
        "calibration_digest": "text",
        "calibration_samples": 12,
        "calibration_tokens": 40,
        "checkpoints_root": str(root),
    }
    return CompressionRequest.model_validate(values | changes)


def done(outcome: CompressionOutcome) -> str:
    assert outcome.status == "succeeded"
    assert outcome.checkpoint is not None
    return outcome.checkpoint.path


def test_baseline_is_the_users_own_folder(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("not shipped" * 1000)
    outcome = compress(request(base, tmp_path, "baseline"))
    assert outcome.checkpoint is not None
    assert outcome.checkpoint.shared
    assert done(outcome) == str(base.resolve())
    weights = (base / "model.safetensors").stat().st_size
    assert weights < outcome.checkpoint.size_bytes < weights + 30_000
    assert [path.name for path in tmp_path.iterdir() if path.name != ".locks"] == []


def test_two_stages_are_applied_in_order_and_cached(base: Path, tmp_path: Path) -> None:
    wanted = request(base, tmp_path, "magnitude:sparsity=0.5 | gptq:bits=4,group_size=32")
    outcome = compress(wanted)
    path = done(outcome)
    assert Path(path).name == content_key(wanted)
    assert not outcome.cached
    assert [timing.cached for timing in outcome.stages] == [False, False]
    loaded = load_checkpoint(path)
    assert loaded.manifest is not None
    assert [stage.method for stage in loaded.manifest.stages] == ["magnitude", "gptq"]
    weight = loaded.model.model.layers[0].mlp.up_proj.quantized().dequantize()
    assert float((weight == 0).float().mean()) >= 0.5
    assert (Path(path) / "tokenizer.json").read_text() == (base / "tokenizer.json").read_text()
    assert "truncation" not in (Path(path) / "tokenizer_config.json").read_text()  # calibration leaves none behind
    again = compress(wanted)
    assert again.cached
    assert again.checkpoint == outcome.checkpoint


def test_stored_prefix_is_continued_from_and_gives_the_same_bits(base: Path, tmp_path: Path) -> None:
    text = "svd_llm:rank_ratio=0.5 | rtn:bits=4,group_size=32"
    direct = compress(request(base, tmp_path / "direct", text))
    compress(request(base, tmp_path / "shared", "svd_llm:rank_ratio=0.5"))
    shared = compress(request(base, tmp_path / "shared", text))
    assert [timing.cached for timing in shared.stages] == [True, False]
    assert direct.checkpoint is not None
    assert shared.checkpoint is not None
    assert shared.checkpoint.digest == direct.checkpoint.digest


def test_key_depends_on_what_changes_the_result_only(base: Path, tmp_path: Path) -> None:
    key = content_key(request(base, tmp_path, "rtn:bits=4"))
    assert key == content_key(request(base, tmp_path / "elsewhere", "rtn", calibration_digest="other"))
    assert key != content_key(request(base, tmp_path, "rtn:bits=3"))
    assert key != content_key(request(base, tmp_path, "rtn", seed=1))
    assert key != content_key(request(base, tmp_path, "rtn", base_digest="other"))
    calibrated = content_key(request(base, tmp_path, "gptq"))
    assert calibrated != content_key(request(base, tmp_path, "gptq", calibration_digest="other"))
    plain = "asvd:alpha=0"
    assert content_key(request(base, tmp_path, plain)) == content_key(
        request(base, tmp_path, plain, calibration_digest="other")
    )


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("rtn | magnitude", "cannot follow"),
        ("rtn | gptq", "cannot follow"),
        ("magnitude | svd_llm", "cannot follow"),
        ("wanda:pattern=2:4 | sparsegpt", "cannot follow"),
        ("rtn:bits=5", "must be one of 2, 3, 4, 8"),
        ("rtn:nonsense=1", "no parameter"),
        ("nonsense", "unknown method"),
    ],
)
def test_illegal_strategies_are_refused_with_the_reason(
    base: Path, tmp_path: Path, strategy: str, message: str
) -> None:
    with pytest.raises(StrategyError, match=message):
        compress(request(base, tmp_path, strategy))


def test_missing_calibration_names_the_method(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="gptq needs calibration text"):
        compress(request(base, tmp_path, "gptq", calibration_path=None))
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "hello world"}\n')
    with pytest.raises(CompressionError, match="at least 256 tokens, got 12"):
        compress(request(base, tmp_path, "gptq", calibration_path=str(short)))
    short.write_text("not json\n")
    with pytest.raises(CompressionError, match="line 1 is not"):
        compress(request(base, tmp_path, "gptq", calibration_path=str(short)))


def test_nan_weights_are_found(base: Path, tmp_path: Path) -> None:
    broken = save_tiny(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompressionError, match=r"NaN.*layers\.1\.mlp\.up_proj"):
        compress(request(broken, tmp_path, "rtn"))


def test_compressed_base_is_refused(base: Path, tmp_path: Path) -> None:
    path = done(compress(request(base, tmp_path, "rtn:group_size=32")))
    with pytest.raises(ModelError, match="must not be compressed"):
        compress(request(Path(path), tmp_path, "rtn"))


def test_stage_that_fails_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weight: object, config: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("agentic_compression.methods.rtn.quantize", fail)
    with pytest.raises(CompressionError, match=r"stage rtn:.*boom"):
        compress(request(base, tmp_path, "rtn"))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".locks"] == []


def test_memory_errors_propagate(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weight: object, config: object) -> None:
        torch.empty(1 << 55)

    monkeypatch.setattr("agentic_compression.methods.rtn.quantize", fail)
    with pytest.raises(MemoryError):
        compress(request(base, tmp_path, "rtn"))


def test_progress_and_request_survive_json(base: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    wanted = request(base, tmp_path, "rtn")
    wanted = CompressionRequest.model_validate_json(wanted.model_dump_json())
    outcome = compress(wanted, lambda what, count, total: seen.append((what, count, total)))
    assert CompressionOutcome.model_validate_json(outcome.model_dump_json()) == outcome
    assert seen[0] == ("rtn", 0, 14)
    assert seen[-1] == ("rtn", 14, 14)
    manifest = read_manifest(Path(done(outcome)))
    assert manifest is not None
    assert manifest.strategy.stages[0].parameters["bits"] == 4
    assert logits(load_checkpoint(done(outcome)).model).shape == (2, 24, 258)
