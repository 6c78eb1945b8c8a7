"""The runtimes that exports are for, loaded as their users load them, behind one small Protocol."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentic_compression.errors import ModelError
from agentic_compression.export.onnx_file import ONNX_NAME
from agentic_compression.records import ExportFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Target", "open_target"]


class Target(Protocol):
    """An export that runs."""

    runtime: str
    """With its version."""

    def encode(self, text: str) -> list[int]:
        """Token ids as the export's own tokenizer gives them."""
        ...

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Next-token logits after every token, ``(tokens, vocabulary)``."""
        ...

    def answer(self, ids: Sequence[int], new_tokens: int) -> tuple[list[int], str]:
        """The greedy continuation: its token ids without the one that ends it, and its text."""
        ...


def open_target(wanted: ExportFormat, folder: Path, threads: int) -> Target:
    """Load an export.

    Raises:
        ModelError: when the runtime refuses it, or misses weights.
    """
    if wanted == "gguf":
        return _LlamaTarget(folder, threads)
    return _OnnxTarget(folder, threads) if wanted == "onnx" else _TransformersTarget(folder)


class _TransformersTarget:
    """Plain transformers: this package's own loading takes no part."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        from agentic_compression.runtimes.tokenizer import end_ids

        self.runtime = f"transformers {importlib.metadata.version('transformers')}"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._ends = end_ids(self._tokenizer, folder)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
        wrong = [name for key in ("missing_keys", "mismatched_keys") for name in sorted(map(str, report.get(key, ())))]
        if wrong:
            raise ModelError(f"transformers misses {len(wrong)} weights of {folder.name}, the first is {wrong[0]}")
        self._model: Any = model.eval()
        own = self._model.generation_config
        self._model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
        )

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            found: NDArray[np.float32] = self._model(input_ids=torch.tensor([list(ids)])).logits[0].float().numpy()
        return found

    def answer(self, ids: Sequence[int], new_tokens: int) -> tuple[list[int], str]:
        import torch

        tokens = torch.tensor([list(ids)])
        ends = self._model.generation_config.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        with torch.inference_mode():
            made = self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0 if end is None else end,
            )
        answer: list[int] = made[0, tokens.shape[1] :].tolist()
        answer = answer[: next((place for place, token in enumerate(answer) if token in self._ends), len(answer))]
        return answer, str(self._tokenizer.decode(answer, skip_special_tokens=True))


class _LlamaTarget:
    """llama.cpp as it runs by default: attention and cache in float16."""

    def __init__(self, folder: Path, threads: int) -> None:
        from agentic_compression.checkpoints.folders import GGUF_NAME
        from agentic_compression.checkpoints.llama_library import LlamaModel
        from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime

        self.runtime = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
        self._words = LlamaModel(folder / GGUF_NAME, vocab_only=True)
        self._runtime = LlamaCppRuntime(folder, threads=threads)

    def encode(self, text: str) -> list[int]:
        return list(self._words.tokenize(text, add_special=True, parse_special=True))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._runtime.logits(ids, range(len(ids)))

    def answer(self, ids: Sequence[int], new_tokens: int) -> tuple[list[int], str]:
        from agentic_compression.runtimes import GenerationOptions

        made = self._runtime.generate([ids], GenerationOptions(new_tokens=new_tokens), 1)[0]
        return made.ids, made.text


class _OnnxTarget:
    """ONNX Runtime on the CPU; the graph keeps no cache, so each token runs the whole sequence."""

    def __init__(self, folder: Path, threads: int) -> None:
        from agentic_compression.runtimes.tokenizer import end_ids, load_tokenizer

        onnxruntime: Any = importlib.import_module("onnxruntime")
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(
            folder / ONNX_NAME, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer: Any = load_tokenizer(folder)
        self._ends = end_ids(self._tokenizer, folder)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        tokens = np.asarray([list(ids)], dtype=np.int64)
        feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        found: NDArray[np.float32] = self._session.run(["logits"], feed)[0][0]
        return found

    def answer(self, ids: Sequence[int], new_tokens: int) -> tuple[list[int], str]:
        made: list[int] = []
        while len(made) < new_tokens:
            token = int(self.logits([*ids, *made])[-1].argmax())
            if token in self._ends:
                break
            made.append(token)
        return made, str(self._tokenizer.decode(made, skip_special_tokens=True))
