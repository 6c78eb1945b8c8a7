"""What ``acf serve`` says when it starts: its configuration and its risks, never a secret."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.pool import PoolOptions
from agentic_compression.serving.security import ApiKeys, read_origins, read_proxies
from agentic_compression.serving.sources import Source
from agentic_compression.settings import Settings

__all__ = ["describe_server", "is_loopback", "list_risks"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def describe_server(
    address: str, sources: Mapping[str, Source], engine: EngineOptions, pool: PoolOptions, settings: Settings
) -> list[str]:
    """The configuration, a line each."""
    keys = len(_keys(settings))
    memory = "what is free" if pool.memory_bytes is None else f"{pool.memory_bytes / 1e9:g} GB"
    idle = f"after {pool.idle_s:g} s" if pool.idle_s else "never"
    limit = settings.serve_requests_per_minute
    proxies = ", ".join(read_proxies(settings.serve_trusted_proxies))
    return [
        f"address   {address}/v1",
        *(f"model     {name}  from {source.reference}" for name, source in sources.items()),
        f"engines   {_engine(engine)}{engine.device}, {engine.threads} threads, {engine.slots} slots, "
        f"{engine.queue} may wait; answers of {engine.max_new_tokens} tokens at most",
        f"memory    {pool.max_models} models at once, in {memory}; idle ones unload {idle}",
        f"access    {f'{keys} keys' if keys else 'no key'}, "
        f"{f'{limit} requests a minute' if limit else 'no rate limit'}, "
        f"bodies of {settings.serve_max_body_bytes} bytes at most",
        f"clients   told apart by {f'what {proxies} forward' if proxies else 'the address that connects'}",
    ]


def _engine(engine: EngineOptions) -> str:
    if engine.engine == "auto":
        return ""
    share = f" with {engine.gpu_share:.0%} of the GPU's memory each" if engine.engine == "vllm" else ""
    return f"{engine.engine}{share} on "


def list_risks(host: str, settings: Settings) -> list[str]:
    """What somebody should know before others reach this server."""
    risks = []
    if not is_loopback(host):
        if not len(_keys(settings)):
            risks.append(f"{host} is reached by others and no key is asked for; set ACF_SERVE_API_KEYS")
        if not settings.serve_requests_per_minute:
            risks.append("no rate limit; set ACF_SERVE_REQUESTS_PER_MINUTE")
        proxied = read_proxies(settings.serve_trusted_proxies)
        name_it = "" if proxied else ", named in ACF_SERVE_TRUSTED_PROXIES, or its clients share one limit"
        risks.append(f"connections are not encrypted; put a proxy with TLS in front{name_it}")
        if len(_keys(settings)) and not settings.serve_failures_per_minute:
            risks.append("keys may be guessed without limit; set ACF_SERVE_FAILURES_PER_MINUTE")
    if "*" in read_origins(settings.serve_cors_origins)[0]:
        risks.append("any web page may ask this server; name origins in ACF_SERVE_CORS_ORIGINS")
    proxies = read_proxies(settings.serve_trusted_proxies)
    if "*" in proxies or any(ipaddress.ip_network(proxy).prefixlen == 0 for proxy in proxies):
        risks.append(
            "every client may name its own address in X-Forwarded-For, and so escape limits or use up another's; "
            "name only your proxies in ACF_SERVE_TRUSTED_PROXIES"
        )
    return risks


def _keys(settings: Settings) -> ApiKeys:
    return ApiKeys(settings.serve_api_keys.get_secret_value() if settings.serve_api_keys else "")
