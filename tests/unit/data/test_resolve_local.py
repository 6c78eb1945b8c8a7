from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agentic_compression.data import resolve_dataset
from agentic_compression.data.files import read_jsonl
from agentic_compression.data.split import fingerprint, first_of_shuffle, split_off
from agentic_compression.errors import DatasetError
from agentic_compression.settings import Settings


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


def _choice_items(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n}", "question": f"What is {n} plus 1?", "choices": [str(n), f"about {n + 1}", "none"], "answer": 1}
        for n in range(count)
    ]


def _write(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def _read(path: str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_resolve_multiple_choice_keeps_calibration_apart(tmp_path: Path, settings: Settings) -> None:
    source = _choice_items(200)
    spec = resolve_dataset(str(_write(tmp_path / "my quiz.jsonl", source)), settings=settings, seed=3)
    (task,) = spec.tasks
    evaluated, calibration = _read(task.path), _read(spec.calibration_path)
    assert (task.kind, spec.name, task.items) == ("multiple_choice", "my-quiz", len(evaluated))
    assert len(calibration) == 32  # at least 32, 10 % would be 20
    assert {item["id"] for item in evaluated} | {item["id"] for item in calibration} == {f"q{n}" for n in range(200)}
    assert not {item["id"] for item in evaluated} & {item["id"] for item in calibration}
    by_id = {item["id"]: item for item in source}
    for item in calibration:
        original = by_id[item["id"]]
        assert item["text"] == f"Question: {original['question']}\nAnswer: {original['choices'][1]}"
    assert all(item == by_id[item["id"]] for item in evaluated)


def test_resolve_calibrates_on_10_percent_and_at_most_512(tmp_path: Path, settings: Settings) -> None:
    thousand = resolve_dataset(str(_write(tmp_path / "a.jsonl", _choice_items(1000))), settings=settings)
    many = resolve_dataset(str(_write(tmp_path / "b.jsonl", _choice_items(6000))), settings=settings)
    few = resolve_dataset(str(_write(tmp_path / "c.jsonl", _choice_items(12))), settings=settings)
    assert len(_read(thousand.calibration_path)) == 100
    assert len(_read(many.calibration_path)) == 512
    assert few.calibration_path is None
    assert few.tasks[0].items == 12
    assert "too few" in few.calibration_source


def test_resolve_is_deterministic_and_follows_file_limit_and_seed(tmp_path: Path, settings: Settings) -> None:
    path = str(_write(tmp_path / "q.jsonl", _choice_items(100)))
    first = resolve_dataset(path, settings=settings, limit=20, seed=1)
    assert resolve_dataset(path, settings=settings, limit=20, seed=1) == first
    other_seed = resolve_dataset(path, settings=settings, limit=20, seed=2)
    other_limit = resolve_dataset(path, settings=settings, limit=10, seed=1)
    used = {item["id"] for item in _read(first.tasks[0].path)}
    changed = [{**item, "choices": ["a", "b"]} if item["id"] in used else item for item in _choice_items(100)]
    _write(Path(path), changed)
    other_file = resolve_dataset(path, settings=settings, limit=20, seed=1)
    assert len({spec.digest for spec in (first, other_seed, other_limit, other_file)}) == 4
    assert _read(first.tasks[0].path)[:10] == _read(other_limit.tasks[0].path)
    assert [item["id"] for item in _read(first.tasks[0].path)] != [f"q{n}" for n in range(20)]
    assert Path(first.tasks[0].path).is_relative_to(settings.artifacts / "datasets" / first.digest)


_VARIANTS: list[tuple[str, list[dict[str, Any]]]] = [
    ("letters", [{"question": "q1", "choices": ["x", "y", "z"], "answer": "B"},
                 {"question": "q2", "choices": ["x", "y"], "answer": "b"}]),
    ("texts", [{"question": "q1", "choices": ["x", "yes"], "answer": "yes"},
               {"question": "q2", "choices": ["no", "well"], "answer": "well"}]),
    ("indices", [{"question": "q1", "choices": ["x", "y"], "answer": 1}, {"query": "q2", "question": "q2",
                 "choices": ["x", "y"], "answer": 1}]),
    ("dict", [{"question": "q1", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
              {"question": "q2", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}]),
    ("labelled", [{"question": "q1", "options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}],
                   "answer": "B"}] * 1),
    ("lettered dict", [{"question": "q1", "choices": {"A": "x", "B": "y"}, "answer": "B"}]),
    ("columns", [{"question": "q1", "A": "x", "B": "y", "C": "z", "answer": "B"},
                 {"question": "q2", "A": "x", "B": "y", "answer": "B"}]),
    ("mmlu columns", [{"question": "q1", "choice0": "x", "choice1": "y", "answer": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "items"), _VARIANTS, ids=[name for name, _ in _VARIANTS])
def test_resolve_recognises_the_common_ways_to_write_choices(
    tmp_path: Path, settings: Settings, name: str, items: list[dict[str, Any]]
) -> None:
    spec = resolve_dataset(str(_write(tmp_path / "q.jsonl", items)), settings=settings)
    assert spec.tasks[0].kind == "multiple_choice"
    assert {item["answer"] for item in _read(spec.tasks[0].path)} == {1}


def test_resolve_reads_csv_and_parquet_like_jsonl(tmp_path: Path, settings: Settings) -> None:
    items = [{"id": str(n), "question": f"q, {n}?", "choices": ["x", 'say "y"'], "answer": n % 2} for n in range(5)]
    jsonl = resolve_dataset(str(_write(tmp_path / "a.jsonl", items)), settings=settings)
    pandas.DataFrame(items).to_parquet(tmp_path / "a.parquet")
    parquet = resolve_dataset(str(tmp_path / "a.parquet"), settings=settings)
    pandas.DataFrame([{**item, "choices": json.dumps(item["choices"])} for item in items]).to_csv(
        tmp_path / "a.csv", index=False
    )
    csv = resolve_dataset(str(tmp_path / "a.csv"), settings=settings)
    wide = pandas.DataFrame(items).drop(columns="choices").assign(A="x", B='say "y"')
    wide.to_csv(tmp_path / "w.csv", index=False, encoding="utf-8-sig")
    assert jsonl.digest == parquet.digest == csv.digest
    assert _read(resolve_dataset(str(tmp_path / "w.csv"), settings=settings).tasks[0].path) == items


def test_resolve_generation(tmp_path: Path, settings: Settings) -> None:
    items = [{"question": f"Say {n}", "answer": n} for n in range(3)]
    spec = resolve_dataset(str(_write(tmp_path / "g.jsonl", items)), settings=settings)
    assert spec.tasks[0].kind == "generation"
    assert _read(spec.tasks[0].path)[2] == {"id": "item-000003", "question": "Say 2", "answer": "2"}
    assert _read(spec.perplexity_path)[0]["text"] == "Question: Say 0\nAnswer: 0"


def test_resolve_text_splits_documents_and_keeps_copies_on_one_side(tmp_path: Path, settings: Settings) -> None:
    items = [{"text": f"Document {n % 50}" + " " * (n // 50)} for n in range(150)] + [{"text": "  "}]
    spec = resolve_dataset(str(_write(tmp_path / "t.jsonl", items)), settings=settings)
    evaluated = {fingerprint(item["text"]) for item in _read(spec.tasks[0].path)}
    calibration = {fingerprint(item["text"]) for item in _read(spec.calibration_path)}
    assert spec.tasks[0].kind == "text"
    assert len(evaluated) + len(calibration) == 50
    assert len(calibration) == 10
    assert not evaluated & calibration
    assert {item["text"] for item in _read(spec.perplexity_path)} == {i["text"] for i in _read(spec.tasks[0].path)}


_QUESTION = {"question": "q", "choices": ["a", "b"], "answer": 0}
_ERRORS: list[tuple[str, str | bytes, str]] = [
    ("a.jsonl", "", "is empty"),
    ("a.jsonl", "\n \n", "holds no items"),
    ("a.csv", "question,answer\n", "holds no items"),
    ("a.txt", "hello", "ends in .jsonl, .csv, .parquet, got a.txt"),
    ("a.jsonl", '{"text": "ok"}\n{"text": \n', "line 2 is not valid JSON"),
    ("a.jsonl", '{"text": "ok"}\n[1]\n', "line 2 must be a JSON object, got list"),
    ("a.jsonl", '{"text": NaN}\n', "line 1 is not valid JSON: NaN"),
    ("a.jsonl", b'{"text": "caf\xe9"}\n', "not UTF-8: byte 0xe9 at offset 13"),
    ("a.jsonl", '{"q": 1, "z": 2}\n', "has the columns q, z; needed: question, choices, answer"),
    ("a.jsonl", '{"question": "q", "choices": ["a", "b"]}\n', "has the columns choices, question"),
    ("a.jsonl", json.dumps({**_QUESTION, "choices": ["a"]}), "line 1: a question needs at least 2 choices, got 1"),
    ("a.jsonl", json.dumps({**_QUESTION, "choices": ["a", "a"]}), "the choice 'a' appears twice"),
    ("a.jsonl", json.dumps({**_QUESTION, "choices": ["a", " "]}), "choice 1 is empty"),
    ("a.jsonl", json.dumps({**_QUESTION, "choices": 5}), "choices must be a list"),
    ("a.jsonl", json.dumps({**_QUESTION, "choices": [["a"], "b"]}), "choices must be a list"),
    ("a.csv", "question,choices,answer\nq,a;b,0\n", "row 1: choices must be a list"),
    ("a.jsonl", json.dumps({**_QUESTION, "answer": "Z"}), "the answer 'Z' is not among the choices 'a', 'b'"),
    ("a.jsonl", json.dumps({**_QUESTION, "answer": 2}), "the answer 2 is not among the choices"),
    ("a.jsonl", json.dumps({**_QUESTION, "answer": None}), "the answer in column 'answer' is missing"),
    ("a.jsonl", json.dumps({**_QUESTION, "question": " "}), "column 'question' must hold text"),
    ("a.jsonl", '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}', "line 2: the id '1' is already used in line 1"),
    ("a.jsonl", '{"id": null, "text": "a"}', "the id must be text or a whole number"),
    ("a.jsonl", '{"text": ""}\n{"text": "  "}', "has no text in any of 2 rows"),
    ("a.jsonl", '{"text": 7}', "text must be text, got int"),
    ("a.jsonl", '{"question": "q", "answer": ""}', "column 'answer' must hold text, got nothing"),
    ("a.csv", 'question,answer\n"q,1\n', "not valid CSV"),
    ("a.parquet", b"PAR1 nonsense", "not a valid parquet file"),
    ("a.csv", "question,choices,answer\nq,\"[\"\"1\"\", \"\"2\"\"]\",1\n", "can be read as text or as index"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), _ERRORS, ids=[message[:40] for _, _, message in _ERRORS])
def test_resolve_says_in_one_line_what_is_wrong_with_a_file(
    tmp_path: Path, settings: Settings, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DatasetError) as caught:
        resolve_dataset(str(path), settings=settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not settings.artifacts.exists()


def test_resolve_suggests_near_files_and_names(tmp_path: Path, settings: Settings) -> None:
    _write(tmp_path / "questions.jsonl", _choice_items(3))
    with pytest.raises(DatasetError, match=r"did you mean questions\.jsonl"):
        resolve_dataset(str(tmp_path / "question.jsonl"), settings=settings)
    with pytest.raises(DatasetError, match="did you mean gsm8k"):
        resolve_dataset("gsm8", settings=settings)
    with pytest.raises(DatasetError, match="is a folder"):
        resolve_dataset(f"{tmp_path}/", settings=settings)
    with pytest.raises(DatasetError, match="limit must be at least 1, got 0"):
        resolve_dataset("gsm8k", settings=settings, limit=0)


def test_resolve_keeps_the_named_tasks_of_a_local_file(tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "answer": f"a{n}"}) + "\n" for n in range(5)))
    whole = resolve_dataset(str(path), settings=settings)
    assert resolve_dataset(str(path), settings=settings, tasks=["mine"]).tasks == whole.tasks
    with pytest.raises(DatasetError, match=r"no task 'other'.*it has: mine"):
        resolve_dataset(str(path), settings=settings, tasks=["other"])
    with pytest.raises(DatasetError, match="got none"):
        resolve_dataset(str(path), settings=settings, tasks=[])


def test_packed_files_are_read_and_bad_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "items.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [row.values["a"] for row in read_jsonl(path)] == [1, 2]
    path.write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match="is not a gzip file"):
        read_jsonl(path)
    path.write_bytes(gzip.compress(b"x" * 1000)[:-12])
    with pytest.raises(DatasetError, match="is not a gzip file"):
        read_jsonl(path)
    path.write_bytes(gzip.compress(b"x" * 1000))
    monkeypatch.setattr("agentic_compression.data.files._UNPACKED_MOST", 10)
    with pytest.raises(DatasetError, match="unpacks to more than 10 bytes"):
        read_jsonl(path)


def test_resolve_names_benchmark_dir_when_the_hub_is_unreachable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DatasetError, match="--benchmark-dir"):
        resolve_dataset("gsm8k", settings=Settings())


def test_resolve_demo_when_its_data_is_built(settings: Settings) -> None:
    from agentic_compression import demo

    if not demo.multiple_choice_path().is_file():
        pytest.skip("the demo data is not built in this tree")
    spec = resolve_dataset("demo", settings=settings, limit=5)
    assert [(task.kind, task.items) for task in spec.tasks] == [("multiple_choice", 5), ("generation", 5)]
    assert spec.calibration_path == str(demo.train_sample_path())
    heldout = {fingerprint(item["text"]) for item in _read(spec.perplexity_path)}
    assert not heldout & {fingerprint(item["text"]) for item in _read(spec.calibration_path)}


_texts = st.lists(st.text(max_size=8), max_size=30)
_quick = hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@_quick
@given(texts=_texts, count=st.integers(0, 40), seed=st.integers(0, 5))
def test_split_off_is_a_partition_without_shared_texts(texts: list[str], count: int, seed: int) -> None:
    items = [{"id": n, "text": text} for n, text in enumerate(texts)]
    rest, taken = split_off(items, count, lambda item: item["text"], seed)
    sides = [{fingerprint(item["text"]) for item in side} for side in (rest, taken)]
    everything = {fingerprint(text) for text in texts}
    assert sides[0] | sides[1] == everything
    assert not sides[0] & sides[1]
    assert len(taken) == len(sides[1]) == min(count, len(everything))
    kept = [item for item in items if fingerprint(item["text"]) in sides[0]]
    assert rest == kept
    assert split_off(items, count, lambda item: item["text"], seed) == (rest, taken)


@_quick
@given(count=st.integers(0, 30), small=st.integers(1, 30), more=st.integers(0, 30), seed=st.integers(0, 9))
def test_first_of_shuffle_is_a_prefix_of_a_longer_one(count: int, small: int, more: int, seed: int) -> None:
    items = [{"id": n} for n in range(count)]
    short, long = (first_of_shuffle(items, limit, seed) for limit in (small, small + more))
    assert len(short) == min(small, count)
    assert {item["id"] for item in short} <= {item["id"] for item in long}
    assert len({item["id"] for item in short}) == len(short)


def test_fingerprint_ignores_case_spacing_and_unicode_form() -> None:
    assert fingerprint("Caf\u00e9  au\nlait") == fingerprint("cafe\u0301 AU lait")
    assert fingerprint("a b") != fingerprint("ab")
