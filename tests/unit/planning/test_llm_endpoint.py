"""An endpoint against a real server: what it understands, what fails, how long it is waited for, how much is read."""

from __future__ import annotations

import gzip
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from agentic_compression.errors import ConfigurationError
from agentic_compression.planning.llm.endpoint import Endpoint, Limits
from agentic_compression.planning.llm.prices import cost_usd
from agentic_compression.planning.llm.retries import Failure, failure_of, pause
from agentic_compression.testing.language_model import Response, answer, scripted_model
from tests.unit.planning.llm_studies import KEY, endpoint

MESSAGES = [{"role": "user", "content": "JSON, please"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def _format(body: dict[str, Any]) -> str:
    return str(body.get("response_format", {}).get("type", "text"))


def _only(*modes: str) -> Any:
    """A server that takes these forms of answer and refuses others."""

    def script(body: dict[str, Any], number: int) -> Response:
        if _format(body) in modes:
            return answer("{}")
        return Response.error(400, f"response_format {_format(body)} is not supported")

    return script


@pytest.mark.parametrize(
    ("modes", "sent"),
    [
        (("json_schema", "json_object", "text"), ["json_schema"]),
        (("json_object", "text"), ["json_schema", "json_object"]),
        (("text",), ["json_schema", "json_object", "text"]),
    ],
)
def test_the_strongest_form_of_answer_that_a_server_takes_is_used_and_remembered(
    tmp_path: Path, modes: tuple[str, ...], sent: list[str]
) -> None:
    memory = tmp_path / "endpoints.json"
    with scripted_model(_only(*modes)) as server:
        asked = Endpoint(server.url, "scripted", KEY, Limits(), memory)
        answered = asked.ask(MESSAGES, SCHEMA)
        assert answered.reply is not None
        assert answered.reply.text == "{}"
        assert (answered.mode, answered.attempts) == (sent[-1], len(sent))
        assert [_format(body) for body in server.requests] == sent
        asked.remember()
        again = Endpoint(server.url, "scripted", KEY, Limits(), memory)
        assert again.ask(MESSAGES, SCHEMA).attempts == 1
        assert _format(server.requests[-1]) == sent[-1]
        other = Endpoint(server.url, "another", KEY, Limits(), memory)
        assert other.dialect.mode == "json_schema"
    assert KEY not in memory.read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "\x00"])
def test_a_damaged_memory_of_endpoints_is_passed_over(tmp_path: Path, content: str) -> None:
    memory = tmp_path / "endpoints.json"
    memory.write_text(content)
    asked = Endpoint("http://127.0.0.1:9/v1", "m", KEY, Limits(), memory)
    assert asked.dialect.mode == "json_schema"
    asked.demand_less()
    asked.remember()
    assert Endpoint("http://127.0.0.1:9/v1", "m", KEY, Limits(), memory).dialect.mode == "json_object"


def test_what_was_remembered_is_tried_anew_after_a_week(tmp_path: Path) -> None:
    memory = tmp_path / "endpoints.json"
    asked = Endpoint("http://127.0.0.1:9/v1", "m", KEY, Limits(), memory)
    asked.demand_less()
    asked.remember()
    held = json.loads(memory.read_text())
    for entry in held.values():
        entry["at"] -= 8 * 24 * 3600
    memory.write_text(json.dumps(held))
    assert Endpoint("http://127.0.0.1:9/v1", "m", KEY, Limits(), memory).dialect.mode == "json_schema"


def test_parameters_that_a_model_does_not_take_are_left_out_or_renamed() -> None:
    def script(body: dict[str, Any], number: int) -> Response:
        if "max_tokens" in body:
            return Response.error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return Response.error(400, "Unsupported value: 'temperature' does not support 0 with this model.")
        return answer("{}")

    with scripted_model(script) as server:
        answered = endpoint(server.url, max_tokens=77).ask(MESSAGES, SCHEMA)
        assert answered.reply is not None
        assert server.requests[-1]["max_completion_tokens"] == 77
        assert "temperature" not in server.requests[-1]
        assert _format(server.requests[-1]) == "json_schema"


def test_a_server_that_contradicts_itself_is_given_up_soon() -> None:
    def script(body: dict[str, Any], number: int) -> Response:
        return Response.error(400, "use max_tokens, not max_completion_tokens, or the other way round; temperature")

    with scripted_model(script) as server:
        assert endpoint(server.url).ask(MESSAGES, SCHEMA).reply is None
        assert len(server.requests) <= 7


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_passing_errors_are_tried_again(status: int) -> None:
    with scripted_model(lambda body, n: Response.error(status, "busy") if n < 2 else answer("{}")) as server:
        answered = endpoint(server.url).ask(MESSAGES, SCHEMA)
        assert answered.reply is not None
        assert answered.attempts == 3
        assert {_format(body) for body in server.requests} == {"json_schema"}  # the form is not to blame


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (Response.error(401, "Incorrect API key"), "401"),
        (Response.error(403, "no"), "403"),
        (Response.error(404, "no such model"), "404"),
        (Response.error(429, "You exceeded your current quota", code="insufficient_quota"), "quota"),
        (Response.error(400, "This model's maximum context length is 10 tokens"), "context length"),
        (Response(b"", 307, {"Location": "http://127.0.0.1:9/"}), "307"),
    ],
)
def test_lasting_errors_are_not_tried_again(response: Response, said: str) -> None:
    with scripted_model(lambda body, n: response) as server:
        answered = endpoint(server.url).ask(MESSAGES, SCHEMA)
        assert answered.reply is None
        assert said in answered.failure
        assert len(server.requests) == 1


def test_errors_that_stay_end_after_the_attempts_allowed() -> None:
    with scripted_model(lambda body, n: Response.error(500, "broken")) as server:
        answered = endpoint(server.url, attempts=3).ask(MESSAGES, SCHEMA)
        assert answered.reply is None
        assert answered.attempts == len(server.requests) == 3
        assert "500" in answered.failure
        assert "broken" in answered.failure


def test_retry_after_is_waited_for_and_capped() -> None:
    waits: list[float] = []
    limits = Limits(timeout_s=2, deadline_s=1000, longest_pause_s=30)
    answers = [
        Response.error(429, "slow down", Retry_After="7"),
        Response.error(429, "slow down", Retry_After="3600"),
        Response.error(503, "later", retry_after_ms="1500"),
        answer("{}"),
    ]
    with scripted_model(lambda body, n: answers[n]) as server:
        answered = Endpoint(server.url, "m", KEY, limits, sleep=waits.append).ask(MESSAGES, SCHEMA)
    assert answered.reply is not None
    assert 7 <= waits[0] < 7.5
    assert waits[1] == 30
    assert 1.5 <= waits[2] < 2


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    waits: list[float] = []
    with scripted_model(lambda body, n: Response.error(429, "slow down", Retry_After="20")) as server:
        asked = Endpoint(server.url, "m", KEY, Limits(deadline_s=5), sleep=waits.append)
        assert asked.ask(MESSAGES, SCHEMA).reply is None
        assert waits == []
        assert len(server.requests) == 1


def test_retry_after_may_be_a_date_and_nonsense_is_passed_over() -> None:
    def wait(value: str) -> float | None:
        with scripted_model(lambda body, n: Response.error(429, "x", Retry_After=value)) as server:
            asked = Endpoint(server.url, "m", KEY, Limits(attempts=1))
            outcome = asked._request(MESSAGES, SCHEMA, time.monotonic() + 5)
            assert isinstance(outcome, Failure)
            return outcome.wait_s

    soon = wait(format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True))
    assert soon is not None
    assert 15 < soon <= 20
    assert wait(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
    assert [wait(text) for text in ("soon", "-5", "1e99", "nan", "９")] == [None] * 5


def test_pauses_double_with_jitter_and_are_capped() -> None:
    failure = Failure("x", passing=True)
    means = [pause(failure, failed, 1000, 0.5) for failed in (1, 2, 3, 4)]
    assert means == [1.0, 2.0, 4.0, 8.0]
    assert pause(failure, 1, 1000, 0.0) == 0.5
    assert pause(failure, 20, 30, 0.9) == 30


def test_silence_is_a_time_out_and_is_tried_again() -> None:
    with scripted_model(lambda body, n: Response(wait_s=1.5) if n == 0 else answer("{}")) as server:
        answered = endpoint(server.url, timeout_s=0.3).ask(MESSAGES, SCHEMA)
        assert answered.reply is not None
        assert answered.attempts == 2


def test_a_response_that_comes_in_drops_does_not_hold_the_study_up() -> None:
    slow = Response(b'{"choices": []}' + b" " * 1000, drip_s=0.05)
    with scripted_model(lambda body, n: slow) as server:
        began = time.monotonic()
        answered = endpoint(server.url, timeout_s=0.4, attempts=1).ask(MESSAGES, SCHEMA)
        assert answered.reply is None
        assert "timed out" in answered.failure
        assert time.monotonic() - began < 3


def test_all_attempts_together_end_at_the_deadline() -> None:
    with scripted_model(lambda body, n: Response(wait_s=5)) as server:
        began = time.monotonic()
        answered = endpoint(server.url, timeout_s=1, deadline_s=1.5, attempts=50).ask(MESSAGES, SCHEMA)
        assert answered.reply is None
        assert time.monotonic() - began < 3


def test_no_server_and_a_dropped_connection_are_failures_in_words() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    refused = endpoint(f"http://127.0.0.1:{port}/v1", attempts=2).ask(MESSAGES, SCHEMA)
    assert refused.reply is None
    assert refused.attempts == 2
    assert "no connection" in refused.failure
    with scripted_model(lambda body, n: Response(drop=True) if n == 0 else answer("{}")) as server:
        assert endpoint(server.url).ask(MESSAGES, SCHEMA).attempts == 2


@pytest.mark.parametrize("status", [200, 400, 500])
def test_ten_megabytes_are_not_read(status: int) -> None:
    large = json.dumps({"choices": [], "error": {"message": "x" * 10_000_000}}).encode()
    with scripted_model(lambda body, n: Response(large, status)) as server:
        answered = endpoint(server.url, attempts=1).ask(MESSAGES, SCHEMA)
        assert answered.reply is None
        assert "bytes, at most" in answered.failure  # told by the header, before the body
        assert len(answered.failure) < 400
        assert len(server.requests) == 1


def test_a_long_body_without_a_length_ends_at_the_limit() -> None:
    """No Content-Length: only counting what comes can stop it."""
    sent = 0
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        nonlocal sent
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            try:
                for _ in range(200):
                    sent += connection.send(b"x" * 65536)
            except OSError:
                return

    from threading import Thread

    thread = Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    answered = endpoint(url, attempts=1, body_bytes=1 << 17).ask(MESSAGES, SCHEMA)
    thread.join(10)
    listener.close()
    assert answered.reply is None
    assert "longer than" in answered.failure
    assert sent < 200 * 65536


def test_a_compressed_body_is_refused_because_its_size_cannot_be_bounded() -> None:
    bomb = gzip.compress(b"0" * 20_000_000)
    with scripted_model(lambda body, n: Response(bomb, 200, {"Content-Encoding": "gzip"})) as server:
        answered = endpoint(server.url, attempts=1).ask(MESSAGES, SCHEMA)
        assert server.headers[0]["accept-encoding"] == "identity"
    assert answered.reply is None
    assert "compressed" in answered.failure


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"[]", b"null", b'{"choices": {}}', b'{"choices": [null]}', b"\xff\xfe", b"[" * 100_000]
)
def test_garbage_with_status_200_is_a_reply_without_text(body: bytes) -> None:
    with scripted_model(lambda request, n: Response(body)) as server:
        answered = endpoint(server.url).ask(MESSAGES, SCHEMA)
    assert answered.reply is not None
    assert answered.reply.text == ""
    assert answered.reply.prompt_tokens == 0


@pytest.mark.parametrize(
    "usage",
    [None, "many", {"prompt_tokens": -5}, {"prompt_tokens": "7"}, {"prompt_tokens": 1e300}, {"prompt_tokens": True}],
)
def test_usage_that_is_no_count_counts_nothing(usage: Any) -> None:
    whole = {"choices": [{"message": {"content": "{}"}}], "usage": usage}
    with scripted_model(lambda request, n: Response.of(whole)) as server:
        answered = endpoint(server.url).ask(MESSAGES, SCHEMA)
    assert answered.reply is not None
    assert answered.reply.text == "{}"
    assert answered.reply.prompt_tokens == 0


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": '{"a":'}, {"type": "text", "text": " 1}"}, {"type": "image"}, 7]
    with scripted_model(lambda request, n: answer(parts)) as server:
        answered = endpoint(server.url).ask(MESSAGES, SCHEMA)
    assert answered.reply is not None
    assert answered.reply.text == '{"a": 1}'


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "ftp://host/v1",
        "http://",
        "http://user:pass@host/v1",
        "http://host/v1?key=1",
        "http://host:99999/",
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint(url, "m", KEY, Limits())
    assert "OPENAI_BASE_URL" in str(caught.value)
    assert "pass" not in str(caught.value).replace("password", "")


def test_prices_are_those_of_one_provider_and_unknown_ones_are_none() -> None:
    openai = "https://api.openai.com/v1"
    assert cost_usd(openai, "gpt-4o", 1_000_000, 0) == 2.5
    assert cost_usd(openai, "gpt-4o", 0, 1_000_000) == 10
    assert cost_usd(openai, "gpt-4o-2024-08-06", 2_000, 1_000) == pytest.approx(0.015)
    assert cost_usd(openai, "gpt-4o-2024-05-13", 1_000_000, 0) == 5  # a dated name with a price of its own
    assert cost_usd(openai, "somebody-elses", 1, 1) is None
    assert cost_usd("http://127.0.0.1:8000/v1", "gpt-4o", 1, 1) is None


def test_an_unexpected_exception_is_a_failure_too() -> None:
    assert failure_of(RuntimeError("odd")).passing is False
