"""Addresses that count as one client, proxies that are believed, and what the summary says of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.serving.security import RateLimit, address_group, read_proxies
from agentic_compression.serving.summary import list_risks
from agentic_compression.settings import Settings

KEY = "0123456789abcdef"


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_who_has_one_ipv6_address_has_its_network(address: object, other: int) -> None:
    base = int(address) >> 64 << 64  # type: ignore[call-overload]
    if base >> 32 == 0xFFFF:
        return
    import ipaddress

    assert address_group(str(address)) == address_group(str(ipaddress.IPv6Address(base + other))) or base == 0
    assert address_group(str(address)) != address_group(str(ipaddress.IPv6Address((base + 2**64) % 2**128)))


def test_ipv4_addresses_stand_for_themselves_however_written() -> None:
    assert address_group("192.0.2.1") == address_group("::ffff:192.0.2.1") == "192.0.2.1"
    assert address_group("192.0.2.2") != address_group("192.0.2.1")
    assert len(address_group("x" * 1000)) == 64


def test_looking_takes_nothing() -> None:
    now = 0.0
    limit = RateLimit(2, lambda: now)
    for _ in range(9):
        assert limit.look("one") == 0
    assert limit.wait_s("one") == limit.wait_s("one") == 0
    assert limit.look("one") == limit.wait_s("one") == pytest.approx(30)
    now = 30.0
    assert limit.look("one") == 0
    assert limit.look("other") == 0
    assert RateLimit(0).look("one") == 0


def test_proxies_are_addresses_and_networks() -> None:
    assert read_proxies("") == []
    assert read_proxies(" 10.0.0.5, 10.1.0.0/16,::1 ") == ["10.0.0.5", "10.1.0.0/16", "::1"]
    assert read_proxies("10.0.0.5,*") == ["*"]
    for wrong in ("proxy.local", "10.0.0.5/8", "10.0.0.256"):
        with pytest.raises(ConfigurationError, match="ACF_SERVE_TRUSTED_PROXIES"):
            read_proxies(wrong)


@pytest.mark.parametrize(("proxies", "risky"), [("*", True), ("0.0.0.0/0", True), ("::/0", True), ("10.0.0.5", False)])
def test_trusting_everybody_is_a_risk(proxies: str, risky: bool) -> None:
    settings = Settings(_env_file=None, ACF_SERVE_TRUSTED_PROXIES=proxies)  # type: ignore[call-arg]
    assert any("X-Forwarded-For" in risk for risk in list_risks("127.0.0.1", settings)) == risky


def test_an_unnamed_proxy_and_unlimited_guesses_are_risks() -> None:
    def risks(**values: str) -> str:
        limited = {"ACF_SERVE_API_KEYS": KEY, "ACF_SERVE_REQUESTS_PER_MINUTE": "5", **values}
        return " ".join(list_risks("0.0.0.0", Settings(_env_file=None, **limited)))  # type: ignore[arg-type]

    assert "share one limit" in risks()
    assert "share one limit" not in risks(ACF_SERVE_TRUSTED_PROXIES="10.0.0.5")
    assert "guessed" in risks(ACF_SERVE_FAILURES_PER_MINUTE="0")
    assert "guessed" not in risks()
