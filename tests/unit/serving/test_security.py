"""Keys, rates, origins, risks, and the leak heuristic."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.serving.gate import route_label
from agentic_compression.serving.memory_watch import looks_like_a_leak
from agentic_compression.serving.security import ApiKeys, RateLimit, read_origins
from agentic_compression.serving.summary import list_risks
from agentic_compression.settings import Settings

KEY = "0123456789abcdef"


def settings_with(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def test_keys_are_known_in_clear_and_as_digests() -> None:
    digest = hashlib.sha256(b"another key of mine").hexdigest()
    keys = ApiKeys(f" {KEY} , sha256:{digest}")
    assert len(keys) == 2
    callers = {keys.caller(f"Bearer {KEY}"), keys.caller("bearer another key of mine")}
    assert len(callers) == 2
    assert None not in callers
    for header in (None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer sha256:{digest}", "Bearer ", "Bearer é"):
        assert keys.caller(header) is None
    assert KEY not in str(vars(keys))


def test_a_short_key_is_refused_without_printing_it() -> None:
    with pytest.raises(ConfigurationError, match="16 characters") as caught:
        ApiKeys("hunter2")
    assert "hunter2" not in str(caught.value)


@given(st.lists(st.floats(0, 30), max_size=120), st.integers(1, 60))
def test_no_minute_has_more_than_twice_the_rate(gaps: list[float], rate: int) -> None:
    """A full bucket and a minute of refilling: what a token bucket allows at most."""
    now = 0.0
    limit = RateLimit(rate, lambda: now)
    allowed: list[float] = []
    for gap in gaps:
        now += gap
        wait = limit.wait_s("one")
        if wait == 0:
            allowed.append(now)
        else:
            assert 0 < wait <= 60 / rate
    for begin in allowed:
        assert sum(begin <= moment < begin + 60 for moment in allowed) <= 2 * rate


def test_callers_have_buckets_of_their_own_and_waiting_helps() -> None:
    now = 0.0
    limit = RateLimit(2, lambda: now)
    assert [limit.wait_s("a"), limit.wait_s("a")] == [0, 0]
    assert limit.wait_s("a") == pytest.approx(30)
    assert limit.wait_s("b") == 0
    now = 30.1
    assert limit.wait_s("a") == 0
    assert RateLimit(0).wait_s("a") == 0


def test_credentials_never_go_with_any_origin() -> None:
    assert read_origins("https://a.org, *") == (["*"], False)
    assert read_origins("https://a.org,http://b:3000") == (["https://a.org", "http://b:3000"], True)
    assert read_origins("") == ([], False)
    for bad in ("a.org", "https://*.org", "https://a.org/path", "null"):
        with pytest.raises(ConfigurationError):
            read_origins(bad)


def test_risks_are_named() -> None:
    assert list_risks("127.0.0.1", settings_with()) == []
    assert list_risks("::1", settings_with()) == []
    risks = " ".join(list_risks("0.0.0.0", settings_with(ACF_SERVE_CORS_ORIGINS="*")))
    for word in ("ACF_SERVE_API_KEYS", "rate limit", "TLS", "any web page"):
        assert word in risks
    safe = settings_with(ACF_SERVE_API_KEYS=KEY, ACF_SERVE_REQUESTS_PER_MINUTE=5)
    assert [risk for risk in list_risks("10.0.0.1", safe) if "TLS" not in risk] == []


@given(st.text())
def test_labels_cannot_be_made_up(path: str) -> None:
    assert route_label(f"/x{path}") == "other"
    assert route_label(f"/v1/models/{path}") == "/v1/models/{id}"


def test_a_leak_is_steady_growth() -> None:
    base = 400_000_000
    assert looks_like_a_leak([base + step * 10_000_000 for step in range(30)])
    assert not looks_like_a_leak([base] * 30)
    assert not looks_like_a_leak([base + step * 10_000_000 for step in range(10)]), "too few samples"
    assert not looks_like_a_leak([base + min(step, 8) * 20_000_000 for step in range(30)]), "it stopped growing"
    assert not looks_like_a_leak([base + (step % 2) * 200_000_000 for step in range(30)]), "it goes up and down"
    assert not looks_like_a_leak([base + step * 100_000 for step in range(30)]), "it is small"
