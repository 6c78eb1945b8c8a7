"""Write a Llama of any size with random bfloat16 weights, layer by layer, to try what a size needs in memory and time.

    python scripts/make_random_model.py 1b FOLDER
    python scripts/make_random_model.py 1b-tied FOLDER --layers 4
    python scripts/make_random_model.py 125m FOLDER --tokenizer CHECKPOINT --dtype float32

Its text is nonsense: the weights are drawn from a normal distribution. Needs about one shard (1 GB) of memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from agentic_compression.checkpoints.tensor_files import write_tensors

# hidden, layers, intermediate, heads, kv heads, vocabulary, tied embeddings
SIZES = {
    "10m": (256, 4, 1024, 8, 4, 16000, True),
    "125m": (768, 12, 3072, 12, 12, 32000, True),
    "1b": (2048, 16, 8192, 32, 8, 32000, False),
    "1b-tied": (2048, 16, 8192, 32, 8, 128256, True),
    "3b": (3072, 28, 8192, 24, 8, 128256, True),
}


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="in place of the size's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", help="checkpoint whose tokenizer it gets, instead of one of bytes")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    hidden, layers, intermediate, heads, kv_heads, vocabulary, tied = SIZES[arguments.size]
    tokenizer = byte_tokenizer()
    if arguments.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
        vocabulary = len(tokenizer)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=arguments.layers or layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
        dtype=arguments.dtype,
    )
    arguments.folder.mkdir(parents=True)
    dtype = getattr(torch, arguments.dtype)
    drawn = random_tensors(config, arguments.seed)
    write_tensors(({name: tensor.to(dtype) for name, tensor in part.items()} for part in drawn), arguments.folder)
    (arguments.folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    tokenizer.save_pretrained(arguments.folder)


def random_tensors(config: LlamaConfig, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Weights by name, one module at a time; normal with standard deviation ``1 / sqrt(inputs)``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, deviation: float) -> torch.Tensor:
        drawn = torch.empty(rows, columns, dtype=torch.bfloat16)
        return drawn.normal_(std=deviation, generator=generator)

    hidden, intermediate = int(config.hidden_size or 0), int(config.intermediate_size or 0)
    heads, kv_heads, layers = config.num_attention_heads, config.num_key_value_heads, int(config.num_hidden_layers or 0)
    keys = hidden // int(heads or 1) * int(kv_heads or 1)
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    yield {"model.embed_tokens.weight": normal(int(config.vocab_size or 0), hidden, 1.0)}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            yield {f"model.layers.{layer}.{name}.weight": normal(rows, columns, columns**-0.5)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield {f"model.layers.{layer}.{name}.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    yield {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    if not config.tie_word_embeddings:
        yield {"lm_head.weight": normal(int(config.vocab_size or 0), hidden, hidden**-0.5)}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ``<s>`` first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106


if __name__ == "__main__":
    main()
