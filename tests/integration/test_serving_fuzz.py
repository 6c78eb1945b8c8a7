"""Whatever is sent, the server answers below 500, in its one envelope, and goes on answering."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.serving_servers import PATIENCE_S, Running

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["dense", "gguf", "user", "text", "base64", "\ud800", "\x00", "a" * 3000]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "model",
    "messages",
    "prompt",
    "input",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "truncation",
    "encoding_format",
    "echo",
    "tools",
    "user",
    "metadata",
    "best_of",
]
PATHS = st.characters(exclude_categories=("Cc", "Cs"))
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "dense", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"model": "dense", "prompt": "hi", "max_tokens": 2},
    "/v1/embeddings": {"model": "dense", "input": "hi"},
}


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    assert response.headers["x-request-id"]
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["request_id"] == response.headers["x-request-id"]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ROUTES), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), st.booleans())
def test_bodies_with_wrong_fields(server: Running, route: str, changes: dict[str, Any], only: bool) -> None:
    """A valid body with up to three fields replaced by anything."""
    body = {} if only else VALID[route]
    text = json.dumps({**body, **changes}).encode()
    check(server.post(route, content=text, headers={"content-type": "application/json"}))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    st.one_of(
        st.sampled_from([*ROUTES, "/v1/models", "/health", "/metrics", "/openapi.json"]), st.text(PATHS, max_size=12)
    ),
    st.binary(max_size=60),
    st.sampled_from(["application/json", "text/plain", "", "application/json; charset=utf-7"]),
)
def test_any_method_path_and_bytes(server: Running, method: str, path: str, body: bytes, kind: str) -> None:
    url = httpx.URL(server.url).copy_with(path="/" + quote(path.lstrip("/"), safe="/"))
    response = httpx.request(method, url, content=body, headers={"content-type": kind}, timeout=PATIENCE_S)
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and method != "HEAD":
        assert set(response.json()) == {"error"}


def test_the_openapi_document_describes_the_envelope(server: Running) -> None:
    document = server.get("/openapi.json").json()
    for route in ROUTES:
        responses = document["paths"][route]["post"]["responses"]
        for status in ("400", "404", "413", "422", "429", "503"):
            schema = responses[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}


def test_the_server_still_answers(server: Running) -> None:
    for route, body in VALID.items():
        assert server.post(route, json=body).status_code == 200
    loaded = server.pool.models["dense"].loaded
    assert loaded is not None
    server.wait_until(lambda: loaded.users == 0 and loaded.engine.requests == 0)
