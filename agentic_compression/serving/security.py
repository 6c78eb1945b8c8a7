"""Who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from agentic_compression.errors import ConfigurationError

__all__ = ["ApiKeys", "RateLimit", "address_group", "read_origins", "read_proxies"]

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SHORTEST_KEY = 16
_MOST_CALLERS = 10_000


class ApiKeys:
    """The keys that are accepted, kept as SHA-256 digests.

    Args:
        text: keys separated by commas, each in clear or as ``sha256:<64 hexadecimal digits>``; none accepts everyone.

    Raises:
        ConfigurationError: when a key has fewer than 16 characters.
    """

    def __init__(self, text: str) -> None:
        self._digests: list[bytes] = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = _DIGEST.fullmatch(entry)
            if match is None and len(entry) < _SHORTEST_KEY:
                raise ConfigurationError(
                    f"a key in ACF_SERVE_API_KEYS must have {_SHORTEST_KEY} characters or more, got {len(entry)}; "
                    "make one: openssl rand -hex 24"
                )
            self._digests.append(bytes.fromhex(match[1]) if match else hashlib.sha256(entry.encode()).digest())

    def __len__(self) -> int:
        return len(self._digests)

    def caller(self, authorization: str | None) -> str | None:
        """A short name for the key in an ``Authorization: Bearer`` header; None when it is not accepted.

        Every known key is compared, each in constant time, so that the time tells nothing of them.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
        same = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:12] if scheme.lower() == "bearer" and any(same) else None


class RateLimit:
    """A token bucket for each caller: ``per_minute`` requests at once, refilled evenly.

    Args:
        per_minute: 0 for no limit.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str) -> float:
        """Take a request from the caller's bucket; 0, or seconds until there is one."""
        wait = self.look(caller)
        if self.per_minute and wait == 0:
            left, then = self._buckets[caller]
            self._buckets[caller] = (left - 1, then)
        return wait

    def look(self, caller: str) -> float:
        """Take nothing; 0 when there is a request in the caller's bucket, or seconds until there is one."""
        if not self.per_minute:
            return 0.0
        now, rate = self._clock(), self.per_minute / 60
        left, then = self._buckets.pop(caller, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - then) * rate)
        self._buckets[caller] = (left, now)
        if len(self._buckets) > _MOST_CALLERS:  # the one that asked longest ago has the fullest bucket
            self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / rate


def address_group(host: str) -> str:
    """What one client has at least: its IPv4 address, or the /64 network of its IPv6 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv4Address):
        return host
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def read_proxies(text: str) -> list[str]:
    """Addresses and networks of proxies whose ``X-Forwarded-For`` is believed, as uvicorn takes them.

    Raises:
        ConfigurationError: when an entry is neither ``*`` nor an address nor a network.
    """
    proxies = [part.strip() for part in text.split(",") if part.strip()]
    for proxy in proxies:
        try:
            if proxy != "*":
                ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ConfigurationError(
                f"ACF_SERVE_TRUSTED_PROXIES has addresses such as 10.0.0.5 or 10.0.0.0/24, got {proxy!r}: {error}"
            ) from error
    return ["*"] if "*" in proxies else proxies


def read_origins(text: str) -> tuple[list[str], bool]:
    """Origins that browsers may ask from, and whether they may send credentials: never together with ``*``.

    Raises:
        ConfigurationError: when an entry is neither ``*`` nor an origin.
    """
    origins = [part.strip() for part in text.split(",") if part.strip()]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise ConfigurationError(
                f"ACF_SERVE_CORS_ORIGINS has origins such as https://example.org, or *, got {origin!r}"
            )
    return (["*"], False) if "*" in origins else (origins, bool(origins))
