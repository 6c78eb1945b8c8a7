"""What is saved is what comes back, also in a fresh process and by plain transformers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentic_compression.checkpoints import (
    CheckpointOrigin,
    LowRankModule,
    PackedModule,
    load_checkpoint,
    new_folder,
    preload_runtime,
    read_manifest,
    save_checkpoint,
    shipped_files,
)
from agentic_compression.checkpoints.tensor_files import TensorFile
from agentic_compression.errors import ModelError
from agentic_compression.methods import CompressionContext, get_method
from tests.unit.methods.tiny_models import logits, save_tiny, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]
RTN = get_method("rtn")


def compressed(kind: str, dtype: torch.dtype, *stages: tuple[str, dict[str, object]]) -> torch.nn.Module:
    model = tiny_model(kind, dtype)
    for name, parameters in stages:
        method = get_method(name)
        model = method.apply(model, method.config.model_validate(parameters), CompressionContext()).model
    return model


CASES = {
    "dense": ("llama", torch.float32, ()),
    "tied": ("tied", torch.float32, (("rtn", {"bits": 4, "group_size": 32}),)),
    "bfloat16": ("llama", torch.bfloat16, (("rtn", {"bits": 3, "group_size": 64}),)),
    "float16": ("llama", torch.float16, (("rtn", {"bits": 4, "group_size": 32}),)),
    "biases": ("biases", torch.float32, (("rtn", {"bits": 8, "group_size": -1, "symmetric": True}),)),
    "odd": ("odd", torch.float32, (("rtn", {"bits": 2, "group_size": 32}),)),
    "bitmask": ("tied", torch.bfloat16, (("magnitude", {"sparsity": 0.5}),)),
    "low_rank": ("biases", torch.float32, (("asvd", {"rank_ratio": 0.5, "alpha": 0.0}),)),
    "low_rank_packed": (
        "llama",
        torch.bfloat16,
        (("asvd", {"rank_ratio": 0.5, "alpha": 0.0}), ("rtn", {"bits": 4, "group_size": 32})),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_equal_after_reload(case: str, tmp_path: Path) -> None:
    kind, dtype, stages = CASES[case]
    model = compressed(kind, dtype, *stages)
    reference = save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin(base_digest="b"))
    loaded = load_checkpoint(reference.path)
    assert torch.equal(logits(loaded.model), logits(model))  # few rows: the kernel
    assert torch.equal(logits(loaded.model, 8), logits(model, 8))  # many rows: dequantized tiles
    assert loaded.model.dtype == dtype
    assert not list(tmp_path.glob(".*.partial"))
    assert reference.size_bytes == sum(path.stat().st_size for path in (tmp_path / "made").iterdir())


@pytest.mark.parametrize("case", ["dense", "tied", "bfloat16", "biases", "odd"])
def test_plain_transformers_loads_the_same_weights(case: str, tmp_path: Path) -> None:
    kind, dtype, stages = CASES[case]
    model = compressed(kind, dtype, *stages)
    reference = save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    assert "transformers" in reference.loads_with
    plain = AutoModelForCausalLM.from_pretrained(reference.path, local_files_only=True).eval()
    ours = load_checkpoint(reference.path).model
    expected = logits(plain, 8)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    assert (logits(ours, 8) - expected).abs().max() <= tolerance * expected.abs().max()
    AutoTokenizer.from_pretrained(reference.path, local_files_only=True)


@pytest.mark.parametrize("case", ["bitmask", "low_rank"])
def test_plain_transformers_refuses_what_it_cannot_load(case: str, tmp_path: Path) -> None:
    kind, dtype, stages = CASES[case]
    reference = save_checkpoint(compressed(kind, dtype, *stages), None, tmp_path / "made", CheckpointOrigin())
    assert reference.loads_with == ("acf",)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(reference.path, local_files_only=True)


def test_fresh_process_gives_the_same_logits(tmp_path: Path) -> None:
    kind, dtype, stages = CASES["low_rank_packed"]
    model = compressed(kind, dtype, *stages)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    torch.save(logits(model).float(), tmp_path / "expected.pt")
    script = (
        "import sys, torch\n"
        "from agentic_compression.checkpoints import load_checkpoint\n"
        "from tests.unit.methods.tiny_models import logits\n"
        "got = logits(load_checkpoint(sys.argv[1]).model).float()\n"
        "assert torch.equal(got, torch.load(sys.argv[2], weights_only=True)), 'logits differ'\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "made"), str(tmp_path / "expected.pt")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    model = tiny_model("tied")
    save_checkpoint(model, None, tmp_path / "made", CheckpointOrigin())
    stored = load_file(tmp_path / "made" / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert "model.embed_tokens.weight" in stored
    loaded = load_checkpoint(tmp_path / "made")
    assert loaded.model.lm_head.weight.data_ptr() == loaded.model.model.embed_tokens.weight.data_ptr()
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert parameters <= loaded.weights_bytes <= parameters + 1000  # rotary frequencies are buffers


def test_manifest_names_every_compressed_module(tmp_path: Path) -> None:
    kind, dtype, stages = CASES["low_rank_packed"]
    save_checkpoint(compressed(kind, dtype, *stages), None, tmp_path / "made", CheckpointOrigin(base_digest="base"))
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.base_digest == "base"
    assert len(manifest.modules) == 3 * 14  # a pair and its two factors
    pair = manifest.modules["model.layers.0.self_attn.q_proj"]
    assert isinstance(pair, LowRankModule)
    assert pair.rank == 16
    assert isinstance(manifest.modules["model.layers.0.self_attn.q_proj.down"], PackedModule)


def test_plain_folder_loads_without_manifest(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_tiny(tmp_path / "base", "tied"))
    assert loaded.manifest is None
    assert loaded.tokenizer("ab")["input_ids"][0] == 0
    assert torch.equal(logits(loaded.model), logits(tiny_model("tied")))
    assert load_checkpoint(tmp_path / "base", dtype="bfloat16").model.dtype == torch.bfloat16


def test_preload_leaves_nothing_to_import_for_loading(tmp_path: Path) -> None:
    preload_runtime()
    save_checkpoint(compressed("llama", torch.float32, ("rtn", {})), None, tmp_path / "made", CheckpointOrigin())
    before = set(sys.modules)
    load_checkpoint(tmp_path / "made")
    assert not {name for name in set(sys.modules) - before if name.startswith("agentic_compression")}


def test_shipped_files_leave_out_what_the_model_does_not_need(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (base / "notes.md").write_text("x")
    names = {path.name for path in shipped_files(base)}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    assert "notes.md" not in names


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_checkpoint(base)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    save_checkpoint(compressed("llama", torch.float32, ("rtn", {})), None, tmp_path / "made", CheckpointOrigin())
    weights = tmp_path / "made" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="complete safetensors"):
        load_checkpoint(tmp_path / "made")


def test_shards_load_like_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentic_compression.checkpoints.tensor_files.SHARD_BYTES", 20_000)
    model = compressed("biases", torch.float32, ("rtn", {"bits": 4}))
    save_checkpoint(model, None, tmp_path / "made", CheckpointOrigin())
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert torch.equal(logits(load_checkpoint(tmp_path / "made").model), logits(model))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "made", local_files_only=True).eval()
    assert torch.allclose(logits(plain, 8), logits(model, 8), atol=1e-4)


def test_saving_twice_gives_the_same_digest(tmp_path: Path) -> None:
    first = save_checkpoint(compressed("odd", torch.float32, ("rtn", {})), None, tmp_path / "a", CheckpointOrigin())
    second = save_checkpoint(compressed("odd", torch.float32, ("rtn", {})), None, tmp_path / "b", CheckpointOrigin())
    assert first.digest == second.digest
    assert first.size_bytes == second.size_bytes


def test_killed_writer_leaves_no_checkpoint(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from agentic_compression.checkpoints.folders import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'config.json').write_text('{}')\n"
        "    (Path(sys.argv[1]).parent / 'ready').touch()\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "made")], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "made").exists()


def test_writer_that_comes_second_keeps_the_first_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as slow:
        (slow / "config.json").write_text("slow")
        with new_folder(tmp_path / "made") as quick:
            for name in ("config.json", "acf_checkpoint.json", "model.safetensors"):
                (quick / name).write_text("quick")
    assert (tmp_path / "made" / "config.json").read_text() == "quick"
    assert not list(tmp_path.glob(".*.partial"))


def test_writer_never_takes_an_incomplete_folder_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("left by someone")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "made") as folder:
        (folder / "config.json").write_text("new")


def test_head_of_its_own_survives_a_config_that_says_tied(tmp_path: Path) -> None:
    model = tiny_model("tied")
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    assert torch.equal(logits(load_checkpoint(tmp_path / "made").model), logits(model))


def test_single_tensors_keep_the_dtype_they_are_stored_in(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16)
    model.model.norm.weight.data = model.model.norm.weight.data.float() + 1e-4
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    loaded = load_checkpoint(tmp_path / "made").model
    assert loaded.model.norm.weight.dtype == torch.float32
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight)
    assert load_checkpoint(tmp_path / "made", dtype="bfloat16").model.model.norm.weight.dtype == torch.bfloat16


def test_manifest_of_another_model_is_a_clear_error(tmp_path: Path) -> None:
    made = tmp_path / "made"
    save_checkpoint(compressed("llama", torch.float32, ("rtn", {})), tiny_tokenizer(), made, CheckpointOrigin())
    manifest = json.loads((made / "acf_checkpoint.json").read_text())
    manifest["aliases"] = {"lm_head.weight": "nowhere.weight"}
    (made / "acf_checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="do not belong together"):
        load_checkpoint(made)


@pytest.mark.parametrize("change", [{"shape": [4, 4]}, {"data_offsets": [-8, 8]}, {"data_offsets": [0, 8]}])
def test_safetensors_header_that_lies_is_refused(tmp_path: Path, change: dict[str, list[int]]) -> None:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | change
    rest = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": rest}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with TensorFile(path) as file, pytest.raises(ModelError, match="build"):
        file.read("a")
