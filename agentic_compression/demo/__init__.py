"""The embedded demo: a small trained language model, its tasks and its texts, shipped with the package.

Only paths are handed out here, so importing this module is cheap. How the files were made is described in the
model card (``model/README.md``) and done by ``scripts/train_demo_model.py``.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parent


def model_path() -> Path:
    """Returns the folder of the shipped model and tokenizer (Hugging Face layout, bfloat16 weights)."""
    return _ROOT / "model"


def data_path() -> Path:
    """Returns the folder of the shipped JSON-lines files."""
    return _ROOT / "data"


def multiple_choice_path() -> Path:
    """Returns the held-out multiple-choice items: ``id``, ``question``, ``choices`` (4), ``answer`` (index)."""
    return data_path() / "demo_mc.jsonl"


def generation_path() -> Path:
    """Returns the held-out generation items: ``id``, ``question``, ``answer`` (matched exactly)."""
    return data_path() / "demo_gen.jsonl"


def heldout_text_path() -> Path:
    """Returns documents that training never saw, for perplexity: ``id``, ``text``."""
    return data_path() / "heldout_text.jsonl"


def train_sample_path() -> Path:
    """Returns a sample of training documents, for calibrating quantizers: ``id``, ``text``."""
    return data_path() / "train_sample.jsonl"


__all__ = [
    "data_path",
    "generation_path",
    "heldout_text_path",
    "model_path",
    "multiple_choice_path",
    "train_sample_path",
]
