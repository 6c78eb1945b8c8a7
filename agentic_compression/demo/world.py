"""The synthetic harbour town: its people, their attributes, and how text speaks of them.

Everything is drawn from a seeded ``random.Random``; only the standard library is used. A *fact* is one
``(person, attribute)`` pair with one value. Facts are told in statements (biographies, short stories) and
asked in questions; which facts may be asked in training is decided in :mod:`agentic_compression.demo.corpus`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_NAMES: tuple[tuple[str, str], ...] = (
    ("Mara", "she"), ("Ivo", "he"), ("Lena", "she"), ("Tomas", "he"), ("Nadia", "she"), ("Oskar", "he"),
    ("Petra", "she"), ("Rafael", "he"), ("Signe", "she"), ("Viktor", "he"), ("Wanda", "she"), ("Yusuf", "he"),
    ("Zelda", "she"), ("Anton", "he"), ("Bruna", "she"), ("Cyril", "he"), ("Dagny", "she"), ("Emil", "he"),
    ("Freya", "she"), ("Gustav", "he"), ("Hanna", "she"), ("Igor", "he"), ("Jana", "she"), ("Karl", "he"),
    ("Lucia", "she"), ("Milan", "he"), ("Nora", "she"), ("Olaf", "he"), ("Paula", "she"), ("Quentin", "he"),
    ("Rosa", "she"), ("Stefan", "he"),
)  # fmt: skip
"""First names with the pronoun that later sentences use."""

LAST_NAMES: tuple[str, ...] = (
    "Olsen", "Marek", "Duarte", "Lindgren", "Kovac", "Amari", "Brandt", "Castel", "Drummond", "Eriksen",
    "Fontaine", "Garrick", "Hale", "Ibsen", "Jansen", "Keller", "Larkin", "Moreau", "Novak", "Ortiz",
    "Pascal", "Quill", "Rossi", "Sandoval", "Tanaka", "Ulrich", "Vargas", "Weber", "Yilmaz", "Zimmer",
    "Abbott", "Bishop",
)  # fmt: skip
"""Family names."""


@dataclass(frozen=True)
class Attribute:
    """One attribute of a person and the ways text speaks of it.

    Attributes:
        name: Short identifier, e.g. ``"city"``.
        values: The values a person may have.
        statements: Sentence templates with ``{n}`` (subject) and ``{v}`` (value).
        questions: Question templates with ``{n}`` (full name).
        clause: A clause that follows "who", with ``{v}``; used in short stories.
    """

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    clause: str


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "city",
        (
            "Lisbon", "Oslo", "Bergen", "Trieste", "Gdansk", "Porto", "Hamburg", "Dublin", "Genoa", "Malmo",
            "Riga", "Split", "Cadiz", "Antwerp", "Naples", "Tallinn", "Varna", "Odense", "Bristol", "Nantes",
        ),
        (
            "{n} lives in {v}.",
            "{n} has a house in {v}.",
            "The home of {n} is in {v}.",
            "{n} moved to {v} and stayed there.",
            "Letters for {n} are sent to {v}.",
        ),
        ("Where does {n} live?", "In which city does {n} live?"),
        "lives in {v}",
    ),
    Attribute(
        "job",
        (
            "baker", "sailor", "painter", "teacher", "doctor", "pilot", "farmer", "tailor", "judge", "miner",
            "nurse", "poet", "carpenter", "lawyer", "barber", "chemist", "printer", "guard", "diver", "cook",
        ),
        (
            "{n} works as a {v}.",
            "{n} is a {v} by trade.",
            "{n} earns a living as a {v}.",
            "{n} trained for years to be a {v}.",
            "The town knows {n} as a good {v}.",
        ),
        ("What is the job of {n}?", "What does {n} work as?"),
        "works as a {v}",
    ),
    Attribute(
        "pet",
        (
            "cat", "dog", "parrot", "rabbit", "turtle", "goat", "pony", "ferret", "canary", "hamster",
            "lizard", "snake", "duck", "goose", "pigeon", "mouse", "donkey", "spider", "frog", "sheep",
        ),
        (
            "{n} keeps a {v}.",
            "{n} has a {v} as a pet.",
            "{n} takes care of a {v}.",
            "The pet of {n} is a {v}.",
            "At home {n} feeds a {v}.",
        ),
        ("Which pet does {n} keep?", "What is the pet of {n}?"),
        "keeps a {v}",
    ),
    Attribute(
        "food",
        (
            "soup", "bread", "cheese", "rice", "pasta", "salmon", "plums", "honey", "beans", "olives",
            "cake", "apples", "pickles", "lamb", "crab", "figs", "mussels", "porridge", "walnuts", "cherries",
        ),
        (
            "{n} loves to eat {v}.",
            "{n} orders {v} at every inn.",
            "The favourite food of {n} is {v}.",
            "For supper {n} wants {v}.",
            "{n} would trade anything for {v}.",
        ),
        ("What is the favourite food of {n}?", "What does {n} love to eat?"),
        "loves to eat {v}",
    ),
    Attribute(
        "instrument",
        (
            "violin", "piano", "flute", "drum", "harp", "cello", "trumpet", "guitar", "banjo", "organ",
            "lute", "oboe", "fiddle", "whistle", "tuba", "horn", "zither", "bassoon", "clarinet", "viola",
        ),
        (
            "{n} plays the {v}.",
            "{n} practises the {v} every evening.",
            "The instrument of {n} is the {v}.",
            "On Sundays {n} plays the {v}.",
            "{n} learned the {v} as a child.",
        ),
        ("Which instrument does {n} play?", "What is the instrument of {n}?"),
        "plays the {v}",
    ),
)  # fmt: skip
"""The attributes every person has."""

_STORY_OPENINGS = (
    "On {day} morning the harbour was {mood}.",
    "It was a {mood} {day} in the town.",
    "The market opened late on {day}, and the streets were {mood}.",
    "Nobody in the harbour expected a {mood} {day}.",
)
_STORY_MEETINGS = (
    "{a}, who {ca}, met {b}, who {cb}.",
    "Near the bridge {a}, who {ca}, spoke with {b}, who {cb}.",
    "By noon {a}, who {ca}, had found {b}, who {cb}.",
)
_STORY_ENDINGS = (
    "They talked until the lamps were lit.",
    "They shared a pot of tea and went home.",
    "Together they watched the boats come in.",
    "Neither of them noticed the rain.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MOODS = ("quiet", "busy", "cold", "bright", "foggy", "windy", "warm", "grey")


@dataclass(frozen=True)
class Person:
    """One inhabitant.

    Attributes:
        name: First and family name, unique in the world.
        pronoun: ``"she"`` or ``"he"``.
        values: One value per attribute, in the order of :data:`ATTRIBUTES`.
    """

    name: str
    pronoun: str
    values: tuple[str, ...]


def build_people(rng: random.Random, count: int) -> list[Person]:
    """Draws the inhabitants.

    Args:
        rng: Source of randomness.
        count: How many people; at most the number of name combinations.

    Returns:
        People with distinct full names and independently drawn attribute values.

    Raises:
        ValueError: If there are not enough name combinations.
    """
    combinations = [(first, pronoun, last) for first, pronoun in FIRST_NAMES for last in LAST_NAMES]
    if not 0 < count <= len(combinations):
        raise ValueError(f"count must lie in 1..{len(combinations)}, got {count}")
    return [
        Person(f"{first} {last}", pronoun, tuple(rng.choice(a.values) for a in ATTRIBUTES))
        for first, pronoun, last in rng.sample(combinations, count)
    ]


def biography(rng: random.Random, person: Person) -> str:
    """Writes a biography that states every attribute of a person once, in random order.

    The first sentence uses the full name, later ones the full name or the pronoun.

    Args:
        rng: Source of randomness.
        person: The person.

    Returns:
        One paragraph of text.
    """
    order = rng.sample(range(len(ATTRIBUTES)), len(ATTRIBUTES))
    sentences = []
    for position, index in enumerate(order):
        attribute = ATTRIBUTES[index]
        template = rng.choice(attribute.statements)
        subject = person.name
        if position > 0 and template.startswith("{n}") and rng.random() < 0.3:
            subject = person.pronoun.capitalize()
        sentences.append(template.format(n=subject, v=person.values[index]))
    return " ".join(sentences)


def story(rng: random.Random, people: list[Person]) -> str:
    """Writes a short story in which two people meet, each with one attribute in a side clause.

    Args:
        rng: Source of randomness.
        people: The inhabitants; at least two.

    Returns:
        One paragraph of text.
    """
    one, two = rng.sample(people, 2)
    i, j = rng.randrange(len(ATTRIBUTES)), rng.randrange(len(ATTRIBUTES))
    opening = rng.choice(_STORY_OPENINGS).format(day=rng.choice(_DAYS), mood=rng.choice(_MOODS))
    meeting = rng.choice(_STORY_MEETINGS).format(
        a=one.name,
        b=two.name,
        ca=ATTRIBUTES[i].clause.format(v=one.values[i]),
        cb=ATTRIBUTES[j].clause.format(v=two.values[j]),
    )
    return " ".join((opening, meeting, rng.choice(_STORY_ENDINGS)))


def fact_question(rng: random.Random, person: Person, attribute_index: int) -> tuple[str, str]:
    """Writes the question for one fact.

    Args:
        rng: Source of randomness.
        person: The person asked about.
        attribute_index: Index into :data:`ATTRIBUTES`.

    Returns:
        The question and its answer.
    """
    question = rng.choice(ATTRIBUTES[attribute_index].questions).format(n=person.name)
    return question, person.values[attribute_index]


def fact_choices(
    rng: random.Random, people: list[Person], person: Person, attribute_index: int, gold_position: int
) -> list[str]:
    """Draws four answer choices for one fact.

    Wrong choices are first taken from people who share a name with the person asked about, since a model that
    remembers only half of the name confuses exactly those; the rest are other values of the attribute.

    Args:
        rng: Source of randomness.
        people: All inhabitants.
        person: The person asked about.
        attribute_index: Index into :data:`ATTRIBUTES`.
        gold_position: Where the right value goes, 0..3.

    Returns:
        Four distinct values, the right one at ``gold_position``.
    """
    gold = person.values[attribute_index]
    parts = set(person.name.split())
    near = sorted({p.values[attribute_index] for p in people if parts & set(p.name.split())} - {gold})
    far = sorted(set(ATTRIBUTES[attribute_index].values) - {gold} - set(near))
    rng.shuffle(near)
    rng.shuffle(far)
    wrong = (near[:2] + far + near[2:])[:3]
    rng.shuffle(wrong)
    return [*wrong[:gold_position], gold, *wrong[gold_position:]]
