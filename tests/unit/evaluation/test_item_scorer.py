"""Items asked in portions, chosen by the caller, and what their score records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import CompressionError, DatasetError, UsageError
from agentic_compression.evaluation.harness import harness_model, quiet_harness
from agentic_compression.evaluation.item_scorer import ItemScorer
from agentic_compression.evaluation.items import Item, named
from agentic_compression.evaluation.quality import choose_items, combine, score_tasks
from agentic_compression.progress import no_progress
from agentic_compression.records import DatasetSpec, DatasetTask, EvaluationSettings
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.evaluation.conftest import ids_of

TASKS = str(Path(__file__).resolve().parents[3] / "configs" / "tasks")
SETTINGS = EvaluationSettings(batch_size=5, perplexity_tokens=400)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def dataset(tmp_path: Path, sentences: list[str]) -> DatasetSpec:
    """Choices, generation, text, and a harness's own task with examples drawn at random (GSM8K in this vocabulary)."""
    choices = ["w1", "w2 w3", "w4"]
    mc = [{"id": f"m{n:02}", "question": f"w{n} w{n + 1}", "choices": choices, "answer": n % 3} for n in range(12)]
    gen = [{"id": f"g{n}", "question": f"w{n}", "answer": f"w{n + 1} w3"} for n in range(7)]
    text = [{"id": f"t{n:02}", "text": sentence} for n, sentence in enumerate(sentences)]
    shots = [{"question": f"w{n} w{n + 2}", "answer": f"w{n} #### {n}"} for n in range(30)]
    asked = [{"question": f"w{n} w{n + 5}", "answer": f"#### {n}"} for n in range(9)]
    splits = {"test": _write(tmp_path / "test.jsonl", asked), "train": _write(tmp_path / "train.jsonl", shots)}
    tasks = (
        DatasetTask(
            name="mc", kind="multiple_choice", path=_write(tmp_path / "mc.jsonl", mc), items=12, digest="mc", weight=3
        ),
        DatasetTask(name="gen", kind="generation", path=_write(tmp_path / "gen.jsonl", gen), items=7, digest="gen"),
        DatasetTask(name="text", kind="text", path=_write(tmp_path / "text.jsonl", text), items=26, digest="text"),
        DatasetTask(
            name="maths",
            kind="benchmark",
            path=splits["test"],
            items=9,
            digest="maths",
            lm_eval_task="gsm8k",
            split_files=splits,
            few_shot=3,
        ),
    )
    return DatasetSpec(dataset="test", name="test", tasks=tasks, digest="test")


@pytest.fixture
def scorer(tiny: TransformersRuntime, dataset: DatasetSpec) -> ItemScorer:
    return ItemScorer(tiny, _without_maths(dataset), SETTINGS, TASKS)


def _without_maths(dataset: DatasetSpec) -> DatasetSpec:
    return dataset.model_copy(update={"tasks": dataset.tasks[:3]})


def test_portions_give_the_answers_of_asking_everything_at_once(
    tiny: TransformersRuntime, dataset: DatasetSpec
) -> None:
    room = _without_maths(dataset)
    whole, parts = ItemScorer(tiny, room, SETTINGS, TASKS), ItemScorer(tiny, room, SETTINGS, TASKS)
    everything = whole.score_all({task: range(len(whole.items(task))) for task in whole.tasks})
    for task in whole.tasks:
        total = len(whole.items(task))
        assert [item.id for item in parts.items(task)] == [item.id for item in whole.items(task)]
        first, second = list(range(total - 1, 2, -2)), list(range(total))
        parts.score(task, first)
        answers = parts.score(task, second)
        assert [answer.value for answer in answers] == [answer.value for answer in everything[task]]
        assert [answer.hits for answer in answers] == [answer.hits for answer in everything[task]]
        for one, other in zip(answers, everything[task], strict=True):
            assert one.said == (other.said if task == "gen" else pytest.approx(other.said, abs=1e-4))


def test_an_item_is_asked_once(scorer: ItemScorer, tiny: TransformersRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    score, asked = tiny.score, list[int]()

    def counted(pairs: Any, *rest: Any) -> Any:
        asked.append(len(pairs))
        return score(pairs, *rest)

    monkeypatch.setattr(tiny, "score", counted)
    scorer.score("mc", [0, 1])
    scorer.score("mc", [1, 0, 2])
    scorer.benchmark_score("mc", [0, 1, 2])
    assert asked == [6, 3]  # three choices an item


def test_prompts_of_random_examples_depend_on_the_place_alone(
    tiny: TransformersRuntime, dataset: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts of a run over the whole task, whichever items are asked and in whatever order."""
    maths = dataset.model_copy(update={"tasks": dataset.tasks[3:]})
    prompts: list[list[str]] = []
    for portions in ([range(9)], [[8], [2, 0], range(9)]):
        scorer = ItemScorer(tiny, maths, SETTINGS, TASKS)
        source: Any = scorer._sources["maths"]
        for portion in portions:
            with quiet_harness():
                found = {position: source.requests(position)[0].args[0] for position in portion}
        prompts.append([found[position] for position in range(9)])
    assert prompts[0] == prompts[1]
    assert len({prompt.rpartition("Question:")[0] for prompt in prompts[0]}) > 5
    assert all(prompt.count("Question:") == 4 for prompt in prompts[0])


def test_the_caller_chooses_items_by_name_or_text(tiny: TransformersRuntime, dataset: DatasetSpec) -> None:
    seen: dict[str, int] = {}

    def choose(task: str, items: Sequence[Item]) -> list[int]:
        seen[task] = len(items)
        if task == "gen":
            return []
        if task == "text":
            return [3, 1]
        return [place for place, item in enumerate(items) if item.id in {"m03", "m10"} or '"w5 w6"' in item.text]

    room = _without_maths(dataset)
    scores = score_tasks(tiny, room, SETTINGS, TASKS, choose=choose)
    assert seen == {"mc": 12, "gen": 7, "text": 26}
    assert [score.items for score in scores] == [("m03", "m05", "m10"), ("t01", "t03")]
    assert [score.score.n for score in scores] == [3, 2]
    assert sum(scores[1].groups) == len(scores[1].outcomes)
    assert combine(scores, room).value == pytest.approx((3 * scores[0].score.value + scores[1].score.value) / 4)
    with pytest.raises(DatasetError, match="got none"):
        score_tasks(tiny, room, SETTINGS, TASKS, choose=lambda *_: [])
    with pytest.raises(UsageError, match="must lie in 0 … 11, got 12"):
        score_tasks(tiny, room, SETTINGS, TASKS, choose=lambda *_: [12])


def test_by_default_the_limit_chooses(tiny: TransformersRuntime, dataset: DatasetSpec) -> None:
    room, few = _without_maths(dataset), SETTINGS.model_copy(update={"limit": 4, "seed": 2})
    whole = {score.task: score for score in score_tasks(tiny, room, SETTINGS, TASKS)}
    for score in score_tasks(tiny, room, few, TASKS)[:2]:
        places = choose_items(len(whole[score.task].items), 4, 2)
        assert score.items == tuple(whole[score.task].items[place] for place in places)
        assert score.outcomes == tuple(whole[score.task].outcomes[place] for place in places)
    assert len(whole["text"].outcomes) == sum(whole["text"].groups)
    assert 400 <= sum(whole["text"].groups) < 400 + 96


def test_names_are_ids_or_contents() -> None:
    items = named([{"id": 7, "q": "a"}, {"q": "b"}, {"q": "b"}, {"id": "", "q": "c"}, {"id": 7, "q": "d"}])
    names = [item.id for item in items]
    assert (names[0], names[4]) == ("7", "7#2")
    assert names[2] == f"{names[1]}#2"
    assert names[3] == named([{"q": "c"}])[0].id
    assert named([{"q": "b"}])[0].id == names[1]
    assert len(set(names)) == 5
    assert items[0].text == named([{"id": 8, "q": "a"}])[0].text


@given(st.lists(st.sampled_from(["a", "a#2", "a#2#2", "a#3", "b", 7, "7", None]), max_size=12))
def test_names_are_unique_whatever_the_ids_are(ids: list[Any]) -> None:
    """A comparison of two models pairs answers by these names."""
    names = [item.id for item in named([{"id": own, "q": "same"} for own in ids])]
    assert len(set(names)) == len(names)
    plain = [str(own) for own in ids]
    assert all(names[plain.index(own)] == own for own in {"a", "b", "7"} & set(plain))


def test_prompts_cut_to_fit_are_counted(tiny: TransformersRuntime, tmp_path: Path) -> None:
    long = "w1 " * 100
    mc = [{"id": f"m{n}", "question": long if n < 2 else "w1", "choices": ["w2", "w3"], "answer": 0} for n in range(5)]
    gen = [{"id": f"g{n}", "question": long if n < 3 else "w1", "answer": "w2"} for n in range(5)]
    tasks = (
        DatasetTask(name="mc", kind="multiple_choice", path=_write(tmp_path / "m.jsonl", mc), items=5, digest="m"),
        DatasetTask(name="gen", kind="generation", path=_write(tmp_path / "g.jsonl", gen), items=5, digest="g"),
    )
    dataset = DatasetSpec(dataset="long", name="long", tasks=tasks, digest="long")
    choices, generation = score_tasks(tiny, dataset, SETTINGS, TASKS)
    assert (choices.truncated, generation.truncated) == (2, 3)
    assert choices.answer_tokens is None
    assert generation.answer_tokens == 1 + 4


def test_an_answer_longer_than_the_context_gets_half_of_it(tiny: TransformersRuntime, dataset: DatasetSpec) -> None:
    """GSM8K allows 256 new tokens; the context is 96."""
    (score,) = score_tasks(tiny, dataset.model_copy(update={"tasks": dataset.tasks[3:]}), SETTINGS, TASKS)
    assert score.answer_tokens == 48
    assert score.few_shot == 3
    assert score.metric == "exact_match,strict-match"
    assert score.truncated == 9  # three examples and the question are longer than the other half
    assert len(score.outcomes) == len(score.items) == 9


def test_a_choice_longer_than_the_context_is_refused(tiny: TransformersRuntime) -> None:
    with quiet_harness():
        model = harness_model(tiny, 4, no_progress)
        with pytest.raises(DatasetError, match="context of 96 tokens, got one of 97"):
            model._loglikelihood_tokens([(("", ""), [1, 5], [6] * 97)])
        assert len(model._loglikelihood_tokens([(("", ""), [1, 5], [6] * 96)])) == 1
        assert model.cut == [True]


def test_a_tokenizer_without_padding_is_enough(tiny: TransformersRuntime, scorer: ItemScorer) -> None:
    tiny.tokenizer.pad_token = None  # a harness model over the same tokenizer sets one
    assert {answer.said[0] for answer in scorer.score("gen", range(7))}
    assert ids_of(tiny, "w1")


def test_nan_logits_are_an_error_whatever_is_asked(tiny_path: Path, dataset: DatasetSpec) -> None:
    broken = TransformersRuntime(tiny_path)
    broken.model.lm_head.weight.data.fill_(float("nan"))
    scorer = ItemScorer(broken, _without_maths(dataset), SETTINGS, TASKS)
    for task in ("mc", "text"):
        with pytest.raises(CompressionError, match="likelihoods must be"):
            scorer.score(task, [0, 1])


def test_examples_of_a_missing_split_are_asked_for(tiny: TransformersRuntime, dataset: DatasetSpec) -> None:
    maths = dataset.tasks[3].model_copy(update={"split_files": {"test": dataset.tasks[3].path}})
    lacking = dataset.model_copy(update={"tasks": (maths,)})
    with pytest.raises(DatasetError, match="3 examples of its train split"):
        ItemScorer(tiny, lacking, SETTINGS, TASKS)
