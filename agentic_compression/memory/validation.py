"""What may be remembered. Files of memory can be edited, copied and imported, so each is read like a stranger's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import get_args

from pydantic import ValidationError

from agentic_compression.memory.workspace import MOST_FILE_BYTES
from agentic_compression.pareto import NAMES
from agentic_compression.records import EpisodeStatus, Experience
from agentic_compression.records.study import STUDY_NAME

__all__ = ["COSTS", "LONGEST", "clean_text", "moment", "problem_with", "read_experience"]

COSTS = NAMES[1:]
"""The objectives that an experience holds in proportion to its baseline."""

LONGEST = {
    "model": 512,
    "dataset": 512,
    "family": 128,
    "architecture": 128,
    "device": 256,
    "objective": 4000,
    "error": 2000,
    "task": 256,
}
"""Characters of the texts that come from outside."""

_LONGEST_VALUE = 256
_MOST_TASKS = 256
_STATUSES = frozenset(get_args(EpisodeStatus))
_RATIO = (1e-4, 1e4)
_MOST = {"parameters": 1e14, "items": 1e12, "kl": 1e3}
_DIGEST = re.compile(r"[A-Za-z0-9_-]{0,64}")
# Control characters, marks that turn the direction of writing, and halves of characters.
_TURNED = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_HIDDEN = re.compile(f"[\x00-\x1f{_TURNED}]")
_HIDDEN_IN_PROSE = re.compile(f"[\x00-\x08\x0b-\x1f{_TURNED}]")


def read_experience(content: bytes) -> Experience:
    """The experience that a file or a line holds.

    Raises:
        ValueError: when it is none or cannot be true, with the reason in one line.
    """
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"it has more than {MOST_FILE_BYTES:,} bytes")
    try:
        experience = Experience.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    problem = problem_with(experience)
    if problem is not None:
        raise ValueError(problem)
    return experience


def problem_with(experience: Experience) -> str | None:
    """The first thing about it that cannot be true, or None."""
    return next(_problems(experience), None)


def clean_text(text: str, longest: int, *, prose: bool = False) -> str:
    """A text without what ``problem_with`` refuses: hidden characters become spaces, the rest is cut off.

    Prose, which wishes and errors are, may have several lines.
    """
    return (_HIDDEN_IN_PROSE if prose else _HIDDEN).sub(" ", text)[:longest]


def moment(text: str) -> datetime | None:
    """A time in ISO 8601 with its zone (UTC where none is given); None when it is no such time."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _problems(experience: Experience) -> Iterator[str]:
    if not re.fullmatch(STUDY_NAME, experience.study):
        yield f"study must be a study's name, got {experience.study[:80]!r}"
    if not _DIGEST.fullmatch(experience.digest):
        yield f"digest must be letters and digits, at most 64, got {experience.digest[:80]!r}"
    if experience.status not in _STATUSES:
        yield f"status must be one of {', '.join(sorted(_STATUSES))}, got {experience.status[:80]!r}"
    if experience.at and moment(experience.at) is None:
        yield f"at must be a time in ISO 8601, got {experience.at[:80]!r}"
    if experience.strategy.is_baseline:
        yield "strategy must have a stage: what was not compressed is no experience of compression"
    yield from _problems_with_texts(experience)
    yield from _problems_with_numbers(experience)


def _problems_with_texts(experience: Experience) -> Iterator[str]:
    texts = {name: getattr(experience, name) for name in LONGEST if name != "task"}
    for name, text in texts.items():
        if len(text) > LONGEST[name]:
            yield f"{name} has {len(text):,} characters, at most {LONGEST[name]:,} are kept"
    if len(experience.tasks) > _MOST_TASKS or any(len(task) > LONGEST["task"] for task in experience.tasks):
        yield f"tasks may be {_MOST_TASKS} names of {LONGEST['task']} characters"
    values = [value for stage in experience.strategy.stages for value in stage.parameters.values()]
    written = [value for value in values if isinstance(value, str)]
    if any(len(value) > _LONGEST_VALUE for value in written) or len(experience.strategy.name or "") > _LONGEST_VALUE:
        yield f"a strategy's values and name have at most {_LONGEST_VALUE} characters"
    if not all(math.isfinite(value) for value in values if isinstance(value, float)):
        yield "a strategy's values must be finite"
    prose = texts.pop("objective") + texts.pop("error")
    names = "".join((*texts.values(), *experience.tasks, *written, experience.strategy.name or ""))
    if _HIDDEN.search(names) or _HIDDEN_IN_PROSE.search(prose):
        yield "a text holds control characters"


def _problems_with_numbers(experience: Experience) -> Iterator[str]:
    for name in ("accuracy", "baseline_accuracy"):
        value = getattr(experience, name)
        if value is not None and not 0 <= value <= 1:
            yield f"{name} must be between 0 and 1, got {value}"
    for name, most in _MOST.items():
        value = getattr(experience, name)
        if value is not None and not 0 <= value <= most:
            yield f"{name} must be between 0 and {most:g}, got {value}"
    for name, ratio in experience.ratios.items():
        if name not in COSTS:
            yield f"ratios may name {', '.join(COSTS)}, got {name[:80]!r}"
        elif not _RATIO[0] <= ratio <= _RATIO[1]:
            yield f"the ratio of {name} must be between {_RATIO[0]:g} and {_RATIO[1]:g}, got {ratio}"
    if experience.status != "succeeded" and (experience.accuracy is not None or experience.ratios):
        yield f"only what succeeded has an accuracy and ratios, got them with status {experience.status}"
