"""The demo corpus, its held-out items, the tokenizer and the shipped model's files."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from agentic_compression import demo
from agentic_compression.demo import corpus as corpus_module
from agentic_compression.demo.corpus import Corpus, CorpusConfig, Document, check_disjoint, normalise_text
from agentic_compression.demo.skills import SKILLS, draw_exercise
from agentic_compression.demo.world import ATTRIBUTES

MEGABYTE = 1_000_000


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="module")
def documents(corpus: Corpus) -> list[Document]:
    return list(itertools.islice(corpus.training_documents(), 40_000))


def test_training_never_asks_a_held_out_item(corpus: Corpus, documents: list[Document]) -> None:
    assert check_disjoint(documents, corpus.held_out) > 20_000


def test_shipped_questions_are_absent_from_the_training_text(documents: list[Document]) -> None:
    trained = {normalise_text(q) for d in documents for q in re.findall(r"Question: (.*)\n", d.text)}
    for path in (demo.multiple_choice_path(), demo.generation_path()):
        assert not trained & {normalise_text(str(row["question"])) for row in read(path)}


def test_shipped_texts_are_absent_from_the_training_text(documents: list[Document]) -> None:
    trained = {normalise_text(d.text) for d in documents}
    assert not trained & {normalise_text(str(row["text"])) for row in read(demo.heldout_text_path())}


def test_check_disjoint_sees_a_held_out_key_and_a_held_out_wording(corpus: Corpus) -> None:
    item = corpus.held_out.generation[0]
    with pytest.raises(AssertionError, match="held-out key"):
        check_disjoint([Document("anything", (item.key,))], corpus.held_out)
    reworded = corpus_module.question_document([(item.question.upper(), item.answer)])
    with pytest.raises(AssertionError, match="held-out question"):
        check_disjoint([Document(reworded)], corpus.held_out)


def test_exercise_answers_and_keys_are_right(corpus: Corpus) -> None:
    rng = corpus.random_stream("test")
    for exercise in (draw_exercise(rng) for _ in range(200)):
        kind, *parts = exercise.key
        assert " ".join(parts) in exercise.question
        expected = "".join(sorted(parts)) if kind == "sort" else " ".join(reversed(parts))
        assert exercise.answer == expected


def test_both_tasks_ask_different_facts(corpus: Corpus) -> None:
    choice = {item.key for item in corpus.held_out.choice + corpus.held_out.choice_validation}
    generation = {item.key for item in corpus.held_out.generation + corpus.held_out.generation_validation}
    assert not choice & generation


def test_shipped_items_are_what_the_generator_draws(corpus: Corpus) -> None:
    choice = [(i.id, i.question, list(i.choices), i.answer) for i in corpus.held_out.choice]
    generation = [(i.id, i.question, i.answer) for i in corpus.held_out.generation]
    assert [tuple(row.values()) for row in read(demo.multiple_choice_path())] == choice
    assert [tuple(row.values()) for row in read(demo.generation_path())] == generation


def test_the_corpus_follows_from_the_seed() -> None:
    small = CorpusConfig(documents=200)
    assert list(Corpus(small).training_documents()) == list(Corpus(small).training_documents())
    other = CorpusConfig(seed=1, documents=200)
    assert list(Corpus(small).training_documents()) != list(Corpus(other).training_documents())


def test_every_held_out_fact_is_told_in_training(corpus: Corpus, documents: list[Document]) -> None:
    names = {person.name: person for person in corpus.people}
    told: dict[str, list[str]] = {name: [] for name in names}
    for text in (document.text for document in documents if not document.keys):
        for first, last in itertools.pairwise(re.findall(r"\w+", text)):
            if f"{first} {last}" in told:
                told[f"{first} {last}"].append(text)
    facts = [i.key for i in corpus.held_out.choice + corpus.held_out.generation if i.key[0] == "fact"]
    attributes = [attribute.name for attribute in ATTRIBUTES]
    for _, name, attribute in facts:
        value = names[name].values[attributes.index(attribute)]
        assert sum(value in text for text in told[name]) >= 5


def test_multiple_choice_schema_and_gold_balance(corpus: Corpus) -> None:
    rows = read(demo.multiple_choice_path())
    assert len(rows) >= 500
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(list(row) == ["id", "question", "choices", "answer"] for row in rows)
    assert all(isinstance(row["choices"], list) and len(set(row["choices"])) == 4 for row in rows)
    golds = Counter(row["answer"] for row in rows)
    assert sorted(golds) == [0, 1, 2, 3]
    assert max(golds.values()) - min(golds.values()) <= 0.03 * len(rows)
    people = {p.name: p for p in corpus.people}
    names = [a.name for a in ATTRIBUTES]
    for row, item in zip(rows, corpus.held_out.choice, strict=True):
        truth = people[item.key[1]].values[names.index(item.key[2])]
        assert row["choices"][row["answer"]] == truth  # type: ignore[index]


def test_generation_schema_covers_every_skill(corpus: Corpus) -> None:
    rows = read(demo.generation_path())
    assert len(rows) >= 500
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(list(row) == ["id", "question", "answer"] for row in rows)
    kinds = Counter(item.key[0] for item in corpus.held_out.generation)
    assert len(kinds) == len(SKILLS) + 1
    assert min(kinds.values()) >= len(rows) // 10


def test_text_files_have_enough_documents_and_stay_small() -> None:
    heldout, sample = read(demo.heldout_text_path()), read(demo.train_sample_path())
    assert len(heldout) >= 200
    assert len(sample) >= 512
    assert all(list(row) == ["id", "text"] for row in heldout + sample)
    assert demo.train_sample_path().stat().st_size <= 300_000


def test_model_is_small_and_its_widths_suit_the_kernels() -> None:
    config = json.loads((demo.model_path() / "config.json").read_text())
    size = sum(file.stat().st_size for file in demo.model_path().iterdir())
    assert size <= 12 * MEGABYTE
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] % 256 == 0
    assert config["intermediate_size"] % 256 == 0
    assert config["head_dim"] in (32, 64)
    assert config["max_position_embeddings"] == 512
    assert config["num_key_value_heads"] * config["head_dim"] % 128 == 0
    assert config["vocab_size"] % 64 == 0
    assert config["dtype"] == "bfloat16"


def test_tokenizer_round_trip_and_start_token() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    for row in read(demo.heldout_text_path())[:50]:
        ids = tokenizer(row["text"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["text"]
    prompt, answer = "Question: What is 47 plus 38?\nAnswer:", " 85"
    whole, part = tokenizer(prompt + answer)["input_ids"], tokenizer(prompt)["input_ids"]
    assert whole[: len(part)] == part
    assert tokenizer.convert_ids_to_tokens(whole[len(part) :]) == ["Ġ", "8", "5"]
    assert tokenizer.decode(tokenizer("Fjörd — 港")["input_ids"], skip_special_tokens=True) == "Fjörd — 港"


def test_chat_template_gives_the_prompt_format() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 4 plus 5?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s>" + corpus_module.PROMPT_TEMPLATE.format(question="What is 4 plus 5?")
