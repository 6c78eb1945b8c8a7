from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from agentic_compression.errors import ConfigurationError, ModelError, UnavailableError
from agentic_compression.runtimes import llama_file, open_runtime, runtime_kind, runtime_version


def test_the_folder_decides(dense_path: Path, gguf_path: Path) -> None:
    assert (runtime_kind(dense_path), runtime_kind(gguf_path)) == ("transformers", "llama.cpp")
    assert llama_file(dense_path) is None
    for path, name in ((dense_path, "transformers"), (gguf_path, "llama.cpp")):
        runtime = open_runtime(path, "cpu", 1)
        assert (runtime.name, runtime.device, runtime.clock) == (name, "cpu", "perf_counter")
        assert (runtime.vocabulary, runtime.context_length, runtime.bos) == (258, 512, [0])
        assert runtime.memory().weights_bytes == runtime.weights_bytes > 400_000
        assert runtime.memory().device_peak_bytes is None
        runtime.close()


def test_versions_name_engine_and_package() -> None:
    assert runtime_version("transformers").startswith("transformers 5.")
    assert runtime_version("llama.cpp").startswith("llama.cpp (xllamacpp 2026.")


def test_unclear_folders_are_refused(tmp_path: Path, gguf_path: Path, dense_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_runtime(tmp_path / "nowhere")
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"one GGUF file, got a\.gguf, b\.gguf"):
        open_runtime(tmp_path)
    with pytest.raises(ConfigurationError, match=r"must be run by llama\.cpp, got vllm"):
        open_runtime(gguf_path, kind="vllm")
    with pytest.raises(ConfigurationError, match=r"must be run by transformers, got llama\.cpp"):
        open_runtime(dense_path, kind="llama.cpp")


def test_vllm_says_why_it_is_not_available(dense_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    with pytest.raises(UnavailableError, match="not available, because it is not installed; install vllm on a machine"):
        open_runtime(dense_path, kind="vllm")


def test_importing_the_package_imports_no_engine() -> None:
    code = (
        "import sys, agentic_compression.runtimes, agentic_compression.checkpoints.llama_library\n"
        "assert not {'torch', 'transformers', 'xllamacpp', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
