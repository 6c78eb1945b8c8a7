"""Plain Hugging Face folders: the same model as transformers loads, in memory of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from agentic_compression.checkpoints.plain_folder import load_plain_folder
from agentic_compression.errors import ModelError
from tests.unit.methods.tiny_models import logits, save_tiny, tiny_model


def same(ours: Any, theirs: Any) -> None:
    for mine, other in (
        (ours.named_parameters(remove_duplicate=False), theirs.named_parameters(remove_duplicate=False)),
        (ours.named_buffers(), theirs.named_buffers()),
    ):
        found, expected = dict(mine), dict(other)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.training == theirs.training
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "tied", "biases"])
def test_model_is_the_one_transformers_loads(kind: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", kind, torch.bfloat16)
    ours = load_plain_folder(folder, dtype)
    same(ours, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto"))
    tied = ours.lm_head.weight is ours.get_input_embeddings().weight
    assert tied == (kind == "tied")


def test_renamed_and_merged_tensors_are_transformers_business(tmp_path: Path) -> None:
    """Experts are stored one by one and held as one tensor; a prefix may be missing."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    stored = load_file(tmp_path / "experts" / "model.safetensors")
    assert any("experts.3" in name for name in stored)
    same(load_plain_folder(tmp_path / "experts"), AutoModelForCausalLM.from_pretrained(tmp_path / "experts"))
    folder = save_tiny(tmp_path / "model", "tied")
    path = folder / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    same(load_plain_folder(folder), AutoModelForCausalLM.from_pretrained(folder))


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    save_file({"rubbish": torch.zeros(3)}, folder / "other.safetensors")
    same(load_plain_folder(folder), AutoModelForCausalLM.from_pretrained(folder))
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / names["lm_head.weight"]).unlink()
    with pytest.raises(ModelError, match="misses model-"):
        load_plain_folder(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_no_weights_file_stays_mapped(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    model = load_plain_folder(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    model.lm_head.weight.data.zero_()
    assert float(load_file(folder / "model.safetensors")["lm_head.weight"].abs().max()) > 0


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match="complete safetensors file"):
        load_plain_folder(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_plain_folder(folder)
    other = save_tiny(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(ModelError, match="could not be loaded by transformers"):
        load_plain_folder(other)
