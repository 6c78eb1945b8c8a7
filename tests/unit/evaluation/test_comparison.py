"""A whole comparison: differences, ratios, caveats and the sentence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agentic_compression.cli.comparison_report import as_html, as_markdown, print_comparison
from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.comparison import compare_evaluations, compare_scores
from agentic_compression.evaluation.comparison_summary import rounded
from agentic_compression.evaluation.ratios import ratio_of_estimates, ratio_of_medians
from agentic_compression.records import BenchmarkScore, Divergence, Estimate, Evaluation
from agentic_compression.testing.records import make_estimate, make_evaluation


def evaluation(wrong: list[int], n: int = 600, **values: Any) -> Evaluation:
    outcomes = [1] * n
    for place in wrong:
        outcomes[place] = 0
    task = BenchmarkScore(
        task="demo_mc",
        metric="acc",
        score=make_estimate(sum(outcomes) / n, 0.02, n),
        harness="test",
        items_digest="same",
        outcomes=tuple(outcomes),
    )
    return make_evaluation(**values).model_copy(update={"benchmarks": (task,)})


def timed(base: Evaluation, *samples: float) -> Evaluation:
    return base.model_copy(update={"latency": base.latency.model_copy(update={"request_samples_ms": samples})})


def test_a_model_beside_itself_is_indistinguishable() -> None:
    one = timed(evaluation([1, 2, 3]), 10.0, 10.1, 9.9, 10.2)
    found = compare_evaluations(one, one)
    assert found.verdict == "indistinguishable"
    assert found.accuracy.value == 0
    assert found.items_needed is None
    assert found.detectable_drop is not None
    assert found.flips is not None
    assert found.flips.share == 0
    assert found.warnings == ()
    assert found.ratios["latency_ms"].value == 1
    assert "no difference in accuracy" in found.summary
    assert "would have shown" in found.summary


def test_the_sentence_says_what_was_found() -> None:
    first = timed(evaluation(list(range(10)), latency_ms=21.0), 21.0, 21.1, 20.9, 21.0, 21.0)
    second = timed(evaluation(list(range(4, 16)), latency_ms=10.0, size_bytes=4_000_000), 10.0, 10.1, 9.9, 10.0, 10.0)
    found = compare_evaluations(first, second, names=("A", "B"))
    low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in (found.accuracy.low, found.accuracy.high))
    assert low.startswith("−")
    assert high.startswith("+")
    assert found.summary.startswith(f"−0.3 points, 95 % CI [{low}, {high}], ")
    assert not {"worse", "better"} & set(found.summary.replace(":", " ").split())
    assert "2.1× faster, 2.5× smaller, 52 % less energy: indistinguishable at n=600; about" in found.summary
    assert found.flips is not None
    assert (found.flips.right_to_wrong, found.flips.wrong_to_right) == (6, 4)
    assert found.items_needed is not None
    assert found.items_needed > 600
    assert rounded(4137) == "4,200"
    assert rounded(87) == "87"


def test_many_lost_answers_are_worse_whatever_the_speed() -> None:
    found = compare_evaluations(evaluation([]), evaluation(list(range(60))))
    assert found.verdict == "worse"
    assert found.items_needed is None
    assert found.accuracy.value == pytest.approx(-0.1)
    assert found.accuracy.high < 0
    assert found.summary.startswith("−10.0 points, 95 % CI [−")
    assert ": worse at n=600 (p=" in found.summary
    back = compare_evaluations(evaluation(list(range(60))), evaluation([]))
    assert back.verdict == "better"
    assert back.summary.startswith("+10.0 points, 95 % CI [+")


def test_weights_count_and_tasks_that_only_one_was_asked_are_named() -> None:
    first, second = evaluation([]).benchmarks[0], evaluation(list(range(60))).benchmarks[0]
    other = first.model_copy(update={"task": "other"})
    alone = first.model_copy(update={"task": "alone"})
    found = compare_scores([first, other, alone], [second, other], weights={"other": 3.0})
    assert found.accuracy.value == pytest.approx(-0.025)
    assert any("alone" in warning for warning in found.warnings)
    with pytest.raises(DatasetError, match="share a task"):
        compare_scores([first], [other])
    with pytest.raises(DatasetError, match="one metric"):
        compare_scores([first], [first.model_copy(update={"metric": "exact_match"})])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": {"threads": 4}}, "numbers of threads"),
        ({"environment": {"cpu": "another"}}, "processors"),
        ({"environment": {"device": "cuda:0"}}, "devices"),
        ({"environment": {"runtime": "llama.cpp"}}, "engines"),
        ({"environment": {"packages": {"torch": "9"}}}, "versions"),
        ({"settings": {"prompt_tokens": 128}}, "workloads"),
        ({"latency": {"stable": False}}, "not settled"),
        ({"energy": {"source": "measured"}}, "energy"),
        ({"energy": {"idle": "subtracted"}}, "idle power not applicable and subtracted"),
        ({"energy": {"grid_grams_per_kwh": 1.5}}, "1.5 g/kWh"),
        ({"energy": {"pue": 1.25}}, "PUE 1 and 1.25"),
        ({"split": "report"}, "splits"),
    ],
)
def test_a_mix_of_environments_is_named(changes: dict[str, Any], words: str) -> None:
    first, second = evaluation([]), evaluation([])
    update = {
        name: getattr(second, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    found = compare_evaluations(first, second.model_copy(update=update))
    assert any(words in warning for warning in found.warnings)


def test_answers_of_other_lengths_and_items_that_plans_saw_are_named() -> None:
    short, long = (
        one.model_copy(update={"benchmarks": (one.benchmarks[0].model_copy(update={"answer_tokens": tokens}),)})
        for one, tokens in ((evaluation([]), 32), (evaluation([]), 256))
    )
    assert any("32 and 256 tokens" in warning for warning in compare_evaluations(short, long).warnings)
    assert compare_evaluations(short, evaluation([])).warnings == ()  # older evaluations did not store it
    searched = evaluation([]).model_copy(update={"split": "search"})
    assert any("flattered" in warning for warning in compare_evaluations(searched, searched).warnings)
    reported = evaluation([]).model_copy(update={"split": "report"})
    assert compare_evaluations(reported, reported).warnings == ()


def test_ratio_of_medians_covers_and_agrees_with_the_intervals() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(60):
        first, second = generator.lognormal(0.0, 0.1, 30), 0.5 * generator.lognormal(0.0, 0.1, 30)
        ratio = ratio_of_medians(first.tolist(), second.tolist())
        held += ratio.low <= 0.5 <= ratio.high
    assert held >= 52
    found = ratio_of_estimates(make_estimate(10, 1), make_estimate(5, 0.5))
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 * 0.9
    assert ratio_of_estimates(make_estimate(0, 1), make_estimate(5, 0.5)) is None
    with pytest.raises(ValueError, match="positive"):
        ratio_of_medians([], [1.0])


def test_what_is_zero_or_no_number_has_no_ratio() -> None:
    whole = timed(evaluation([]), 1.0, 2.0)
    stopped = timed(evaluation([]).model_copy(update={"size_bytes": 0}), 0.0, 2.0)
    for first, second in ((whole, stopped), (stopped, whole)):
        ratios = compare_evaluations(first, second).ratios
        assert "model_size_gb" not in ratios
        assert ratios["latency_ms"].value == 1  # of the medians, for a time of 0 has no ratio
    fine = Estimate(value=2.0, low=1.0, high=4.0, n=9)
    for bad in (math.nan, math.inf, 0.0, -1.0):
        for edge in ("value", "low", "high"):
            broken = fine.model_copy(update={edge: bad})
            assert ratio_of_estimates(broken, fine) is None
            assert ratio_of_estimates(fine, broken) is None


def test_only_a_size_is_called_exact() -> None:
    one = evaluation([])
    memory = one.memory.model_copy(update={"peak_growth_bytes": make_estimate(5e7, 0.0, 1)})
    page = as_markdown(compare_evaluations(*[one.model_copy(update={"memory": memory})] * 2))
    assert "| size | 1.000 | exact |" in page
    assert "| memory | 1.000 | no spread seen |" in page


def test_tasks_that_cancel_out_differ_in_nothing() -> None:
    first, second = evaluation([]).benchmarks[0], evaluation([1, 2, 3]).benchmarks[0]
    names = ("a", "b", "c", "d", "e", "f")
    before = [first.model_copy(update={"task": name}) for name in names[:3]]
    before += [second.model_copy(update={"task": name}) for name in names[3:]]
    after = [second.model_copy(update={"task": name}) for name in names[:3]]
    after += [first.model_copy(update={"task": name}) for name in names[3:]]
    weights = dict(zip(names, (0.1, 0.2, 0.7, 0.7, 0.1, 0.2), strict=True))
    found = compare_scores(before, after, weights=weights)
    assert found.accuracy.value != 0  # some 1e-19
    assert "no difference in accuracy" in found.summary


def test_documents_are_planned_in_documents() -> None:
    generator = np.random.default_rng(0)
    texts = [
        BenchmarkScore(
            task="text",
            metric="next_token_top1",
            score=make_estimate(0.5, 0.1, 60),
            harness="test",
            items_digest="same",
            outcomes=tuple(generator.permutation([1] * 3000 + [0] * 3000).tolist()),
            groups=(100,) * 60,
        )
        for _ in range(2)
    ]
    found = compare_scores(texts[:1], texts[1:])
    half = (found.accuracy.high - found.accuracy.low) / 2
    assert found.detectable_drop == pytest.approx(half * 2.8 / 1.96, rel=0.3)


def test_reports_hold_the_tables_and_escape_what_comes_from_outside(capsys: pytest.CaptureFixture[str]) -> None:
    value = Estimate(value=0.01, low=0.005, high=0.02, n=5)
    divergence = Divergence(kl=value, top1_agreement=value, tokens=99, sequences=5, top_k=512, teacher_digest="d" * 16)
    name = "<script>alert(1)</script> | x ![](http://x/y.png) [a](b)"
    found = compare_evaluations(
        evaluation([1]),
        evaluation([2]).model_copy(update={"split": "search"}),
        names=(name, "B"),
        divergence=divergence,
    )
    html, markdown = as_html(found), as_markdown(found)
    assert "<script" not in html
    assert "<script" not in markdown
    assert "![](" not in markdown
    assert "[a](" not in markdown
    for text in (html, markdown):
        for words in ("demo_mc", "nats a token", "latency of a request", "splits", found.summary[:20]):
            assert words in text
    assert all(line.count(" | ") == 8 for line in markdown.splitlines() if line.startswith("| demo_mc"))
    quality_only = compare_scores(evaluation([1]).benchmarks, evaluation([2]).benchmarks)
    assert "cost" not in as_markdown(quality_only)  # no table without a row
    print_comparison(found)
    assert "all, weighted" in capsys.readouterr().out
