"""Generated reasoning exercises: small sums, differences, sorting, reversing and looking up.

Every exercise carries a *semantic key* that names what is asked independently of its wording, so that the
corpus can keep held-out exercises out of training whatever template they use.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

SemanticKey = tuple[str, ...]
"""Names an exercise or a fact independently of its wording, e.g. ``("add", "38", "47")``."""

_ITEMS = (
    "rope", "lamp", "cup", "net", "oar", "map", "coin", "key", "bell", "hat",
    "book", "shell", "knife", "basket", "candle", "mirror", "anchor", "bottle", "blanket", "compass",
)  # fmt: skip
_GOODS = ("shells", "coins", "ropes", "crates", "nets", "lamps", "barrels", "boats")


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        question: The question text.
        answer: The answer text, without surrounding blanks.
        key: What is asked, independent of the wording.
    """

    question: str
    answer: str
    key: SemanticKey


def addition(rng: random.Random) -> Exercise:
    """Adds two two-digit numbers; the key ignores their order."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    goods = rng.choice(_GOODS)
    question = rng.choice(
        (
            f"What is {a} plus {b}?",
            f"How much is {a} + {b}?",
            f"There are {a} {goods} and {b} more come. How many {goods} are there?",
        )
    )
    low, high = sorted((a, b))
    return Exercise(question, str(a + b), ("add", str(low), str(high)))


def subtraction(rng: random.Random) -> Exercise:
    """Subtracts a two-digit number from a larger or equal one."""
    low, high = sorted((rng.randint(10, 99), rng.randint(10, 99)))
    goods = rng.choice(_GOODS)
    question = rng.choice(
        (
            f"What is {high} minus {low}?",
            f"How much is {high} - {low}?",
            f"There are {high} {goods} and {low} are sold. How many {goods} are left?",
        )
    )
    return Exercise(question, str(high - low), ("sub", str(high), str(low)))


def sorting(rng: random.Random) -> Exercise:
    """Sorts five digits, repetition allowed; the key is the digits as given."""
    digits = [str(rng.randrange(10)) for _ in range(5)]
    text = " ".join(digits)
    question = rng.choice((f"Sort the digits {text}.", f"Put {text} in order."))
    return Exercise(question, "".join(sorted(digits)), ("sort", *digits))


def reversal(rng: random.Random) -> Exercise:
    """Reverses a list of four distinct words."""
    words = rng.sample(_ITEMS, 4)
    text = " ".join(words)
    question = rng.choice((f"Reverse the list {text}.", f"Name these backwards: {text}."))
    return Exercise(question, " ".join(reversed(words)), ("reverse", *words))


def lookup(rng: random.Random) -> Exercise:
    """Finds the price of one of four priced things."""
    words = rng.sample(_ITEMS, 4)
    prices = [str(rng.randint(10, 99)) for _ in words]
    pick = rng.randrange(4)
    listing = ", ".join(f"{word} {price}" for word, price in zip(words, prices, strict=True))
    question = rng.choice(
        (f"Prices: {listing}. What does the {words[pick]} cost?", f"Given {listing}, how much is the {words[pick]}?")
    )
    pairs = [f"{w}={p}" for w, p in zip(words, prices, strict=True)]
    return Exercise(question, prices[pick], ("lookup", *pairs, words[pick]))


SKILLS: dict[str, tuple[Callable[[random.Random], Exercise], float]] = {
    "addition": (addition, 0.35),
    "subtraction": (subtraction, 0.27),
    "sorting": (sorting, 0.10),
    "reversal": (reversal, 0.14),
    "lookup": (lookup, 0.14),
}
"""Each skill with the share of exercises it gets (shares add up to 1)."""


def draw_exercise(rng: random.Random) -> Exercise:
    """Draws one exercise, the skill chosen by its share.

    Args:
        rng: Source of randomness.

    Returns:
        The exercise.
    """
    makers = [maker for maker, _ in SKILLS.values()]
    shares = [share for _, share in SKILLS.values()]
    return rng.choices(makers, shares)[0](rng)
