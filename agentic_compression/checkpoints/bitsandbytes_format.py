"""What bitsandbytes' serialised formats have in common: the ``quantization_config`` and the layers it leaves alone."""

from __future__ import annotations

from typing import Any

__all__ = ["bitsandbytes_config"]


def bitsandbytes_config(compressed: list[str], dense: list[str], **changed: Any) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json`` that transformers reads with bitsandbytes installed.

    Args:
        compressed: names of the quantized linears.
        dense: names of the linears that stay as they are, ``lm_head`` among them.
        changed: settings other than bitsandbytes' defaults, ``load_in_8bit=True`` or ``load_in_4bit=True`` among them.
    """
    config: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": sorted(_pattern(name, compressed) for name in dense),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
    } | changed
    return config | {"_load_in_8bit": config["load_in_8bit"], "_load_in_4bit": config["load_in_4bit"]}


def _pattern(name: str, compressed: list[str]) -> str:
    """transformers skips every module whose name starts with this: ``mlp.gate`` must not skip ``mlp.gate_proj``."""
    return f"{name}$" if any(other.startswith(name) for other in compressed) else name
