from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.errors import CompressionError, DatasetError
from agentic_compression.evaluation.harness import harness_model, quiet_harness
from agentic_compression.progress import no_progress
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime


def test_adapter_agrees_with_the_plain_harness_model(tiny: TransformersRuntime) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    arguments = [
        ("Question: w1 w2?\nAnswer:", " w3 w4"),
        ("Question: w1 w2?\nAnswer:", " w5"),
        ("Question: w7?\nAnswer: ", "w9 w10 w11"),
        ("", "w1 w2"),
    ]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=("t", number, 1))
        for number, pair in enumerate(arguments)
    ]
    settings = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    generate = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(f"Question: w{number} w{2 * number}?\nAnswer:", settings),
            idx=0,
            metadata=("t", number, 1),
        )
        for number in range(5)
    ]
    with quiet_harness():
        ours = harness_model(tiny, 3, no_progress)
        plain = HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, backend="causal", batch_size=3)
        expected = plain.loglikelihood(requests, disable_tqdm=True)
        assert ours.generate_until(generate) == plain.generate_until(generate, disable_tqdm=True)
        measured = ours.loglikelihood(requests)
    assert [likelihood for likelihood, _ in measured] == pytest.approx([item[0] for item in expected], rel=1e-4)
    assert [greedy for _, greedy in measured] == [greedy for _, greedy in expected]


def test_adapter_encodes_as_the_tokenizer_does(tiny: TransformersRuntime) -> None:
    with quiet_harness():
        model = harness_model(tiny, 4, no_progress)
    assert model.tok_encode("w1 w2") == tiny.tokenizer("w1 w2")["input_ids"]
    assert model.tok_encode("w1 w2")[0] == tiny.tokenizer.bos_token_id
    model._encode_all(["w1 w2", "w3"])
    assert model.tok_encode("w3") == tiny.tokenizer("w3")["input_ids"]
    assert model.tok_encode("w3", add_special_tokens=False) == tiny.tokenizer("w3")["input_ids"][1:]


def test_nan_answers_are_an_error(tiny_path: Path) -> None:
    broken = TransformersRuntime(tiny_path)
    broken.model.lm_head.weight.data.fill_(float("nan"))
    with quiet_harness():
        model = harness_model(broken, 4, no_progress)
        with pytest.raises(CompressionError, match="NaN for 1 of 1"):
            model._loglikelihood_tokens([(("a", "b"), [1, 5], [6])])


def test_adapter_asks_over_long_items_as_the_plain_harness_model_does(tiny: TransformersRuntime) -> None:
    """The beginning of what is too long is cut off; generation leaves room for the answer."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    long = "w1 w2 w3 " * 40
    pairs = [(long, "w4 w5"), (long, "w6"), ("w1 " * 94, "w2"), ("w1 " * 95, "w2")]
    score = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=("t", number, 1))
        for number, pair in enumerate(pairs)
    ]
    arguments = (long, {"until": ["w9"], "max_gen_toks": 7, "do_sample": False})
    generate = [Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0, metadata=("t", 0, 1))]
    with quiet_harness():
        ours = harness_model(tiny, 3, no_progress)
        plain = HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, backend="causal", batch_size=3, max_length=96)
        assert ours.generate_until(generate) == plain.generate_until(generate, disable_tqdm=True)
        measured, expected = ours.loglikelihood(score), plain.loglikelihood(score, disable_tqdm=True)
    assert [likelihood for likelihood, _ in measured] == pytest.approx([item[0] for item in expected], rel=1e-4)
    assert [greedy for _, greedy in measured] == [greedy for _, greedy in expected]


def test_generation_arguments_are_understood_or_refused(tiny: TransformersRuntime) -> None:
    with quiet_harness():
        model = harness_model(tiny, 4, no_progress)
        options = model._options(
            {"until": "w1", "max_gen_toks": 9, "do_sample": True, "temperature": 0.5, "top_p": 0.8}
        )
        assert (options.new_tokens, options.temperature, options.top_p) == (9, 0.5, 0.8)
        assert options.stop_strings == ("w1", "</s>")
        assert model._options({"do_sample": False, "until": []}).temperature == 0
        assert model._options({"until": []}).new_tokens == 256
        with pytest.raises(DatasetError, match="got num_beams"):
            model._options({"until": [], "num_beams": 4})
