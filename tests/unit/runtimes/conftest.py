"""One tiny Llama as a transformers folder and as GGUF folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.evaluation.conftest import tiny, tiny_path
from tests.unit.methods.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from tests.unit.runtimes.gguf_writing import write_llama

__all__ = ["tiny", "tiny_path"]


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in float32."""
    folder = tmp_path_factory.mktemp("gguf32")
    write_llama(tiny_model(), folder / "model.gguf")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def half_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in float16."""
    folder = tmp_path_factory.mktemp("gguf16")
    write_llama(tiny_model(), folder / "model.gguf", half=True)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dense(dense_path: Path) -> TransformersRuntime:
    return TransformersRuntime(dense_path, threads=1)


@pytest.fixture(scope="session")
def exact(gguf_path: Path) -> Iterator[LlamaCppRuntime]:
    runtime = LlamaCppRuntime(gguf_path, exact=True)
    yield runtime
    runtime.close()


@pytest.fixture(scope="session")
def half(half_path: Path) -> Iterator[LlamaCppRuntime]:
    runtime = LlamaCppRuntime(half_path)
    yield runtime
    runtime.close()
