"""Checkpoints of int8, nf4 and fp8: exact reload, and plain transformers gives close logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.quantizers.quantizers_utils import should_convert_module

from agentic_compression.checkpoints import CheckpointOrigin, load_checkpoint, read_manifest, save_checkpoint
from agentic_compression.checkpoints.bitsandbytes_format import bitsandbytes_config
from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext, CompressionRequest, compress
from agentic_compression.methods.fp8 import METHOD as FP8
from agentic_compression.methods.int8 import METHOD as INT8
from agentic_compression.methods.interface import Method
from agentic_compression.methods.nf4 import METHOD as NF4
from agentic_compression.records import Strategy
from tests.unit.methods.bitsandbytes_reference import bitsandbytes
from tests.unit.methods.tiny_models import logits, save_tiny, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]
CASES: dict[str, tuple[Method, dict[str, Any]]] = {
    "int8": (INT8, {}),
    "int8_without_threshold": (INT8, {"threshold": 0.0}),
    "nf4": (NF4, {}),
    "nf4_plain_scales": (NF4, {"double_quant": False}),
    "fp8": (FP8, {}),
}
KINDS = [("llama", torch.bfloat16), ("tied", torch.float32), ("biases", torch.float32), ("odd", torch.float32)]


def compressed(case: str, kind: str, dtype: torch.dtype) -> Any:
    method, parameters = CASES[case]
    return method.apply(tiny_model(kind, dtype), method.config(**parameters), CompressionContext()).model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_reload_is_exact(case: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = compressed(case, kind, dtype)
    assert torch.equal(model.lm_head.weight, tiny_model(kind, dtype).lm_head.weight)
    reference = save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    broken = case.startswith("nf4") and kind == "odd"  # rows of broken blocks, which bitsandbytes refuses on some CPUs
    assert reference.loads_with == (("acf",) if broken else ("acf", "transformers"))
    loaded = load_checkpoint(reference.path).model
    assert torch.equal(logits(loaded), logits(model))
    again = save_checkpoint(loaded, tiny_tokenizer(), tmp_path / "again", CheckpointOrigin())
    assert again.digest == reference.digest


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_plain_transformers_gives_close_logits(case: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if case != "fp8":
        bitsandbytes()
    if case.startswith("nf4") and kind == "odd":
        pytest.skip("bitsandbytes 0.50 refuses widths that 64 does not divide on CPUs with AVX-512 BF16")
    reference = save_checkpoint(compressed(case, kind, dtype), None, tmp_path / "made", CheckpointOrigin())
    plain = AutoModelForCausalLM.from_pretrained(reference.path, local_files_only=True).eval()
    expected = logits(plain).double()
    got = logits(load_checkpoint(reference.path).model).double()
    base = logits(tiny_model(kind, dtype)).double()
    lost = (got - base).norm() / base.norm()
    assert lost < {"int8": 0.04, "nf4": 0.4, "fp8": 0.2}[case.split("_", maxsplit=1)[0]]
    # Activations are rounded apart: each may be off by its own rounding, which for int8 and fp8 is the loss itself.
    apart = 0.02 if case.startswith("nf4") else 1.5 * float(lost)
    assert (got - expected).norm() < apart * expected.norm()


def test_fresh_process_gives_the_same_logits_and_imports_no_bitsandbytes(tmp_path: Path) -> None:
    for case in CASES:
        model = compressed(case, "biases", torch.bfloat16)
        save_checkpoint(model, tiny_tokenizer(), tmp_path / case, CheckpointOrigin())
        torch.save(logits(model), tmp_path / f"{case}.pt")
    script = (
        "import sys, torch\n"
        "from agentic_compression.checkpoints import load_checkpoint\n"
        "from tests.unit.methods.tiny_models import logits\n"
        "for folder in sys.argv[1:]:\n"
        "    got = logits(load_checkpoint(folder).model)\n"
        "    assert torch.equal(got, torch.load(folder + '.pt', weights_only=True)), folder\n"
        "assert 'bitsandbytes' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, *(str(tmp_path / case) for case in CASES)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "kernels" not in result.stderr


def test_skipped_modules_do_not_hide_compressed_ones_that_begin_alike() -> None:
    names = ["model.layers.0.mlp.gate_proj", "model.layers.10.q"]
    config = bitsandbytes_config(names, ["lm_head", "model.layers.0.mlp.gate", "model.layers.1"], load_in_8bit=True)
    patterns = config["llm_int8_skip_modules"]
    assert all(should_convert_module(name, patterns) for name in names)
    assert not any(should_convert_module(name, patterns) for name in ("lm_head", "model.layers.0.mlp.gate"))
    assert config["_load_in_8bit"]
    assert not config["load_in_4bit"]


@pytest.mark.parametrize("case", ["int8", "nf4", "fp8"])
def test_models_without_linears_are_refused(case: str) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    method, _ = CASES[case]
    with pytest.raises(CompressionError, match=f"{case} works on torch.nn.Linear"):
        method.apply(model, method.config(), CompressionContext())


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_weights_that_are_not_numbers_are_refused(name: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = float("nan")
    model.save_pretrained(base)
    request = CompressionRequest(
        model_path=str(base), base_digest="nan", strategy=Strategy.parse(name), checkpoints_root=str(tmp_path / "made")
    )
    with pytest.raises(CompressionError, match="NaN"):
        compress(request)


def test_notes_name_what_other_runtimes_cannot_run(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "odd")
    request = CompressionRequest(
        model_path=str(base), base_digest="odd", strategy=Strategy.parse("nf4"), checkpoints_root=str(tmp_path / "made")
    )
    outcome = compress(request)
    assert outcome.checkpoint is not None
    manifest = read_manifest(Path(outcome.checkpoint.path))
    assert manifest is not None
    assert "172 x 64" in manifest.stages[0].notes[0]
    config = json.loads((Path(outcome.checkpoint.path) / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_use_double_quant"] is True
