"""llama.cpp against transformers in float64 or float32 on the same weights."""

from __future__ import annotations

import gc
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentic_compression.errors import CompressionError, ModelError, UnavailableError, UsageError
from agentic_compression.resident_memory import resident_bytes
from agentic_compression.runtimes import GenerationOptions
from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.methods.tiny_models import tiny_model, tiny_tokenizer
from tests.unit.runtimes.gguf_writing import write_llama

SHORT = GenerationOptions(new_tokens=12)


def draw(generator: random.Random, count: int) -> list[int]:
    return [0, *(generator.randrange(2, 258) for _ in range(count))]


def make_pairs(contexts: int, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    generator = random.Random(seed)
    return [
        (context, draw(generator, generator.randint(0, 5))[-generator.randint(1, 5) :])
        for context in [draw(generator, generator.randint(0, 40)) for _ in range(contexts)]
        for _ in range(generator.randint(1, 4))
    ]


def reference_score(model: Any, context: list[int], rest: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + rest])).logits[0, len(context) - 1 : -1]
    likelihoods = torch.log_softmax(logits, dim=-1)[torch.arange(len(rest)), torch.tensor(rest)]
    return float(likelihoods.sum()), logits.argmax(-1).tolist() == rest


@pytest.fixture(scope="module")
def double() -> Any:
    return tiny_model().double()


def test_logits_of_every_position_equal_transformers(dense: TransformersRuntime, exact: LlamaCppRuntime) -> None:
    ids = draw(random.Random(0), 200)
    places = [0, 3, 77, 200]
    expected = dense.logits(ids, places)
    assert expected.shape == (4, 258)
    np.testing.assert_allclose(exact.logits(ids, places), expected, atol=2e-5)


def test_half_precision_stays_close(dense: TransformersRuntime, half: LlamaCppRuntime) -> None:
    ids = draw(random.Random(0), 100)
    difference = np.abs(half.logits(ids, range(101)) - dense.logits(ids, range(101)))
    assert 1e-6 < difference.max() < 0.02


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_log_likelihoods_equal_whole_sequences_in_float64(exact: LlamaCppRuntime, double: Any, batch_size: int) -> None:
    pairs = make_pairs(20)
    reported: list[int] = []
    answers = exact.score(pairs, batch_size, reported.append)
    expected = [reference_score(double, context, rest) for context, rest in pairs]
    assert [likelihood for likelihood, _ in answers] == pytest.approx([item[0] for item in expected], rel=1e-5)
    assert [greedy for _, greedy in answers] == [item[1] for item in expected]
    assert sum(reported) == len(pairs)


def test_choices_of_one_context_score_as_each_alone(exact: LlamaCppRuntime) -> None:
    """More choices than there are sequences, and a context longer than one batch."""
    generator = random.Random(4)
    for length, choices in ((30, 300), (450, 3)):
        context = draw(generator, length)
        pairs = [(context, draw(generator, generator.randint(1, 5))[1:]) for _ in range(choices)]
        together = exact.score(pairs, 512)
        chosen = list(range(0, choices, max(1, choices // 20)))
        alone = [exact.score([pairs[index]], 1)[0] for index in chosen]
        assert [together[index][0] for index in chosen] == pytest.approx([item[0] for item in alone], rel=1e-5)
        assert [together[index][1] for index in chosen] == [item[1] for item in alone]


def test_greedy_continuations_are_recognised(exact: LlamaCppRuntime) -> None:
    context = draw(random.Random(2), 10)
    rest = exact.time_request(context, 4).tokens
    wrong = [*rest[:-1], (rest[-1] + 1) % 258]
    answers = exact.score([(context, rest), (context, wrong), (context, rest[:1])], 8)
    assert [greedy for _, greedy in answers] == [True, False, True]


def test_documents_equal_float64(exact: LlamaCppRuntime, double: Any) -> None:
    generator = random.Random(5)
    windows = [draw(generator, generator.randint(1, 120)) for _ in range(30)] + [draw(generator, 511)]
    scores = exact.score_documents(windows, 64)
    for window, score in zip(windows, scores, strict=True):
        with torch.no_grad():
            logits = double(input_ids=torch.tensor([window])).logits[0, :-1]
        targets = torch.tensor(window[1:])
        nll = -float(torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets].sum())
        assert score.nll == pytest.approx(nll, rel=1e-5)
        assert list(score.hits) == (logits.argmax(-1) == targets).int().tolist()


def test_greedy_generation_equals_transformers(dense: TransformersRuntime, exact: LlamaCppRuntime) -> None:
    generator = random.Random(6)
    prompts = [draw(generator, generator.randint(0, 50)) for _ in range(12)]
    expected = dense.generate(prompts, SHORT, 5)
    assert exact.generate(prompts, SHORT, 5) == expected
    assert any(len(answer.ids) == 12 for answer in expected)
    letters = [letter for answer in expected for letter in answer.text[2:] if letter.isascii() and letter.isprintable()]
    options = GenerationOptions(new_tokens=12, stop_strings=(letters[0], letters[-1]))
    stopped = dense.generate(prompts, options, 64)
    assert exact.generate(prompts, options, 64) == stopped
    assert [answer.text for answer in stopped] == [
        answer.text.split(letters[0])[0].split(letters[-1])[0] for answer in expected
    ]
    assert stopped != expected


def test_an_answer_ends_at_a_stop_token(dense: TransformersRuntime, exact: LlamaCppRuntime) -> None:
    prompt = draw(random.Random(7), 9)
    whole = exact.generate([prompt], SHORT, 1)[0].ids
    options = GenerationOptions(new_tokens=12, stop_ids=(whole[5],))
    expected = whole[: whole.index(whole[5])]
    assert dense.generate([prompt], options, 1)[0].ids == expected
    assert exact.generate([prompt], options, 1)[0].ids == expected
    pieces = list(exact.stream(prompt, options))
    assert [piece.token for piece in pieces] == [*expected, whole[5]]
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize("name", ["dense", "exact"])
def test_streams_say_what_generation_says(name: str, request: pytest.FixtureRequest) -> None:
    runtime = request.getfixturevalue(name)
    prompt = draw(random.Random(8), 20)
    whole = runtime.generate([prompt], SHORT, 1)[0]
    pieces = list(runtime.stream(prompt, SHORT))
    assert [piece.token for piece in pieces] == whole.ids
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.finish for piece in pieces] == [None] * 11 + ["length"]


def test_sampling_follows_its_seed(exact: LlamaCppRuntime, dense: TransformersRuntime) -> None:
    prompt = draw(random.Random(9), 5)
    options = GenerationOptions(new_tokens=20, temperature=1.0, top_p=0.9, seed=3)
    first, again = list(exact.stream(prompt, options)), list(exact.stream(prompt, options))
    other = list(exact.stream(prompt, GenerationOptions(new_tokens=20, temperature=1.0, top_p=0.9, seed=4)))
    assert first == again
    assert first != other
    assert [piece.token for piece in dense.stream(prompt, options)] == [piece.token for piece in first]


def test_an_abandoned_stream_does_not_disturb_the_next(exact: LlamaCppRuntime) -> None:
    prompt = draw(random.Random(10), 5)
    expected = list(exact.stream(prompt, SHORT))
    abandoned = exact.stream(prompt, SHORT)
    next(abandoned)
    assert list(exact.stream(prompt, SHORT)) == expected
    with pytest.raises(UsageError, match="streamed to its end"):
        list(abandoned)


def test_timed_requests_have_their_full_length(exact: LlamaCppRuntime, dense: TransformersRuntime) -> None:
    prompt = draw(random.Random(11), 30)
    served = exact.time_request(prompt, 9)
    assert served.tokens == dense.time_request(prompt, 9).tokens
    assert len(served.tokens) == 9
    assert 0 < served.first_token_ms < served.request_ms


def test_embeddings_are_normalised_means_of_hidden_states(
    exact: LlamaCppRuntime, dense: TransformersRuntime, double: Any
) -> None:
    texts = ["one", "a longer text, with ünïcode", "x" * 700]
    expected = []
    for text in texts:
        ids = tiny_tokenizer()(text)["input_ids"][:512]
        with torch.no_grad():
            mean = double.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0).numpy()
        expected.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(exact.embed(texts), np.stack(expected), atol=2e-6)
    np.testing.assert_allclose(dense.embed(texts), np.stack(expected), atol=2e-6)
    assert exact.embed([]).shape == (0, 64)


def test_long_texts_of_any_length_are_embedded(tmp_path: Path) -> None:
    """One after another in one runtime, because a larger context takes the place of a smaller one."""
    model = tiny_model()
    model.config.max_position_embeddings = 2048
    for name in ("gguf", "dense"):
        (tmp_path / name).mkdir()
        tiny_tokenizer().save_pretrained(tmp_path / name)
    write_llama(model, tmp_path / "gguf" / "model.gguf")
    model.save_pretrained(tmp_path / "dense")
    runtime = LlamaCppRuntime(tmp_path / "gguf", exact=True)
    reference = TransformersRuntime(tmp_path / "dense", threads=1)
    for tokens in (513, 521, 601, 640, 701, 768, 769, 1000, 1025, 520, 3000):
        texts = ["abc" * 7, "xyz"[tokens % 3] * (tokens - 1)]  # and BOS
        np.testing.assert_allclose(runtime.embed(texts), reference.embed(texts), atol=1e-5, err_msg=str(tokens))
    runtime.close()


def test_a_held_context_is_replaced_when_it_is_too_small_in_any_respect(gguf_path: Path) -> None:
    runtime = LlamaCppRuntime(gguf_path)
    small = runtime._context("generate", 500, outputs=1)
    assert runtime._context("generate", 300, outputs=1) is small
    assert runtime._context("generate", 500, outputs=200).options.outputs == 200
    assert runtime._context("generate", 500, outputs=600).options.batch == 600
    assert runtime._context("generate", 600, outputs=1).options.tokens == 768
    runtime.close()


def test_two_runtimes_are_open_at_once(exact: LlamaCppRuntime, gguf_path: Path, half: LlamaCppRuntime) -> None:
    prompt = draw(random.Random(12), 30)
    expected = exact.logits(prompt, [30])
    second = LlamaCppRuntime(gguf_path, exact=True)
    first_stream, second_stream = exact.stream(prompt, SHORT), second.stream(prompt, SHORT)
    mixed = [(next(first_stream), next(second_stream)) for _ in range(12)]
    assert all(one == other for one, other in mixed)
    half.score([(prompt, [5])], 1)
    second.close()
    np.testing.assert_array_equal(exact.logits(prompt, [30]), expected)


def test_too_long_input_is_refused(exact: LlamaCppRuntime, dense: TransformersRuntime) -> None:
    long = [5] * 513
    for runtime in (exact, dense):
        assert runtime.score([(long[:512], [5])], 1)[0][0] < 0
        for call in (
            lambda runtime=runtime: runtime.score([(long, [5])], 1),
            lambda runtime=runtime: runtime.score_documents([long], 1),
            lambda runtime=runtime: runtime.generate([long[:501]], SHORT, 1),
            lambda runtime=runtime: runtime.stream(long[:501], SHORT),
            lambda runtime=runtime: runtime.time_request(long[:501], 12),
            lambda runtime=runtime: runtime.logits(long, [0]),
        ):
            with pytest.raises(UsageError, match=r"must fit the model's context of 51[23], got 51"):
                call()


def test_empty_input_is_refused(exact: LlamaCppRuntime, dense: TransformersRuntime) -> None:
    for runtime in (exact, dense):
        with pytest.raises(UsageError, match="a token each, got 0 and 1"):
            runtime.score([([], [5])], 1)
        with pytest.raises(UsageError, match="a token or more, got none"):
            runtime.generate([[]], SHORT, 1)
        assert runtime.score([], 4) == []
        assert runtime.score_documents([], 4) == []


def test_tokens_outside_the_vocabulary_are_refused(exact: LlamaCppRuntime) -> None:
    with pytest.raises(UsageError, match="token ids must lie in 0 to 257, got 999 to 999"):
        exact.logits([999], [0])


def test_closing_frees_the_memory(gguf_path: Path) -> None:
    def serve() -> None:
        runtime = LlamaCppRuntime(gguf_path)
        runtime.time_request([1] * 100, 2)
        runtime.score_documents([[1] * 500] * 8, 8)
        runtime.close()
        runtime.close()

    serve()
    gc.collect()
    before = resident_bytes()
    for _ in range(20):
        serve()
    assert resident_bytes() - before < 5_000_000  # twenty caches alone would be 10 MB, the weights as much


def test_a_closed_runtime_says_so(gguf_path: Path) -> None:
    runtime = LlamaCppRuntime(gguf_path)
    runtime.close()
    with pytest.raises(ValueError, match="is closed"):
        runtime.logits([1, 2], [0])


def _damage(folder: Path, kind: str) -> None:
    file = folder / "model.gguf"
    content = file.read_bytes()
    damaged = {
        "empty": b"",
        "no magic": b"\0" * 400,
        "magic alone": b"GGUF",
        "random": b"GGUF" + random.Random(0).randbytes(3000),
        "cut in the header": content[:400],
        "cut in the tensors": content[: len(content) // 2],
    }
    file.write_bytes(damaged[kind])


@pytest.mark.parametrize(
    "kind", ["empty", "no magic", "magic alone", "random", "cut in the header", "cut in the tensors"]
)
def test_a_damaged_file_is_a_model_error(gguf_path: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(gguf_path, tmp_path / "damaged")
    _damage(tmp_path / "damaged", kind)
    with pytest.raises(ModelError, match=r"model\.gguf"):
        LlamaCppRuntime(tmp_path / "damaged")


def test_a_folder_without_tokenizer_or_with_another_one_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    shutil.copy(gguf_path / "model.gguf", tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="must hold a tokenizer"):
        LlamaCppRuntime(tmp_path)
    larger = tiny_tokenizer()
    larger.add_tokens(["<extra>"])
    larger.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer's 259, got 258"):
        LlamaCppRuntime(tmp_path)


def test_nan_weights_are_an_error_not_a_number(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.norm.weight.data.fill_(float("nan"))
    write_llama(model, tmp_path / "model.gguf")
    tiny_tokenizer().save_pretrained(tmp_path)
    runtime = LlamaCppRuntime(tmp_path)
    assert np.isnan(runtime.logits([0, 5, 6], [2])).any()
    with pytest.raises(CompressionError, match="likelihoods must be finite"):
        runtime.score_documents([[0, 5, 6]], 1)
    with pytest.raises(CompressionError, match="logits must be numbers"):
        runtime.generate([[0, 5]], SHORT, 1)
    runtime.close()


def test_a_gpu_needs_a_build_for_gpus(gguf_path: Path) -> None:
    from agentic_compression.checkpoints.llama_library import supports_gpu

    if supports_gpu():
        pytest.skip("the installed llama.cpp is built for GPUs")
    import torch as installed

    if installed.cuda.is_available():
        with pytest.raises(UnavailableError, match="built for GPUs"):
            LlamaCppRuntime(gguf_path, device="cuda:0")
    from agentic_compression.checkpoints.llama_library import LlamaModel

    with pytest.raises(UnavailableError, match="built for GPUs"):
        LlamaModel(gguf_path / "model.gguf", gpu=True)
