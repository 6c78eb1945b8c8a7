"""GGUF files against the model they were made from: llama.cpp's logits, gguf-py's reading, transformers' loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agentic_compression.checkpoints.gguf_architecture import gguf_layout, row_order
from agentic_compression.checkpoints.gguf_file import write_gguf
from agentic_compression.checkpoints.gguf_plan import GgufPlan
from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaModel
from agentic_compression.errors import CompressionError, ModelError
from tests.unit.methods.tiny_models import built_model, logits, tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="it reads the files back")
pytest.importorskip("xllamacpp", reason="llama.cpp runs them")

TOKENS = 100


def plan(model: Any, type_name: str, file_type: str | None = None) -> GgufPlan:
    return GgufPlan(file_type or type_name, {name: type_name for name, _ in model.named_modules()})


def written(model: Any, path: Path, type_name: str = "F32") -> Path:
    write_gguf(model, tiny_tokenizer(), path, plan(model, type_name))
    return path


def ids() -> torch.Tensor:
    return torch.randint(2, 250, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def llama_logits(path: Path, count: int = TOKENS) -> NDArray[Any]:
    with LlamaModel(path) as model:
        context = model.context(ContextOptions(tokens=128, exact=True))
        return context.decode(ids()[0, :count].tolist(), range(count), [0] * count, [True] * count)


def rope(kind: str, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **others}}


LLAMA_3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"heads": 3, "kv_heads": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", LLAMA_3),
        ("llama", rope("linear", factor=4.0)),
        ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"hidden_size": 32}),
        ("qwen2", {"hidden_size": 32, "tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_llama_cpp_computes_the_same_logits(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = built_model(kind, **settings)
    with torch.no_grad():
        expected = model(ids()).logits[0].numpy()
    found = llama_logits(written(model, tmp_path / "m.gguf"))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_blocks_left_by_structured_pruning_are_enough(tmp_path: Path) -> None:
    model = built_model("llama", heads=4, kv_heads=2)
    for block in model.model.layers:
        for name in ("gate_proj", "up_proj"):
            linear = getattr(block.mlp, name)
            linear.weight, linear.out_features = torch.nn.Parameter(linear.weight[:64].clone()), 64
        down = block.mlp.down_proj
        down.weight, down.in_features = torch.nn.Parameter(down.weight[:, :64].clone()), 64
    with torch.no_grad():
        expected = model(ids()).logits[0].numpy()
    found = llama_logits(written(model, tmp_path / "m.gguf"))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_sliding_window_shortens_the_context_and_says_so(tmp_path: Path) -> None:
    model = built_model("mistral", sliding_window=24)
    notes = write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", plan(model, "F32"))
    assert notes == ("llama.cpp applies no sliding window here: the context is limited to its 24 tokens, not 128",)
    with LlamaModel(tmp_path / "m.gguf", vocab_only=True) as loaded:
        assert loaded.metadata("llama.context_length") == "24"
    with torch.no_grad():
        expected = model(ids()[:, :24]).logits[0].numpy()
    assert np.abs(llama_logits(tmp_path / "m.gguf", 24) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("type_name", "error"), [("F32", 0.0), ("F16", 5e-4), ("BF16", 4e-3), ("Q8_0", 8e-3), ("Q4_0", 0.11)]
)
def test_every_tensor_reads_back_as_the_models(type_name: str, error: float, tmp_path: Path) -> None:
    model = tiny_model("llama")
    state = model.state_dict()
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(written(model, tmp_path / "m.gguf", type_name)).tensors}
    layout = gguf_layout(model)
    assert set(read) == {tensor.name for tensor in layout.tensors}
    assert len(read) == len(state)
    for tensor in layout.tensors:
        values = gguf.dequantize(read[tensor.name].data, read[tensor.name].tensor_type)
        source = state[f"{tensor.module}.weight"].numpy()
        expected = source[row_order(len(source), tensor.heads)]
        assert values.shape == expected.shape
        relative = np.linalg.norm(values - expected) / np.linalg.norm(expected)
        assert relative <= (0.0 if tensor.role is None else error)


def test_transformers_loads_the_file_with_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model("tied")
    written(model, tmp_path / "model.gguf", "F16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert torch.allclose(logits(loaded), logits(model), atol=5e-3 * float(logits(model).abs().max()))


def test_metadata_and_tied_embeddings(tmp_path: Path) -> None:
    model = built_model("llama", heads=4, kv_heads=2, hidden_size=64, tie_word_embeddings=True)
    path = tmp_path / "m.gguf"
    write_gguf(model, tiny_tokenizer(), path, plan(model, "Q8_0"))
    fields = gguf.GGUFReader(path).fields
    expected = {
        "general.architecture": "llama", "general.file_type": 7, "general.quantization_version": 2,
        "llama.block_count": 2, "llama.context_length": 128, "llama.embedding_length": 64,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8, "llama.attention.value_length": 8, "llama.rope.dimension_count": 8,
        "llama.vocab_size": 258, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    assert {name: fields[name].contents() for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"].contents() == pytest.approx(1e-6)
    assert fields["llama.rope.freq_base"].contents() == 10000.0
    assert "output.weight" not in {tensor.name for tensor in gguf.GGUFReader(path).tensors}


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = written(tiny_model(), tmp_path / "a" / "one.gguf", "Q4_0").read_bytes()
    assert written(tiny_model(), tmp_path / "other.gguf", "Q4_0").read_bytes() == first


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("gpt2", {}, "gguf writes LlamaForCausalLM, .*, got GPT2LMHeadModel"),
        ("gemma", {}, "got GemmaForCausalLM"),
        ("llama", {"hidden_act": "gelu"}, "SiLU activations, got gelu"),
        ("llama", rope("dynamic", factor=4.0), "rotary embeddings of type default, linear, yarn, llama3"),
        ("qwen3", LLAMA_3, "rotary embeddings of type default, linear, yarn in their usual form"),
        ("qwen3", {"attention_bias": True}, "llama.cpp's qwen3 has no bias in model.layers.0.self_attn.q_proj"),
        ("qwen2", {}, "needs heads of 48 in all, got 4 of 8"),
    ],
)
def test_models_without_a_form_are_refused(kind: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = built_model(kind, **settings)
    with pytest.raises(CompressionError, match=message):
        write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", plan(model, "F16"))
    assert not (tmp_path / "m.gguf").exists()


def test_unequal_blocks_other_layers_and_extra_parameters_are_refused(tmp_path: Path) -> None:
    unequal = tiny_model()
    unequal.model.layers[1].mlp.gate_proj = torch.nn.Linear(64, 96, bias=False)
    with pytest.raises(CompressionError, match="blocks of equal widths, got 2"):
        gguf_layout(unequal)
    other = tiny_model()
    other.model.layers[0].mlp.up_proj = torch.nn.Sequential(other.model.layers[0].mlp.up_proj)
    with pytest.raises(CompressionError, match=r"got Sequential at model.layers.0.mlp.up_proj; put gguf last"):
        gguf_layout(other)
    extra = tiny_model()
    extra.model.layers[0].gain = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(CompressionError, match=r"no place for model.layers.0.gain"):
        gguf_layout(extra)


def test_bad_weights_types_and_missing_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(ModelError, match="tokenizer too"):
        write_gguf(tiny_model(), None, path, plan(tiny_model(), "F16"))
    odd = tiny_model("odd")
    with pytest.raises(CompressionError, match=r"down_proj has rows of 172 weights, which Q8_0 cannot hold"):
        write_gguf(odd, tiny_tokenizer(), path, plan(odd, "Q8_0"))
    for name in ("model.layers.1.mlp.up_proj", "model.norm"):
        broken = tiny_model()
        broken.get_submodule(name).weight.data[0] = float("nan")
        with pytest.raises(CompressionError, match=f"{name}.* holds NaN or infinity"):
            write_gguf(broken, tiny_tokenizer(), path, plan(broken, "Q8_0"))


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_rows_of_heads_are_interleaved_as_rotary_pairs(heads: int) -> None:
    order = row_order(heads * 8, heads)
    assert sorted(order) == list(range(heads * 8))
    for head in range(heads):
        for pair in range(4):
            assert order[8 * head + 2 * pair] == 8 * head + pair
            assert order[8 * head + 2 * pair + 1] == 8 * head + pair + 4
    assert np.array_equal(row_order(heads * 8, None), np.arange(heads * 8))


_CHILD = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from agentic_compression.checkpoints.gguf_file import write_gguf
from agentic_compression.checkpoints.gguf_plan import GgufPlan
from tests.unit.methods.tiny_models import tiny_model, tiny_tokenizer

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def save(model, path):
    write_gguf(model, tiny_tokenizer(), Path(path), GgufPlan("Q8_0", {n: "Q8_0" for n, _ in model.named_modules()}))

torch.set_num_threads(1)
save(tiny_model(), sys.argv[1])  # loads the libraries
config = LlamaConfig(vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6,
                     num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
model = model.to(torch.bfloat16).to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.fill_(0.01)
model.tie_weights()
assert sum(p.numel() for p in model.parameters()) > 90e6
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
save(model, sys.argv[1])
print(status("VmHWM") - before, 2 * config.vocab_size * config.hidden_size)
"""


def test_writing_needs_memory_for_one_tensor(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from Linux's /proc")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "m.gguf")],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    growth, largest = map(int, done.stdout.split()[-2:])
    assert growth < 1.2 * largest
