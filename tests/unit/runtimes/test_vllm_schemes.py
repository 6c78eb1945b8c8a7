"""What vLLM can load is read off our manifest, so that nothing here needs vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from agentic_compression.checkpoints.manifest import (
    MANIFEST_NAME,
    CheckpointManifest,
    Fp8Module,
    LowRankModule,
    ModuleRepresentation,
    PackedModule,
)
from agentic_compression.errors import ModelError, UnavailableError
from agentic_compression.records import BASELINE
from agentic_compression.runtimes import open_runtime
from agentic_compression.runtimes.vllm_schemes import check_vllm_loads
from agentic_compression.storage import write_record

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
NAMES = [f"model.layers.{block}.{name}" for block in range(2) for name in ATTENTION + MLP]
FIRST = "model.layers.0."
W4 = PackedModule(bits=4, group_size=128, symmetric=True)


def write_folder(
    folder: Path,
    modules: dict[str, ModuleRepresentation],
    names: Iterable[str] = NAMES,
    loads_with: tuple[str, ...] = ("acf", "transformers"),
) -> Path:
    """A checkpoint of which only the manifest and the tensors' names matter."""
    manifest = CheckpointManifest(base_digest="", strategy=BASELINE, modules=modules, loads_with=loads_with)
    write_record(folder / MANIFEST_NAME, manifest)
    tensors = {f"{name}.{'weight_packed' if name in modules else 'weight'}": np.zeros(1, np.float32) for name in names}
    save_file(tensors | {"model.norm.weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [-1, 32, 64, 128])
def test_uniform_schemes_pass(tmp_path: Path, bits: int, group_size: int) -> None:
    scheme = PackedModule(bits=bits, group_size=group_size, symmetric=False)
    check_vllm_loads(write_folder(tmp_path, dict.fromkeys(NAMES, scheme)))


def test_blocks_and_matrices_that_are_not_fused_may_differ(tmp_path: Path) -> None:
    modules: dict[str, ModuleRepresentation] = dict.fromkeys(NAMES, W4)
    for name in NAMES[7:]:
        modules[name] = PackedModule(bits=8, group_size=64, symmetric=True)
    del modules[f"{FIRST}mlp.down_proj"], modules[f"{FIRST}self_attn.o_proj"]
    check_vllm_loads(write_folder(tmp_path, modules))


def test_other_folders_pass(tmp_path: Path, dense_path: Path) -> None:
    check_vllm_loads(dense_path)
    check_vllm_loads(write_folder(tmp_path, {}))
    check_vllm_loads(write_folder(tmp_path, dict.fromkeys(NAMES, Fp8Module())))


def test_a_module_without_siblings_in_the_model_passes(tmp_path: Path) -> None:
    """An MLP without a gate has nothing for ``up_proj`` to be fused with."""
    names = [name for name in NAMES if not name.endswith("gate_proj")]
    check_vllm_loads(write_folder(tmp_path, dict.fromkeys(names, W4), names))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"self_attn.o_proj": W4.model_copy(update={"bits": 3})},
            r"0\.self_attn\.o_proj must have 4 or 8 bits.* got 3",
        ),
        (
            {"mlp.down_proj": W4.model_copy(update={"group_size": 16})},
            r"0\.mlp\.down_proj must have groups of -1 \(whole rows\), 32, 64 or 128.* got 16",
        ),
        (
            {"self_attn.v_proj": W4.model_copy(update={"bits": 8})},
            r"0\.self_attn\.q_proj and model\.layers\.0\.self_attn\.v_proj must be stored alike.*"
            r"got 4 bits in symmetric groups of 128 and 8 bits in symmetric groups of 128",
        ),
        (
            {"mlp.up_proj": W4.model_copy(update={"group_size": -1, "symmetric": False})},
            r"0\.mlp\.gate_proj and .*0\.mlp\.up_proj .* and 4 bits in asymmetric whole rows",
        ),
        ({"self_attn.k_proj": None}, r"0\.self_attn\.q_proj and .*0\.self_attn\.k_proj .*128 and dense"),
        ({"mlp.gate_proj": None}, r"0\.mlp\.up_proj and .*0\.mlp\.gate_proj .*128 and dense"),
        ({"mlp.up_proj": Fp8Module()}, r"0\.mlp\.gate_proj and .*0\.mlp\.up_proj .*128 and fp8"),
    ],
)
def test_the_first_module_that_vllm_cannot_load_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    modules: dict[str, Any] = dict.fromkeys(NAMES, W4)
    for block in (0, 1):
        modules |= {f"model.layers.{block}.{name}": scheme for name, scheme in changed.items()}
    kept = {name: scheme for name, scheme in modules.items() if scheme is not None}
    with pytest.raises(ModelError, match=message) as caught:
        check_vllm_loads(write_folder(tmp_path, kept))
    assert "layers.1" not in str(caught.value)
    assert "; " in str(caught.value)


def test_our_own_formats_are_refused_by_module(tmp_path: Path) -> None:
    modules: dict[str, ModuleRepresentation] = dict.fromkeys(NAMES[:3], W4)
    modules[NAMES[3]] = LowRankModule(rank=4)
    write_folder(tmp_path, modules, loads_with=("acf",))
    with pytest.raises(ModelError, match=r"loads with acf only.*0\.self_attn\.o_proj is stored as low_rank"):
        check_vllm_loads(tmp_path)
    write_folder(tmp_path, {}, loads_with=("llama.cpp",))
    with pytest.raises(ModelError, match=r"loads with llama\.cpp only"):
        check_vllm_loads(tmp_path)


def test_opening_checks_the_folder_before_vllm_is_loaded(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(NAMES, W4.model_copy(update={"bits": 2})))
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj must have 4 or 8 bits"):
        open_runtime(tmp_path, "cpu", kind="vllm")
    write_folder(tmp_path, dict.fromkeys(NAMES, W4))
    with pytest.raises(UnavailableError, match="vllm is not available"):
        open_runtime(tmp_path, "cpu", kind="vllm")
