"""Generator of the demo corpus: training documents, held-out tasks, held-out text.

The corpus is a pure function of a :class:`CorpusConfig`; only the standard library is used. Held-out items are
fixed first, each with a semantic key. Training documents are then drawn one after another, and a document that
would ask a held-out key is never drawn. :func:`check_disjoint` verifies this on the finished corpus, by key and
by normalised text.

Conventions:
    * a question document is ``"Question: {question}\\nAnswer: {answer}"``; the tokenizer puts ``<s>`` in front of
      every document and training puts ``</s>`` behind it;
    * some question documents chain two or three questions, separated by an empty line (few-shot prompts).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.demo.skills import SKILLS, Exercise, SemanticKey, draw_exercise
from agentic_compression.demo.world import (
    ATTRIBUTES,
    Person,
    biography,
    build_people,
    fact_choices,
    fact_question,
    story,
)

PROMPT_TEMPLATE = "Question: {question}\nAnswer:"
"""The prompt of every question; the answer follows after one blank."""


@dataclass(frozen=True)
class CorpusConfig:
    """What the corpus depends on.

    Attributes:
        seed: Seed of all draws.
        people: Number of inhabitants; facts = people x 5.
        documents: Number of training documents.
        multiple_choice_items: Held-out multiple-choice items.
        generation_items: Held-out generation items.
        validation_items: Further held-out items of either kind, for watching training; not shipped.
        heldout_documents: Held-out text documents.
        sample_documents: Training documents kept as calibration sample.
        share_biographies: Share of training documents that are biographies.
        share_stories: Share that are stories.
        share_facts: Share that ask about facts; the rest are exercises.
        share_recall: Share of the generation items that ask for a fact; the rest are exercises.
    """

    seed: int = 20240
    people: int = 600
    documents: int = 110_000
    multiple_choice_items: int = 600
    generation_items: int = 600
    validation_items: int = 150
    heldout_documents: int = 256
    sample_documents: int = 768
    share_biographies: float = 0.28
    share_stories: float = 0.06
    share_facts: float = 0.36
    share_recall: float = 0.4


@dataclass(frozen=True)
class Document:
    """One training document.

    Attributes:
        text: The text, without special tokens.
        keys: Semantic keys of the questions it asks; empty for statements.
    """

    text: str
    keys: tuple[SemanticKey, ...] = ()


@dataclass(frozen=True)
class ChoiceItem:
    """One multiple-choice item; ``answer`` indexes ``choices``."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    key: SemanticKey


@dataclass(frozen=True)
class GenerationItem:
    """One item whose answer is generated and compared exactly."""

    id: str
    question: str
    answer: str
    key: SemanticKey


@dataclass(frozen=True)
class HeldOut:
    """All held-out items: the shipped tasks and the items that only watch training."""

    choice: tuple[ChoiceItem, ...]
    generation: tuple[GenerationItem, ...]
    choice_validation: tuple[ChoiceItem, ...]
    generation_validation: tuple[GenerationItem, ...]

    def keys(self) -> frozenset[SemanticKey]:
        """Returns the semantic keys of all held-out items."""
        groups = (self.choice, self.generation, self.choice_validation, self.generation_validation)
        return frozenset(item.key for group in groups for item in group)

    def questions(self) -> frozenset[str]:
        """Returns the normalised questions of all held-out items."""
        groups = (self.choice, self.generation, self.choice_validation, self.generation_validation)
        return frozenset(normalise_text(item.question) for group in groups for item in group)


def normalise_text(text: str) -> str:
    """Lowercases, drops punctuation other than arithmetic signs, and squeezes blanks."""
    return " ".join(re.sub(r"[^a-z0-9+\-]+", " ", text.lower()).split())


def question_document(pairs: Iterable[tuple[str, str]]) -> str:
    """Joins questions and answers into one document in the prompt format."""
    return "\n\n".join(f"{PROMPT_TEMPLATE.format(question=q)} {a}" for q, a in pairs)


class Corpus:
    """The corpus of one configuration.

    Attributes:
        config: What it was built from.
        people: The inhabitants.
        held_out: The held-out items.
    """

    def __init__(self, config: CorpusConfig | None = None) -> None:
        """Draws the world and the held-out items; training documents are drawn when iterated.

        Args:
            config: What to build; the shipped configuration if omitted.
        """
        self.config = config or CorpusConfig()
        self.people = build_people(self.random_stream("people"), self.config.people)
        facts = self._draw_held_out_facts()
        count = self.config.multiple_choice_items + self.config.validation_items
        choice = self._draw_choice_items(facts[:count])
        generation = self._draw_generation_items(facts[count:])
        n_choice, n_generation = self.config.multiple_choice_items, self.config.generation_items
        self.held_out = HeldOut(
            choice[:n_choice], generation[:n_generation], choice[n_choice:], generation[n_generation:]
        )
        self._held_out_keys = self.held_out.keys()
        self._askable = [
            (person, index)
            for person in self.people
            for index in range(len(ATTRIBUTES))
            if fact_key(person, index) not in self._held_out_keys
        ]

    def random_stream(self, purpose: str) -> random.Random:
        """Returns an independent stream for one purpose (string seeds hash with SHA-512, stable everywhere)."""
        return random.Random(f"{self.config.seed}/{purpose}")

    def _draw_held_out_facts(self) -> list[tuple[Person, int]]:
        """Draws facts that are never asked in training, at most two per person; their biographies state them."""
        rng = self.random_stream("choice items")
        facts = [(p, i) for p in self.people for i in rng.sample(range(len(ATTRIBUTES)), 2)]
        config = self.config
        needed = config.multiple_choice_items + config.validation_items + self._recall_count()
        if needed > len(facts):
            raise ValueError(f"{needed} held-out facts need more than {len(self.people)} people")
        rng.shuffle(facts)
        return facts[:needed]

    def _recall_count(self) -> int:
        """How many generation items, shipped or for validation, ask for a fact."""
        return round(self.config.share_recall * (self.config.generation_items + self.config.validation_items))

    def _draw_choice_items(self, facts: list[tuple[Person, int]]) -> tuple[ChoiceItem, ...]:
        """Turns facts into multiple-choice items with balanced gold positions."""
        rng = self.random_stream("choice wording")
        golds = [number % 4 for number in range(len(facts))]
        rng.shuffle(golds)
        items = []
        for number, ((person, index), gold) in enumerate(zip(facts, golds, strict=True)):
            question, _ = fact_question(rng, person, index)
            choices = fact_choices(rng, self.people, person, index, gold)
            items.append(ChoiceItem(f"mc-{number:04d}", question, tuple(choices), gold, fact_key(person, index)))
        return tuple(items)

    def _draw_generation_items(self, facts: list[tuple[Person, int]]) -> tuple[GenerationItem, ...]:
        """Turns facts into recall items and adds exercises with distinct keys, in random order."""
        rng = self.random_stream("generation items")
        count = self.config.generation_items + self.config.validation_items
        drawn: dict[SemanticKey, Exercise] = {}
        for person, index in facts:
            key = fact_key(person, index)
            drawn[key] = Exercise(*fact_question(rng, person, index), key)
        while len(drawn) < count:
            exercise = draw_exercise(rng)
            drawn.setdefault(exercise.key, exercise)
        exercises = list(drawn.values())
        rng.shuffle(exercises)
        return tuple(
            GenerationItem(f"gen-{number:04d}", exercise.question, exercise.answer, exercise.key)
            for number, exercise in enumerate(exercises)
        )

    def training_documents(self) -> Iterator[Document]:
        """Draws the training documents in training order.

        Yields:
            ``config.documents`` documents; a shorter run sees a prefix of a longer one.
        """
        rng = self.random_stream("training")
        for _ in range(self.config.documents):
            yield self._draw_document(rng)

    def _draw_document(self, rng: random.Random) -> Document:
        """Draws one training document of a random kind."""
        config = self.config
        kinds = ("biography", "story", "facts", "exercises")
        shares = (config.share_biographies, config.share_stories, config.share_facts)
        kind = rng.choices(kinds, (*shares, 1.0 - sum(shares)))[0]
        if kind == "biography":
            return Document(biography(rng, rng.choice(self.people)))
        if kind == "story":
            return Document(story(rng, self.people))
        length = 1 if rng.random() < 0.92 else rng.randint(2, 3)
        pairs, keys = [], []
        for _ in range(length):
            if kind == "facts":
                person, index = rng.choice(self._askable)
                pairs.append(fact_question(rng, person, index))
                keys.append(fact_key(person, index))
            else:
                exercise = self._draw_training_exercise(rng)
                pairs.append((exercise.question, exercise.answer))
                keys.append(exercise.key)
        return Document(question_document(pairs), tuple(keys))

    def _draw_training_exercise(self, rng: random.Random) -> Exercise:
        """Draws exercises until one is not held out."""
        while True:
            exercise = draw_exercise(rng)
            if exercise.key not in self._held_out_keys:
                return exercise

    def heldout_text(self, training_texts: frozenset[str]) -> list[str]:
        """Draws documents like the training ones that do not occur among them.

        Args:
            training_texts: Normalised texts of all training documents.

        Returns:
            ``config.heldout_documents`` distinct documents.
        """
        rng = self.random_stream("held-out text")
        drawn: dict[str, str] = {}
        while len(drawn) < self.config.heldout_documents:
            document = self._draw_document(rng)
            normalised = normalise_text(document.text)
            if normalised not in training_texts:
                drawn.setdefault(normalised, document.text)
        return list(drawn.values())


def fact_key(person: Person, attribute_index: int) -> SemanticKey:
    """Returns the semantic key of a fact."""
    return ("fact", person.name, ATTRIBUTES[attribute_index].name)


def check_disjoint(documents: Iterable[Document], held_out: HeldOut) -> int:
    """Verifies that no training document asks a held-out item.

    Args:
        documents: Training documents.
        held_out: The held-out items.

    Returns:
        How many questions the training documents ask.

    Raises:
        AssertionError: If a training question has a held-out key or, normalised, a held-out wording.
    """
    keys, questions = held_out.keys(), held_out.questions()
    asked = 0
    for document in documents:
        for key in document.keys:
            if key in keys:
                raise AssertionError(f"training asks held-out key {key}")
        for question in re.findall(r"Question: (.*)\n", document.text):
            asked += 1
            if normalise_text(question) in questions:
                raise AssertionError(f"training asks held-out question {question!r}")
    return asked


def write_package_data(corpus: Corpus, documents: list[Document], folder: Path) -> None:
    """Writes the JSON-lines files that ship with the package.

    Args:
        corpus: The corpus.
        documents: Its training documents.
        folder: Where the four files go; made if missing.
    """
    training_texts = frozenset(normalise_text(d.text) for d in documents)
    sample = corpus.random_stream("sample").sample(documents, min(corpus.config.sample_documents, len(documents)))
    tables: dict[str, list[dict[str, Any]]] = {
        "demo_mc": [
            {"id": i.id, "question": i.question, "choices": list(i.choices), "answer": i.answer}
            for i in corpus.held_out.choice
        ],
        "demo_gen": [{"id": i.id, "question": i.question, "answer": i.answer} for i in corpus.held_out.generation],
        "heldout_text": [
            {"id": f"text-{n:04d}", "text": text} for n, text in enumerate(corpus.heldout_text(training_texts))
        ],
        "train_sample": [{"id": f"train-{n:04d}", "text": d.text} for n, d in enumerate(sample)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


__all__ = [
    "PROMPT_TEMPLATE",
    "SKILLS",
    "ChoiceItem",
    "Corpus",
    "CorpusConfig",
    "Document",
    "GenerationItem",
    "HeldOut",
    "check_disjoint",
    "fact_key",
    "normalise_text",
    "question_document",
    "write_package_data",
]
