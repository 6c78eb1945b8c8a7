"""Loads that fail are held off for a growing while, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.errors import ModelError
from agentic_compression.serving.backoff import Backoff
from agentic_compression.serving.engine import LoadMemoryError
from agentic_compression.serving.errors import RequestError
from agentic_compression.serving.sources import Target

ONE, TWO = Target(Path("/one"), "1"), Target(Path("/two"), "2")


def test_pauses_grow_to_a_minute_and_end() -> None:
    now = 100.0
    backoff = Backoff(lambda: now)
    backoff.check()
    pauses = []
    for _ in range(9):
        backoff.failed(ONE, ModelError("no weights in /secret/folder"))
        pauses.append(backoff.wait_s)
        with pytest.raises(RequestError) as caught:
            backoff.check()
        now += pauses[-1] - 0.5
        assert backoff.wait_s == pytest.approx(0.5)
        now += 0.5
        backoff.check()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert caught.value.status == 503
    assert caught.value.code == "model_unavailable"
    assert caught.value.headers == {"Retry-After": "60"}
    assert "/secret" not in str(caught.value)


def test_the_problem_is_remembered_and_another_version_begins_anew() -> None:
    backoff = Backoff(lambda: 0.0)
    for _ in range(3):
        backoff.failed(ONE, LoadMemoryError("too large"))
    with pytest.raises(RequestError, match="does not fit") as caught:
        backoff.check()
    assert (caught.value.code, caught.value.headers["Retry-After"]) == ("out_of_memory", "4")
    backoff.failed(TWO, LoadMemoryError("too large"))
    assert (backoff.failures, backoff.wait_s) == (1, 1)
    backoff.reset()
    backoff.check()


def test_what_nobody_expected_is_not_told() -> None:
    backoff = Backoff(lambda: 0.0)
    backoff.failed(None, KeyError("secret"))
    with pytest.raises(RequestError) as caught:
        backoff.check()
    assert (caught.value.status, caught.value.code) == (503, "model_unavailable")
    assert "secret" not in str(caught.value)
