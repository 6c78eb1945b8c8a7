"""The export as a stage: types, importance, folded low-rank layers, the folder that results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from agentic_compression.checkpoints import (
    AppliedStage,
    CheckpointOrigin,
    checkpoint_ref,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
    shipped_files,
)
from agentic_compression.checkpoints.ggml import quantize_rows
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.errors import CompressionError, ModelError, StrategyError
from agentic_compression.methods import CompressionContext, Workload, compress, get_method, search_space
from agentic_compression.methods.gguf import METHOD, GgufConfig, apply
from agentic_compression.methods.request import CompressionRequest
from agentic_compression.records import Strategy
from tests.unit.methods.tiny_models import (
    built_model,
    logits,
    random_windows,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
    write_text,
)

gguf = pytest.importorskip("gguf", reason="it reads the files back")
pytest.importorskip("xllamacpp", reason="it quantizes")


def wide_model(layers: int = 8) -> Any:
    """Rows of 256 and 512 weights, which every type's blocks divide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=256, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.05, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def context(**others: Any) -> CompressionContext:
    return CompressionContext(calibration=random_windows(), **others)


def saved(model: Any, config: GgufConfig, folder: Path, calibration: bool = True) -> Any:
    result = apply(model, config, context() if calibration else CompressionContext())
    save_checkpoint(result.model, tiny_tokenizer(), folder, CheckpointOrigin(), gguf=result.gguf)
    return gguf.GGUFReader(folder / "model.gguf")


def restored(reader: Any, name: str) -> NDArray[Any]:
    tensor = next(tensor for tensor in reader.tensors if tensor.name == name)
    values: NDArray[Any] = gguf.dequantize(tensor.data, tensor.tensor_type)
    return values


def types_of(reader: Any) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def test_mixture_reaches_the_file(tmp_path: Path) -> None:
    types = types_of(saved(wide_model(), GgufConfig(type="Q4_K_M", importance=False), tmp_path / "a", False))
    assert types["token_embd.weight"] == types["blk.1.attn_q.weight"] == types["blk.1.attn_v.weight"] == "Q4_K"
    assert types["output.weight"] == types["blk.0.ffn_down.weight"] == types["blk.7.attn_v.weight"] == "Q6_K"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"


@pytest.mark.parametrize("type_name", METHOD.describe().parameters[0].choices)
def test_every_file_type_keeps_the_model(type_name: Any, tmp_path: Path) -> None:
    model = wide_model(layers=1)
    reader = saved(model, GgufConfig(type=type_name), tmp_path / "a")
    limit = {"F16": 1e-3, "BF16": 4e-3, "Q8_0": 1e-2, "Q6_K": 0.03, "Q5_K_M": 0.05, "IQ2_XXS": 0.5}.get(type_name, 0.4)
    expected = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    found = restored(reader, "blk.0.ffn_up.weight")
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < limit


def test_importance_is_the_mean_squared_input() -> None:
    model = wide_model()
    result = apply(model, GgufConfig(), context())
    assert result.gguf is not None
    name = "model.layers.5.mlp.down_proj"
    total, count = torch.zeros(512, dtype=torch.float64), 0

    def add(_: Any, inputs: Any) -> None:
        nonlocal total, count
        rows = inputs[0].reshape(-1, 512).to(torch.float64)
        total, count = total + rows.square().sum(0), count + len(rows)

    handle = model.get_submodule(name).register_forward_pre_hook(add)
    with torch.no_grad():
        for window in random_windows():
            model(window)
    handle.remove()
    torch.testing.assert_close(result.gguf.importance[name].double(), total / count, rtol=1e-4, atol=1e-9)
    assert set(result.gguf.importance) < set(result.gguf.types)
    assert {"model.embed_tokens", "lm_head"} == set(result.gguf.types) - set(result.gguf.importance)


def test_importance_is_used_for_the_file(tmp_path: Path) -> None:
    model = wide_model()
    result = apply(model, GgufConfig(type="Q3_K_S"), context())
    assert result.gguf is not None
    name = "model.layers.3.mlp.up_proj"
    weight, importance = model.get_submodule(name).weight, result.gguf.importance[name].numpy()
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "a", CheckpointOrigin(), gguf=result.gguf)
    reader = gguf.GGUFReader(tmp_path / "a" / "model.gguf")
    data = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.3.ffn_up.weight")
    assert np.array_equal(data, quantize_rows(weight, "Q3_K", np.arange(512), importance))
    assert not np.array_equal(data, quantize_rows(weight, "Q3_K", np.arange(512)))


def test_what_needs_calibration() -> None:
    assert METHOD.needs_calibration_for(GgufConfig())
    assert not METHOD.needs_calibration_for(GgufConfig(importance=False))
    assert METHOD.needs_calibration_for(GgufConfig(type="IQ2_XXS", importance=False))
    assert not METHOD.needs_calibration_for(GgufConfig(type="F16"))
    with pytest.raises(CompressionError, match="needs calibration text"):
        apply(wide_model(), GgufConfig(type="IQ2_S", importance=False), CompressionContext())


def test_substitutes_for_odd_widths_are_noted(tmp_path: Path) -> None:
    result = apply(tiny_model("odd"), GgufConfig(importance=False), CompressionContext())
    assert any("12 weights of 64 columns became Q5_0" in note for note in result.notes)
    assert any("of 172 columns became F16, the first is model.layers." in note for note in result.notes)
    save_checkpoint(result.model, tiny_tokenizer(), tmp_path / "a", CheckpointOrigin(), gguf=result.gguf)
    types = types_of(gguf.GGUFReader(tmp_path / "a" / "model.gguf"))
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["output.weight"] == "Q8_0"


def test_low_rank_layers_are_multiplied_out() -> None:
    model = tiny_model("biases")
    linear = model.model.layers[0].self_attn.q_proj
    down, up = torch.nn.Linear(64, 8, bias=False), torch.nn.Linear(8, 64)
    up.bias = linear.bias
    model.model.layers[0].self_attn.q_proj = LowRankLinear(down, up)
    expected = logits(model)
    result = apply(model, GgufConfig(type="F16"), CompressionContext())
    assert "1 were multiplied out" in result.notes[0]
    assert type(result.model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    torch.testing.assert_close(logits(result.model), expected, rtol=1e-4, atol=1e-4)


def test_unsupported_models_and_nan_activations_are_refused() -> None:
    with pytest.raises(CompressionError, match="gguf writes LlamaForCausalLM"):
        apply(built_model("gpt2"), GgufConfig(), context())
    broken = wide_model()
    broken.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"not finite|NaN|infinite"):
        apply(broken, GgufConfig(), context())


def test_calibration_text_becomes_probes() -> None:
    tokenizer = tiny_tokenizer()
    windows = [torch.tensor([tokenizer("the cat sat")["input_ids"]])]
    result = apply(tiny_model(), GgufConfig(), CompressionContext(calibration=windows, tokenizer=tokenizer))
    assert result.gguf is not None
    assert result.gguf.probes == ("the cat sat",)


def test_only_pruning_low_rank_and_healing_may_come_before_and_nothing_after() -> None:
    space = search_space(3)
    assert space.problem_with(Strategy.parse("magnitude | gguf")) is None
    assert "cannot follow" in (space.problem_with(Strategy.parse("rtn | gguf")) or "")
    assert "cannot follow" in (space.problem_with(Strategy.parse("gguf | gptq")) or "")
    assert "cannot follow" in (space.problem_with(Strategy.parse("gguf | magnitude")) or "")


def test_needs_grow_with_the_model_and_the_type() -> None:
    work = Workload(
        parameters=10**9, linear_parameters=8 * 10**8, blocks=16, widest_input=8192, vocabulary=128256, hidden=2048,
        weight_bytes=2 * 10**9, calibration_tokens=10**5, threads=4,
    )  # fmt: skip
    assert METHOD.needs is not None
    cheap, usual, costly = (METHOD.needs(work, GgufConfig(type=name)) for name in ("F16", "Q4_K_M", "IQ2_S"))
    assert cheap.seconds < usual.seconds < costly.seconds
    assert work.weight_bytes < cheap.peak_bytes < 2 * work.weight_bytes


def request(folder: Path, strategy: str, **others: Any) -> CompressionRequest:
    base = folder / "base"
    if not base.exists():
        save_tiny(base, "tied")
        write_text(folder / "text.jsonl")
    return CompressionRequest(
        model_path=str(base),
        base_digest="base",
        strategy=Strategy.parse(strategy),
        checkpoints_root=str(folder / "root"),
        **others,
    )


def test_compress_writes_a_folder_for_llama_cpp(tmp_path: Path) -> None:
    text = {"calibration_path": str(tmp_path / "text.jsonl"), "calibration_digest": "text"}
    outcome = compress(request(tmp_path, "magnitude:sparsity=0.3 | gguf:type=Q8_0", **text))
    assert outcome.checkpoint is not None
    folder = Path(outcome.checkpoint.path)
    assert outcome.checkpoint.loads_with == ("llama.cpp",)
    assert [path.name for path in shipped_files(folder)] == ["model.gguf", "config.json", "acf_checkpoint.json"]
    assert outcome.checkpoint.size_bytes == sum(path.stat().st_size for path in shipped_files(folder))
    assert (folder / "tokenizer.json").is_file()
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [stage.method for stage in manifest.stages] == ["magnitude", "gguf"]
    again = compress(request(tmp_path, "magnitude:sparsity=0.3 | gguf:type=Q8_0", **text))
    assert again.cached
    assert (
        again.checkpoint
        == outcome.checkpoint
        == checkpoint_ref(folder, outcome.checkpoint.strategy_key, ("llama.cpp",))
    )
    with pytest.raises(ModelError, match=r"holds model.gguf, which llama.cpp runs"):
        load_checkpoint(folder)


def test_compress_without_text_or_tokenizer_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises((CompressionError, StrategyError), match="calibration"):
        compress(request(tmp_path, "gguf"))
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="a GGUF file holds the tokenizer too"):
        compress(request(tmp_path, "gguf:type=F16"))
    left = [path for path in (tmp_path / "root").iterdir() if not path.name.startswith(".")]
    assert left == []


def test_what_writing_finds_is_noted_in_the_manifest(tmp_path: Path) -> None:
    model = built_model("mistral", hidden_size=64, sliding_window=32)
    result = apply(model, GgufConfig(type="F16"), CompressionContext())
    origin = CheckpointOrigin(stages=(AppliedStage(method="gguf", notes=("first",)),))
    save_checkpoint(result.model, tiny_tokenizer(), tmp_path / "a", origin, gguf=result.gguf)
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None
    assert manifest.stages[0].notes[0] == "first"
    assert "no sliding window" in manifest.stages[0].notes[1]


def test_a_folder_that_was_there_first_stands(tmp_path: Path) -> None:
    result = apply(tiny_model(), GgufConfig(type="F16"), CompressionContext())
    first = save_checkpoint(result.model, tiny_tokenizer(), tmp_path / "a", CheckpointOrigin(), gguf=result.gguf)
    again = save_checkpoint(result.model, tiny_tokenizer(), tmp_path / "a", CheckpointOrigin(), gguf=result.gguf)
    assert first == again
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_method_is_registered_with_what_it_needs() -> None:
    assert get_method("gguf") is METHOD
    assert METHOD.requires == ("gguf", "xllamacpp")
