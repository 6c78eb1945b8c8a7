"""Generated exercises whose answer is made from the question: sorting digits and reversing lists.

Every exercise carries a *semantic key* that names what is asked independently of its wording, so that the
corpus can keep held-out exercises out of training whatever template they use.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

SemanticKey = tuple[str, ...]
"""Names an exercise or a fact independently of its wording, e.g. ``("reverse", "rope", "lamp", "cup", "net")``."""

_ITEMS = (
    "rope", "lamp", "cup", "net", "oar", "map", "coin", "key", "bell", "hat",
    "book", "shell", "knife", "basket", "candle", "mirror", "anchor", "bottle", "blanket", "compass",
)  # fmt: skip


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


SKILLS: dict[str, tuple[Callable[[random.Random], Exercise], float]] = {
    "sorting": (sorting, 0.5),
    "reversal": (reversal, 0.5),
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
