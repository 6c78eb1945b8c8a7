"""Throwaway checkpoints that bring a runtime's own pages into memory before a candidate's memory is measured.

What a candidate loads by another code path (packed layers, low-rank ones, a GGUF file) must not count against it.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from agentic_compression.runtimes import llama_file, open_runtime

__all__ = ["warm_up"]

_WIDTH = 256
_VOCABULARY = 64
_PROMPT = [1] * 160  # many rows at once take another path in packed layers


def warm_up(candidate: str, device: str, threads: int) -> None:
    """Load and run throwaway checkpoints of the candidate's kind.

    Args:
        candidate: the checkpoint folder that is going to be measured; only its file names are looked at.
        device: of the runtime.
        threads: of the runtime.
    """
    if llama_file(candidate) is not None:
        _run_llama(device, threads)
    else:
        _run_transformers(device, threads)


def _serve(folder: Path, device: str, threads: int) -> None:
    with closing(open_runtime(folder, device, threads)) as runtime:
        runtime.time_request(_PROMPT, 2)
        runtime.time_request(_PROMPT[:16], 2)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"a": 0}, unk_token="a")  # noqa: S106
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


def _run_transformers(device: str, threads: int) -> None:
    """Dense in both common dtypes and packed at both code widths."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from agentic_compression.checkpoints import CheckpointOrigin, preload_runtime, save_checkpoint

    torch.set_num_threads(threads)
    preload_runtime()
    shape = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, vocab_size=_VOCABULARY
    )
    for dtype, bits in ((torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 4), (torch.bfloat16, 8)):
        throwaway = LlamaForCausalLM(shape).to(dtype)
        if bits:
            _pack_linears(throwaway, bits)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "throwaway"
            save_checkpoint(throwaway, _tokenizer(), folder, CheckpointOrigin())
            _serve(folder, device, threads)


def _pack_linears(model: Any, bits: int) -> None:
    """Replace every linear layer of the blocks by a packed one with random codes."""
    import torch
    from torch import nn

    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.checkpoints.quantized import QuantizedTensor

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.Linear):
                    groups = module.in_features // 64
                    codes = torch.randint(low, high, module.weight.shape).to(torch.int8)
                    scale = torch.full((module.out_features, groups), 0.01, dtype=torch.bfloat16)
                    zero = torch.zeros((module.out_features, groups), dtype=torch.int8)
                    setattr(parent, name, PackedLinear(QuantizedTensor(codes, scale, zero, bits)))


def _run_llama(device: str, threads: int) -> None:
    """One block whose matrices are float16, 8-bit and 4-bit; a file without a vocabulary is enough."""
    import gguf
    import numpy as np

    kinds = gguf.GGMLQuantizationType
    wide = 2 * _WIDTH
    matrices = {
        "token_embd": (_VOCABULARY, _WIDTH, kinds.F16),
        "output": (_VOCABULARY, _WIDTH, kinds.Q8_0),
        "blk.0.attn_q": (_WIDTH, _WIDTH, kinds.Q4_0),
        "blk.0.attn_k": (_WIDTH, _WIDTH, kinds.Q8_0),
        "blk.0.attn_v": (_WIDTH, _WIDTH, kinds.F16),
        "blk.0.attn_output": (_WIDTH, _WIDTH, kinds.F16),
        "blk.0.ffn_gate": (wide, _WIDTH, kinds.Q4_0),
        "blk.0.ffn_up": (wide, _WIDTH, kinds.Q8_0),
        "blk.0.ffn_down": (_WIDTH, wide, kinds.F16),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
        writer.add_context_length(512)
        writer.add_embedding_length(_WIDTH)
        writer.add_block_count(1)
        writer.add_feed_forward_length(wide)
        writer.add_head_count(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(_VOCABULARY)
        writer.add_tokenizer_model("no_vocab")
        for tensor, (rows, columns, kind) in matrices.items():
            values = np.full((rows, columns), 0.01, dtype=np.float32)
            writer.add_tensor(f"{tensor}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        for tensor in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{tensor}.weight", np.ones(_WIDTH, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _tokenizer().save_pretrained(folder)
        _serve(folder, device, threads)
