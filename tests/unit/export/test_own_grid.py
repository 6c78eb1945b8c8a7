"""Checkpoints of integers as GGUF files on their own grid: which layers keep it, what is said, what follows a fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agentic_compression.checkpoints import CheckpointOrigin, save_checkpoint
from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
from agentic_compression.checkpoints.gguf_grid import grid_rows
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.export import ExportRequest, export_checkpoint
from agentic_compression.export.plan import plan_export
from agentic_compression.records import Strategy
from agentic_compression.settings import Settings
from tests.unit.export.checkpoints import InProcess, applied, built, checked, made
from tests.unit.methods.tiny_models import tiny_model, tiny_tokenizer

NAMES = ("dense", "rtn4", "rtn8", "int8", "fp8", "low_rank", "low_rank_packed", "adapted", "zeros_and_int8")
OWN = ("own codes, the rest Q8_0", "own codes, the rest F16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: made(name, root / name) for name in NAMES}


def saved(model: Any, folder: Path) -> Path:
    origin = CheckpointOrigin(base_digest="tiny", strategy=Strategy.parse("rtn"))
    return Path(save_checkpoint(model, tiny_tokenizer(), folder, origin).path)


def test_own_codes_come_first_then_types_from_the_checkpoints_bits_on(folders: dict[str, Path]) -> None:
    types = {name: plan_export(folders[name], "gguf").gguf_types for name in NAMES[:6]}
    assert types == {
        "dense": ("F16",),
        "rtn4": (*OWN, "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"),
        "rtn8": (*OWN, "Q8_0", "F16"),
        "int8": (*OWN, "Q8_0", "F16"),
        "fp8": ("Q8_0", "F16"),
        "low_rank": ("F16",),
    }
    assert plan_export(folders["adapted"], "gguf").gguf_types == (*OWN, "F16")
    assert plan_export(folders["rtn4"], "gguf", "Q4_K_M").gguf_types == ("Q4_K_M",)


def test_groups_that_are_no_blocks_and_parts_of_layers_have_no_own_grid(tmp_path: Path) -> None:
    small = tiny_model()
    codes = torch.randint(-8, 8, (128, 64), dtype=torch.int8)
    scale = torch.full((128, 4), 0.01, dtype=torch.bfloat16)
    small.model.layers[0].mlp.up_proj = PackedLinear(QuantizedTensor(codes, scale, None, 4))
    assert plan_export(saved(small, tmp_path / "small"), "gguf").gguf_types[0] == "Q4_K_M"
    model = tiny_model()
    part = applied(tiny_model(), "rtn:bits=4,group_size=32").model.layers[0].mlp.up_proj
    down, up = (torch.nn.Linear(*shape, bias=False, dtype=torch.bfloat16) for shape in ((64, 4), (4, 128)))
    model.model.layers[0].mlp.up_proj = AdaptedLinear(part, down, up)
    assert plan_export(saved(model, tmp_path / "part"), "gguf").gguf_types == ("F16",)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("rtn4", "Q4_1 on the checkpoint's own grid, the rest Q8_0"),
        ("rtn8", "Q8_0 on the checkpoint's own grid, the rest Q8_0"),
        ("zeros_and_int8", "Q8_0 on the checkpoint's own grid, the rest Q8_0"),
        ("adapted", "Q4_1 on the checkpoint's own grid, the rest Q8_0"),
        ("low_rank_packed", "Q8_0"),
    ],
)
def test_files_with_the_checkpoints_own_codes_answer_alike(
    name: str, form: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    made_of = built(folders[name], "gguf", tmp_path / "gguf")
    assert made_of.form == form
    kept = sum("keep the checkpoint's own codes" in note for note in made_of.notes)
    assert kept == (form != "Q8_0")
    rounded = sum("are dequantized and rounded to llama.cpp's blocks" in note for note in made_of.notes)
    assert rounded == (name in {"adapted", "low_rank_packed"})
    result = checked(folders[name], "gguf", tmp_path / "gguf", rounds=name == "zeros_and_int8")
    assert result.passed, result.problem


def test_layers_without_a_block_for_their_codes_are_named_with_the_reason(tmp_path: Path) -> None:
    model = applied(tiny_model("odd"), "rtn:bits=4,group_size=32,symmetric=true")
    blocks = model.model.layers
    weight = blocks[1].mlp.up_proj.quantized()
    blocks[1].mlp.up_proj = PackedLinear(replace(weight, scale=weight.scale.float() * 1e-7))
    wide = applied(tiny_model("odd"), "rtn:bits=8,group_size=64").model.layers[0].self_attn
    blocks[0].self_attn.q_proj, blocks[0].self_attn.k_proj = wide.q_proj, wide.k_proj
    blocks[1].self_attn.v_proj = applied(tiny_model(), "rtn:bits=8,symmetric=true").model.layers[1].self_attn.v_proj
    source = saved(model, tmp_path / "source")
    made_of = built(source, "gguf", tmp_path / "made")
    assert made_of.form == "Q4_0 and Q8_0 on the checkpoint's own grid, the rest Q8_0"
    said = "do not keep their codes, the first is model.layers"
    far = "codes of 8 bits lie further than a signed byte from their zero points"
    assert set(made_of.notes) >= {
        "linears that keep the checkpoint's own codes: 8 as Q4_0, 1 as Q8_0; only scales are rounded, to float16",
        f"2 linears {said}.0.mlp.down_proj: groups of 43 weights are no whole blocks of 32",
        f"1 linears {said}.1.mlp.up_proj: float16 does not hold their scales",
        f"2 linears {said}.0.self_attn.q_proj: {far}",
        "layers stored as packed are dequantized and rounded to llama.cpp's blocks",
    }
    result = checked(source, "gguf", tmp_path / "made")
    assert result.passed, result.problem


def negated(weight: QuantizedTensor, type_name: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Blocks whose scales have the other sign."""
    return grid_rows(replace(weight, scale=-weight.scale), type_name, rows)


def test_where_own_codes_answer_otherwise_the_usual_types_are_tried(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: Any = InProcess()
    monkeypatch.setattr("agentic_compression.checkpoints.gguf_file.grid_rows", negated)
    request = ExportRequest(source=str(folders["rtn4"]), format="gguf", output=tmp_path / "made")
    record = export_checkpoint(request, Settings(ACF_HOME=tmp_path / "state"), here)
    assert record.form in {"Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"}
    assert not [note for note in record.notes if "keep the checkpoint's own codes" in note]
    tried = [note.split(" was tried")[0] for note in record.notes if "was tried and lies too far off" in note]
    assert tuple(tried[:2]) == OWN
    assert "layers stored as packed are dequantized and rounded to llama.cpp's blocks" in record.notes


class Noting(InProcess):
    """Runs a child's entry here, and keeps which GGUF types were written."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def run(self, entry: str, request: Any, **options: Any) -> Any:
        self.types += [request.gguf_type] if entry.endswith(":build") else []
        return super().run(entry, request, **options)


@pytest.mark.parametrize(
    ("name", "types"), [("tiny_scales", (OWN[0], "Q4_K_M")), ("low_rank_packed", (OWN[0], "Q8_0"))]
)
def test_where_no_layer_keeps_its_codes_the_smaller_types_come_first(
    name: str, types: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    if name == "tiny_scales":
        model = applied(tiny_model(), "rtn:bits=4,group_size=32")
        for path, layer in list(model.named_modules()):
            if isinstance(layer, PackedLinear):
                weight = layer.quantized()
                model.set_submodule(path, PackedLinear(replace(weight, scale=weight.scale.float() * 1e-7)))
        source = saved(model, tmp_path / "source")
    else:
        source = folders[name]
    here: Any = Noting()
    request = ExportRequest(source=str(source), format="gguf", output=tmp_path / "made")
    record = export_checkpoint(request, Settings(ACF_HOME=tmp_path / "state"), here)
    assert tuple(here.types[:2]) == types
    assert OWN[1] not in here.types
    assert record.form == here.types[-1] != "F16"
    assert any("do not keep their codes" in note or "no linear keeps" in note for note in record.notes)
