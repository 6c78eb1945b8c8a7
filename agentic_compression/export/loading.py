"""How an export is loaded: code that runs in its folder as it stands, and what it needs."""

from __future__ import annotations

from agentic_compression.checkpoints.manifest import CheckpointManifest
from agentic_compression.export.card_text import code
from agentic_compression.records import ExportRecord

__all__ = ["loading_code", "runtime_of"]

_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
inputs = tokenizer("Once upon a time", return_tensors="pt")
made = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=32)
print(tokenizer.decode(made[0], skip_special_tokens=True))
"""
_LLAMA = """\
import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = "model.gguf"
server = xllamacpp.Server(parameters)
answer = server.handle_completions({"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0})
print(answer["choices"][0]["text"])
"""
_ONNX = """\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
ids = tokenizer("Once upon a time")["input_ids"]
for _ in range(32):
    tokens = np.array([ids], dtype=np.int64)
    logits = session.run(["logits"], {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})[0]
    ids.append(int(logits[0, -1].argmax()))
    if ids[-1] == tokenizer.eos_token_id:
        break
print(tokenizer.decode(ids, skip_special_tokens=True))
"""


_BY_QUANTIZER = {
    "bitsandbytes": ("accelerate", "bitsandbytes"),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("accelerate", "gptqmodel"),
    "auto-round": ("auto-round",),
    "fp8": ("accelerate",),
    "mxfp4": ("accelerate", "kernels"),
    "hqq": ("hqq",),
    "quanto": ("accelerate", "optimum-quanto"),
    "torchao": ("torchao",),
    "aqlm": ("accelerate", "aqlm[gpu,cpu]"),
    "eetq": ("accelerate", "kernels"),
    "vptq": ("accelerate", "vptq"),
    "quark": ("amd-quark",),
}
"""What transformers imports to load a checkpoint with this ``quant_method``, by its name on PyPI."""


def loading_code(record: ExportRecord, manifest: CheckpointManifest | None, quantizer: str | None = None) -> str:
    """Markdown: what to install, and code for this folder.

    Args:
        record: of the export.
        manifest: of the checkpoint; None for one that was not made here.
        quantizer: ``quant_method`` of such a checkpoint, if it has one.
    """
    if record.format == "recipe":
        return _recipe_commands(record)
    if record.format == "gguf":
        python = (
            f"```bash\npip install xllamacpp=={_public(record.packages['xllamacpp'])}\n```\n\n```python\n{_LLAMA}```"
        )
        command = '```bash\nllama-cli -m model.gguf -p "Once upon a time" -n 32\n```'
        return f"With llama.cpp's own program:\n\n{command}\n\nOr from Python, in this folder:\n\n{python}"
    needed = ["torch", "transformers"]
    if record.format == "onnx":
        needed = ["onnxruntime", "transformers"]
    kinds = {module.kind for module in manifest.modules.values()} if manifest else set()
    if record.form == "as stored" and kinds & {"int8", "nf4"}:
        needed += _BY_QUANTIZER["bitsandbytes"]
    if record.format == "compressed-tensors" or (record.form == "as stored" and kinds & {"packed", "fp8"}):
        needed += _BY_QUANTIZER["compressed-tensors"]
    unknown = ""
    if manifest is None and quantizer:
        needed += [name for name in _BY_QUANTIZER.get(quantizer, ()) if name not in needed]
        if quantizer not in _BY_QUANTIZER:
            unknown = f"\n\nIt is quantized by {code(quantizer)}; transformers' documentation says what that needs."
    pins = " ".join(f"{name}=={_public(record.packages[name])}" if name in record.packages else name for name in needed)
    script = _ONNX if record.format == "onnx" else _TRANSFORMERS
    return f"```bash\npip install {pins}\n```{unknown}\n\nIn this folder:\n\n```python\n{script}```"


def _public(version: str) -> str:
    """As PyPI has it: without the build's name after the plus sign."""
    return version.partition("+")[0]


def _recipe_commands(record: ExportRecord) -> str:
    """For every file of a recipe, who reads it."""
    lines = ["With this framework:", "", "```bash", "acf compress -m MODEL --strategy strategy.json -o ./made", "```"]
    if "llm_compressor.yaml" in record.files:
        lines += ["", "`llm_compressor.yaml` is what `llmcompressor.oneshot` takes as its `recipe`."]
    if "auto_round.json" in record.files:
        lines += ["", "`auto_round.json` holds keyword arguments of `auto_round.AutoRound`, `layer_config` among them."]
    return "\n".join(lines)


def runtime_of(record: ExportRecord) -> str:
    """What the export is for, in words."""
    return {
        "hf": "transformers, on a CPU or GPU; it was verified on a CPU",
        "compressed-tensors": "vLLM on a GPU, or transformers; it was verified in transformers on a CPU",
        "gguf": "llama.cpp, on a CPU or GPU; it was verified on a CPU",
        "onnx": "ONNX Runtime; it was verified on a CPU",
        "recipe": "the tools named above; nothing was run",
    }[record.format]
