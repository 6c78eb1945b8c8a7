from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from agentic_compression.errors import ModelError
from agentic_compression.settings import Settings
from agentic_compression.spec import infer_spec
from tests.conftest import SHARED
from tests.unit.spec.checkpoints import CONFIG, PARAMETERS, tensors, write_folder, write_sharded


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


def test_infer_spec_counts_a_folder_exactly(tmp_path: Path, settings: Settings) -> None:
    spec = infer_spec(str(write_folder(tmp_path / "m")), settings=settings)
    assert spec.parameters == PARAMETERS
    assert spec.sources[0].source == "local_checkpoint"
    assert spec.sources[0].exact
    assert spec.dtype == "float32"
    assert spec.bytes_per_parameter == 4
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.size_class) == (1, 2, 4, "tiny")
    assert spec.warnings == ()


def test_infer_spec_counts_shards_like_one_file(tmp_path: Path, settings: Settings) -> None:
    spec = infer_spec(str(write_sharded(tmp_path / "m")), settings=settings)
    assert spec.parameters == PARAMETERS


def test_infer_spec_counts_tied_embeddings_once(tmp_path: Path, settings: Settings) -> None:
    both = infer_spec(str(write_folder(tmp_path / "a", tie_word_embeddings=True)), settings=settings)
    content = tensors()
    del content["lm_head.weight"]
    one = infer_spec(str(write_folder(tmp_path / "b", content, tie_word_embeddings=True)), settings=settings)
    assert both.parameters == one.parameters == PARAMETERS - 24 * 16


def test_infer_spec_counts_packed_weights_by_logical_parameters(tmp_path: Path, settings: Settings) -> None:
    content = tensors()
    packed = 0
    for name in [name for name in content if "_proj" in name]:
        weight = content.pop(name)
        stem = name.removesuffix(".weight")
        content[f"{stem}.weight_packed"] = np.zeros((weight.shape[0], weight.shape[1] // 8), np.int32)
        content[f"{stem}.weight_shape"] = np.array(weight.shape, np.int64)
        content[f"{stem}.weight_scale"] = np.zeros((weight.shape[0], 1), np.float32)
        packed += weight.size
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}}
    spec = infer_spec(str(write_folder(tmp_path / "m", content, quantization_config=quantization)), settings=settings)
    assert spec.parameters == PARAMETERS
    assert spec.dtype == "int4"
    assert f"{packed:,} parameters are packed" in spec.sources[0].detail
    stored = sum(array.nbytes for array in content.values())
    assert spec.bytes_per_parameter == pytest.approx(stored / PARAMETERS)


def test_infer_spec_counts_what_compressed_tensors_itself_packs(tmp_path: Path, settings: Settings) -> None:
    torch = pytest.importorskip("torch")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    content = tensors()
    name = "model.layers.0.mlp.down_proj"
    weight = content.pop(f"{name}.weight")
    values = torch.zeros(weight.shape, dtype=torch.int8)
    content[f"{name}.weight_packed"] = pack_to_int32(values, 3).numpy()
    content[f"{name}.weight_shape"] = np.array(weight.shape, np.int64)
    spec = infer_spec(str(write_folder(tmp_path / "m", content)), settings=settings)
    assert spec.parameters == PARAMETERS


@pytest.mark.parametrize("bits", [4, 8])
def test_infer_spec_counts_gptq_and_bitsandbytes_weights(tmp_path: Path, settings: Settings, bits: int) -> None:
    content = tensors()
    gptq, bnb = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"
    content.pop(f"{gptq}.weight")
    content[f"{gptq}.qweight"] = np.zeros((16 * bits // 32, 32), np.int32)
    content[f"{gptq}.qzeros"] = np.zeros((1, 4), np.int32)
    content[f"{gptq}.scales"] = np.zeros((1, 32), np.float16)
    content[f"{gptq}.g_idx"] = np.zeros(16, np.int32)
    content[f"{bnb}.weight"] = np.zeros((32 * 16 // 2, 1), np.uint8)
    content[f"{bnb}.weight.absmax"] = np.zeros(8, np.float32)
    content[f"{bnb}.weight.quant_state.bitsandbytes__nf4"] = np.zeros(90, np.uint8)
    spec = infer_spec(str(write_folder(tmp_path / "m", content, quantization_config={"bits": bits})), settings=settings)
    assert spec.parameters == PARAMETERS


def test_infer_spec_digest_follows_content_not_place(tmp_path: Path, settings: Settings) -> None:
    a, b = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    first, second = (infer_spec(str(path), settings=settings).digest for path in (a, b))
    changed = tensors()
    changed["model.norm.weight"][3] = 1
    third = infer_spec(str(write_folder(tmp_path / "c", changed)), settings=settings).digest
    assert first == second != third


def test_infer_spec_warns_with_both_numbers_when_the_name_disagrees(tmp_path: Path, settings: Settings) -> None:
    spec = infer_spec(str(write_folder(tmp_path / "llama-7b")), settings=settings)
    assert len(spec.warnings) == 1
    assert f"{PARAMETERS:,}" in spec.warnings[0]
    assert "7,000,000,000" in spec.warnings[0]


def test_infer_spec_reads_a_real_checkpoint(settings: Settings) -> None:
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    spec = infer_spec(str(folder), settings=settings)
    assert spec.parameters == 260_032  # as its SOURCE.md says
    assert spec.tied_embeddings is True


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _encoder(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps({**CONFIG, "architectures": ["BertForMaskedLM"], "model_type": "bert"})
    )


def _remote_code(folder: Path) -> None:
    config = {**CONFIG, "model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling.Mystery"}}
    (folder / "config.json").write_text(json.dumps(config))


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def _missing_shard(folder: Path) -> None:
    _no_weights(folder)
    write_sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _wrong_index(folder: Path) -> None:
    _no_weights(folder)
    write_sharded(folder)
    save_file({"other": np.zeros(2, np.float32)}, folder / "model-00002-of-00002.safetensors")


def _escaping_shard(folder: Path) -> None:
    _no_weights(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def _impossible_shape(folder: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    packed, shape = np.zeros((16, 4), np.int32), np.array([2**40, 2**20], np.int64)
    save_file({f"{name}.weight_packed": packed, f"{name}.weight_shape": shape}, folder / "model.safetensors")


def _empty(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_config, "no config.json"),
        (_adapter, "LoRA adapter"),
        (_bad_config, "not valid JSON"),
        (_encoder, "not a causal language model, got BertForMaskedLM"),
        (_remote_code, "--trust-remote-code"),
        (_truncated, "truncated"),
        (_no_tokenizer, "no tokenizer"),
        (_pickle, "only pickle weights"),
        (_no_weights, "no weights at all"),
        (_other_name, "got weights.safetensors"),
        (_missing_shard, "lacks 1 of 2 shards"),
        (_wrong_index, "the index promises tensor"),
        (_escaping_shard, "in the same folder"),
        (_empty, "no parameters"),
        (_impossible_shape, "more than its packed weight holds"),
    ],
)
def test_infer_spec_says_in_one_line_what_is_wrong_with_a_folder(
    tmp_path: Path, settings: Settings, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_folder(tmp_path / "m")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        infer_spec(str(folder), settings=settings)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_infer_spec_suggests_near_folders(tmp_path: Path, settings: Settings) -> None:
    write_folder(tmp_path / "my-model")
    with pytest.raises(ModelError, match=r"did you mean .*my-model"):
        infer_spec(str(tmp_path / "my-modle"), settings=settings)


@pytest.mark.parametrize("model", ["", "what is this", "a b/c"])
def test_infer_spec_refuses_what_is_no_name(settings: Settings, model: str) -> None:
    with pytest.raises(ModelError):
        infer_spec(model, settings=settings)


def test_infer_spec_refuses_a_file(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        infer_spec(str(path), settings=settings)
