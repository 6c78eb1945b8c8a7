"""The OpenAPI document is kept: requests made from it get the answers that it describes, and none of 500 or above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.serving_servers import PATIENCE_S, Running

if TYPE_CHECKING:
    from schemathesis import Case

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = {
    "POST /v1/chat/completions": 60,
    "POST /v1/completions": 50,
    "POST /v1/embeddings": 30,
    "GET /v1/models/{model}": 10,
    "GET /v1/models": 3,
    "GET /health": 3,
    "GET /health/detailed": 3,
    "GET /health/memory": 3,
    "GET /metrics": 3,
}


@pytest.fixture(scope="module")
def operations(server: Running) -> dict[str, Any]:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {found.ok().label: found.ok() for found in document.get_all_operations()}


def test_every_route_is_asked(operations: dict[str, Any]) -> None:
    assert set(operations) == set(EXAMPLES)


@pytest.mark.parametrize("label", EXAMPLES)
def test_answers_are_those_of_the_document(label: str, operations: dict[str, Any], server: Running) -> None:
    """Half of the requests keep to the document and half do not; most name a served model."""
    kept, broken = (operations[label].as_strategy(generation_mode=mode) for mode in GenerationMode)
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES[label],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(kept, broken) if label.startswith("POST") else kept)
    def check(case: Case) -> None:
        if isinstance(case.body, dict):
            case.body = answerable(case.body)
        statuses.add(case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=PATIENCE_S).status_code)

    check()
    if label.startswith("POST"):
        assert {200, 422} <= statuses  # or what is checked is one kind of answer only


def answerable(body: dict[str, Any]) -> dict[str, Any]:
    """Of a served model and with a short answer, where the body is of the right form; or nearly all would be 404."""
    found = dict(body)
    if isinstance(found.get("model"), str) and len(found["model"]) % 4:
        found["model"] = "dense"
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(found.get(name), int) and found[name] > 4:
            found[name] = 4
    return found
