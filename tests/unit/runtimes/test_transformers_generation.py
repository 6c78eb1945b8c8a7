"""Answers of the transformers runtime: exactly what was asked, whatever the folder's generation_config.json says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from agentic_compression.runtimes import GenerationOptions
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime

HOSTILE: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "do_sample": True,
    "temperature": 0.2,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.4,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "max_new_tokens": 3,
    "min_new_tokens": 2,
    "suppress_tokens": list(range(2, 200)),
    "return_dict_in_generate": True,
    "output_scores": True,
}
PROMPTS = [[0, 70, 71, 72], [0, 90], [0, *range(30, 60)]]


@pytest.fixture
def hostile(dense_path: Path, tmp_path: Path) -> TransformersRuntime:
    shutil.copytree(dense_path, tmp_path / "hostile")
    (tmp_path / "hostile" / "generation_config.json").write_text(json.dumps(HOSTILE))
    return TransformersRuntime(tmp_path / "hostile")


def greedy_answer(model: Any, prompt: list[int], count: int) -> list[int]:
    """By the definition: the whole sequence again for every token, the likeliest one each time."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == 1:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_a_greedy_answer_ignores_the_generation_config_of_the_folder(hostile: TransformersRuntime) -> None:
    answers = hostile.generate(PROMPTS, GenerationOptions(new_tokens=15), 3)
    assert [answer.ids for answer in answers] == [greedy_answer(hostile.model, prompt, 15) for prompt in PROMPTS]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_equal_those_of_a_folder_without_defaults(
    hostile: TransformersRuntime, dense: TransformersRuntime, temperature: float
) -> None:
    options = GenerationOptions(new_tokens=15, temperature=temperature, top_p=0.95, seed=5)
    assert hostile.generate(PROMPTS, options, 2) == dense.generate(PROMPTS, options, 2)


def test_the_special_tokens_of_the_generation_config_are_kept(hostile: TransformersRuntime) -> None:
    kept = hostile.model.generation_config.to_diff_dict()
    kept.pop("transformers_version", None)
    assert {name: value for name, value in kept.items() if not name.startswith("_")} == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def test_a_row_ended_by_a_stop_string_has_no_padding(dense_path: Path, tmp_path: Path) -> None:
    """In a model without an end-of-sequence token, whose padding no end token would cut off."""
    shutil.copytree(dense_path, tmp_path / "endless")
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        file = tmp_path / "endless" / name
        values = json.loads(file.read_text())
        values.pop("eos_token_id", None)
        values.pop("eos_token", None)
        file.write_text(json.dumps(values | ({"eos_token_id": None} if name == "config.json" else {})))
    runtime = TransformersRuntime(tmp_path / "endless")
    free = runtime.generate(PROMPTS, GenerationOptions(new_tokens=12), 3)
    assert [len(answer.ids) for answer in free] == [12, 12, 12]
    stop = next(
        letter
        for answer in free
        for place, letter in enumerate(answer.text)
        if letter.isascii() and place < 6 and not all(letter in other.text[:8] for other in free)
    )
    options = GenerationOptions(new_tokens=12, stop_strings=(stop,))
    stopped = runtime.generate(PROMPTS, options, 3)
    assert min(len(answer.ids) for answer in stopped) < max(len(answer.ids) for answer in stopped)
    for whole, answer in zip(free, stopped, strict=True):
        decoded = [runtime.tokenizer.decode(whole.ids[:size], skip_special_tokens=True) for size in range(1, 13)]
        length = next((size for size, text in enumerate(decoded, start=1) if stop in text), 12)
        assert answer.ids == whole.ids[:length]
        assert answer.text == whole.text.split(stop)[0]


def test_closing_empties_the_cuda_cache_only_where_cuda_was_used(
    dense_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[bool] = []
    runtime = TransformersRuntime(dense_path)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(runtime.model is None))
    runtime.close()
    assert emptied == []
    runtime = TransformersRuntime(dense_path)
    runtime.device = "cuda:0"
    runtime.close()
    runtime.close()
    assert emptied == [True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, this machine has none")
def test_closing_gives_the_memory_of_the_gpu_back(dense_path: Path) -> None:
    before = torch.cuda.memory_reserved(0)
    runtime = TransformersRuntime(dense_path, device="cuda:0")
    assert torch.cuda.memory_reserved(0) > before
    runtime.close()
    assert torch.cuda.memory_reserved(0) <= before
