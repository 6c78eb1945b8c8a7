from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from agentic_compression.errors import CompressionError
from agentic_compression.evaluation.harness import harness_model, quiet_harness
from agentic_compression.evaluation.likelihood import can_share_contexts, score_continuations
from agentic_compression.evaluation.loading import LoadedModel, load_model
from agentic_compression.progress import no_progress


def make_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    generator = random.Random(11)
    contexts = [[1] + [generator.randrange(4, 60) for _ in range(generator.randint(1, 30))] for _ in range(count)]
    return [
        (context, [generator.randrange(4, 60) for _ in range(generator.randint(1, 6))])
        for context in contexts
        for _ in range(generator.randint(1, 5))
    ]


def brute_force(model: torch.nn.Module, context: list[int], rest: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + rest])).logits[0, len(context) - 1 : -1]
    likelihoods = torch.log_softmax(logits, dim=-1)[torch.arange(len(rest)), torch.tensor(rest)]
    return float(likelihoods.sum()), logits.argmax(-1).tolist() == rest


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_shared_contexts_score_as_whole_sequences_do(tiny: LoadedModel, tiny_path: Path, rows: int) -> None:
    exact = load_model(str(tiny_path), "cpu").model.double()
    pairs = make_pairs(25)
    reported: list[int] = []
    assert can_share_contexts(tiny.model)
    answers = score_continuations(tiny.model, pairs, rows, reported.append)
    expected = [brute_force(exact, context, rest) for context, rest in pairs]
    assert [likelihood for likelihood, _ in answers] == pytest.approx([item[0] for item in expected], rel=1e-4)
    assert [greedy for _, greedy in answers] == [item[1] for item in expected]
    assert sum(reported) == len(pairs)


def test_greedy_continuations_are_recognised(tiny: LoadedModel) -> None:
    context = [1, 10, 11, 12]
    with torch.inference_mode():
        whole = tiny.model.generate(
            torch.tensor([context]),
            do_sample=False,
            max_new_tokens=4,
            min_new_tokens=4,
            eos_token_id=None,
            pad_token_id=0,
        )
    rest = whole[0, 4:].tolist()
    wrong = [*rest[:-1], (rest[-1] + 1) % 60]
    answers = score_continuations(
        tiny.model, [(context, rest), (context, wrong), (context, rest[:1])], 8, lambda _: None
    )
    assert [greedy for _, greedy in answers] == [True, False, True]


def test_adapter_agrees_with_the_plain_harness_model(tiny: LoadedModel) -> None:
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


def test_adapter_encodes_as_the_tokenizer_does(tiny: LoadedModel) -> None:
    with quiet_harness():
        model = harness_model(tiny, 4, no_progress)
    assert model.tok_encode("w1 w2") == tiny.tokenizer("w1 w2")["input_ids"]
    assert model.tok_encode("w1 w2")[0] == tiny.tokenizer.bos_token_id
    model._encode_all(["w1 w2", "w3"])
    assert model.tok_encode("w3") == tiny.tokenizer("w3")["input_ids"]
    assert model.tok_encode("w3", add_special_tokens=False) == tiny.tokenizer("w3")["input_ids"][1:]


def test_nan_answers_are_an_error(tiny_path: Path) -> None:
    broken = load_model(str(tiny_path), "cpu")
    broken.model.lm_head.weight.data.fill_(float("nan"))
    with quiet_harness():
        model = harness_model(broken, 4, no_progress)
        with pytest.raises(CompressionError, match="NaN for 1 of 1"):
            model._loglikelihood_tokens([(("a", "b"), [1, 5], [6])])


def test_adapter_leaves_weights_untied(tiny_path: Path) -> None:
    loaded = load_model(str(tiny_path), "cpu")
    loaded.model.config.tie_word_embeddings = True
    before = loaded.model.lm_head.weight.data_ptr()
    with quiet_harness():
        harness_model(loaded, 4, no_progress)
    assert loaded.model.lm_head.weight.data_ptr() == before
    assert "tie_weights" not in vars(loaded.model)
