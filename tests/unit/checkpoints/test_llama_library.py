from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentic_compression.checkpoints import llama_layout
from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaModel, unavailable_reason
from agentic_compression.errors import ModelError, UnavailableError, UsageError
from tests.unit.methods.tiny_models import tiny_model
from tests.unit.runtimes.gguf_writing import write_llama


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tiny_model(), tmp_path_factory.mktemp("gguf") / "model.gguf")


def test_the_installed_build_is_the_supported_one() -> None:
    assert unavailable_reason() is None


class OtherBuild:
    """A library whose default parameters differ in one field."""

    def __init__(self, field: str, value: Any) -> None:
        library = llama_layout.load_library()
        self._model, self._context = library.llama_model_default_params(), library.llama_context_default_params()
        setattr(self._model if hasattr(self._model, field) else self._context, field, value)

    def llama_model_default_params(self) -> Any:
        return self._model

    def llama_context_default_params(self) -> Any:
        return self._context


@pytest.mark.parametrize(
    ("field", "value"), [("n_ctx", 4096), ("embeddings", True), ("n_gpu_layers", 0), ("samplers", 12), ("type_k", 0)]
)
def test_another_layout_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UnavailableError, match=rf"{field} must be .* another layout; install xllamacpp"):
        llama_layout._verify_layout(OtherBuild(field, value))  # type: ignore[arg-type]


def test_a_missing_function_is_refused() -> None:
    with pytest.raises(UnavailableError, match="must export llama_version"):
        llama_layout._declare(object())  # type: ignore[arg-type]


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_layout.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="not installed; install xllamacpp"):
        llama_layout.load_library.__wrapped__()


def test_the_model_tells_its_shape(file: Path) -> None:
    with LlamaModel(file) as model:
        assert (model.vocabulary, model.context_length, model.hidden_size) == (258, 512, 64)
        assert model.weights_bytes == sum(p.nbytes for p in tiny_model().parameters())
        assert model.metadata("general.architecture") == "llama"
        assert model.metadata("no.such.key") is None
    with pytest.raises(ValueError, match="is closed"):
        _ = model.vocabulary


def test_reading_and_mapping_give_the_same(file: Path) -> None:
    answers = []
    for load in ("mmap", "read"):
        with LlamaModel(file, load=load) as model, model.context(ContextOptions(tokens=64)) as context:  # type: ignore[arg-type]
            answers.append(context.decode([1, 2, 3], [0, 1, 2], [0, 0, 0], [True, False, True]))
    assert answers[0].shape == (2, 258)
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel does not list a process's mappings here")
def test_closing_unmaps_the_file(file: Path) -> None:
    maps = Path("/proc/self/maps")
    with LlamaModel(file, load="mmap"):
        assert str(file) in maps.read_text()
    assert str(file) not in maps.read_text()


def test_a_removed_end_can_be_decoded_again(file: Path) -> None:
    with LlamaModel(file) as model, model.context(ContextOptions(tokens=64, sequences=2)) as context:
        context.decode([1, 2, 3, 4], range(4), [0] * 4, [False] * 4)  # type: ignore[arg-type]
        first = context.decode([9], [4], [0], [True])
        context.remove(0, 3)
        second = context.decode([4, 9], [3, 4], [0, 0], [False, True])
        np.testing.assert_allclose(second, first, atol=1e-5)
        context.copy_sequence(0, 1)
        np.testing.assert_array_equal(context.decode([5], [5], [0], [True]), context.decode([5], [5], [1], [True]))
        context.clear()
        np.testing.assert_allclose(
            context.decode([1, 2, 3, 4, 9], range(5), [1] * 5, [False] * 4 + [True]),  # type: ignore[arg-type]
            first,
            atol=1e-5,
        )


def test_what_would_abort_the_process_is_refused(file: Path) -> None:
    with LlamaModel(file) as model:
        with pytest.raises(UsageError, match="each of the 64 sequences, got 32"):
            model.context(ContextOptions(tokens=64, sequences=64, batch=32))
        with model.context(ContextOptions(tokens=256, batch=8, outputs=2)) as context:
            with pytest.raises(UsageError, match="at most 8 tokens and 2 outputs, got 9 and 0"):
                context.decode([1] * 9, range(9), [0] * 9, [False] * 9)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="got 3 and 3"):
                context.decode([1] * 3, range(3), [0] * 3, [True] * 3)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="token ids must lie in 0 to 257, got -1 to 5"):
                context.decode([5, -1], [0, 1], [0, 0], [False, True])
            with pytest.raises(UsageError, match="embeddings=True"):
                context.embed([[1]])


def test_a_full_cache_is_refused_and_usable_after(file: Path) -> None:
    with LlamaModel(file) as model, model.context(ContextOptions(tokens=256, batch=256)) as context:
        context.decode([1] * 256, range(256), [0] * 256, [False] * 256)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="must fit the context's 256 cells"):
            context.decode([1], [256], [0], [True])
        context.clear()
        assert np.isfinite(context.decode([1], [0], [0], [True])).all()


def test_contexts_close_with_their_model(file: Path) -> None:
    model = LlamaModel(file)
    context = model.context(ContextOptions(tokens=64))
    model.close()
    with pytest.raises(ValueError, match=r"context of .* is closed"):
        context.clear()
    context.close()


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="readable GGUF file, got No such file"):
        LlamaModel(tmp_path / "none.gguf")


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_is_an_error_not_a_crash(file: Path, tmp_path: Path, seed: int) -> None:
    """Random bytes in the header; a file that still loads must hold numbers of the same shape."""
    content, generator = bytearray(file.read_bytes()), random.Random(seed)
    for _ in range(20):
        content[generator.randrange(4, 900)] = generator.randrange(256)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match=r"llama\.cpp must be able to load"):
        LlamaModel(damaged)
