"""Shows how the demo model reacts to compression: a table of accuracies under plain fake quantization and pruning.

Every linear layer but the output head is changed in memory: weights are rounded to nearest in groups along the
input width (symmetric or asymmetric), or the smallest weights of each layer are set to zero. Nothing is written.

Examples:
    python scripts/demo_sensitivity.py
    python scripts/demo_sensitivity.py --model /tmp/demo/model --data /tmp/demo/data --limit 200 --group-size 64
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentic_compression import demo
from agentic_compression.demo import scoring

Change = Callable[[torch.Tensor], torch.Tensor]


def round_to_nearest(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> torch.Tensor:
    """Rounds a weight to a grid with one scale per group of input channels, and maps it back.

    Args:
        weight: Matrix of shape (outputs, inputs), inputs divisible by the group size.
        bits: Bits per weight.
        group_size: Neighbouring inputs that share a scale.
        symmetric: Whether the grid is centred on zero; otherwise it spans minimum to maximum (zero included).

    Returns:
        The rounded weight, same shape and type.
    """
    groups = weight.double().reshape(weight.shape[0], -1, group_size)
    if symmetric:
        highest = 2 ** (bits - 1) - 1
        scale = (groups.abs().amax(-1, keepdim=True) / highest).clamp_min(1e-12)
        rounded = (groups / scale).round().clamp(-highest - 1, highest) * scale
    else:
        low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
        levels = 2**bits - 1
        scale = ((high - low) / levels).clamp_min(1e-12)
        zero = (-low / scale).round()
        rounded = ((groups / scale + zero).round().clamp(0, levels) - zero) * scale
    return rounded.reshape(weight.shape).to(weight.dtype)


def prune_smallest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Sets the smallest weights of a matrix to zero.

    Args:
        weight: Matrix of shape (outputs, inputs).
        share: Share of weights to remove, 0..1.

    Returns:
        The pruned weight.
    """
    count = round(share * weight.numel())
    if count == 0:
        return weight
    threshold = weight.abs().flatten().kthvalue(count).values
    return weight * (weight.abs() > threshold)


def changed(model: Any, change: Change) -> Any:
    """Returns a copy of the model with every linear layer but the head changed."""
    other = copy.deepcopy(model)
    for name, module in other.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight.data = change(module.weight.data)
    return other


def variants(group_size: int) -> dict[str, Change]:
    """Names every change of the table."""
    table: dict[str, Change] = {"none": lambda weight: weight}
    for bits in (8, 6, 5, 4, 3, 2):
        for symmetric in (True, False):
            name = f"{bits} bits, {'symmetric' if symmetric else 'asymmetric'}"
            table[name] = lambda w, b=bits, s=symmetric: round_to_nearest(w, b, group_size, s)  # type: ignore[misc]
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        table[f"{share:.0%} pruned"] = lambda w, s=share: prune_smallest(w, s)  # type: ignore[misc]
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo.model_path())
    parser.add_argument("--data", type=Path, default=demo.data_path())
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--limit", type=int, help="items per task (default: all)")
    parser.add_argument("--only", help="only variants whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    choice = scoring.read_rows(arguments.data / "demo_mc.jsonl", arguments.limit)
    generation = scoring.read_rows(arguments.data / "demo_gen.jsonl", arguments.limit)
    texts = scoring.read_rows(arguments.data / "heldout_text.jsonl")
    print(f"group size {arguments.group_size}; {len(choice)} + {len(generation)} items; float32 arithmetic")
    print(f"{'change':<22}{'demo_mc':>9}{'demo_gen':>10}{'mean':>8}{'perplexity':>12}")
    for name, change in variants(arguments.group_size).items():
        if arguments.only and arguments.only not in name and name != "none":
            continue
        other = changed(model, change)
        right = scoring.multiple_choice_correct(other, tokenizer, choice)
        exact = scoring.generation_correct(other, tokenizer, generation)
        mc, gen = sum(right) / len(right), sum(exact) / len(exact)
        ppl = scoring.perplexity(other, tokenizer, texts)
        print(f"{name:<22}{mc:>9.4f}{gen:>10.4f}{(mc + gen) / 2:>8.4f}{ppl:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
