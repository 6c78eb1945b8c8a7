"""What the server answers with, as its OpenAPI document describes it: OpenAI's wire format with a few additions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from agentic_compression.serving.errors import ErrorEnvelope

__all__ = [
    "ERRORS",
    "ChatCompletion",
    "DetailedHealth",
    "Embeddings",
    "Health",
    "MemoryReport",
    "ModelCard",
    "ModelList",
    "TextCompletion",
    "answered_with",
]

_AUTHENTICATE = {"WWW-Authenticate": "how to name a key"}
_WAIT = {"Retry-After": "seconds until it may be sent again, where they are known"}
_MEANINGS: dict[int, tuple[str, dict[str, str]]] = {
    400: ("The request cannot be carried out, such as one with a parameter that no engine here supports.", {}),
    401: ("No key of this server.", _AUTHENTICATE),
    404: ("No such model or route.", {}),
    405: ("The route has other methods.", {"Allow": "the methods it has"}),
    408: ("The body did not arrive in time.", {}),
    413: ("The body is too large.", {}),
    422: ("A field of the body is missing, unknown, or of the wrong kind.", {}),
    429: ("Too many requests of one key or address.", _WAIT),
    500: ("The server failed; its log has the cause under the request's id.", {}),
    503: ("The model is busy, cannot be loaded, or ended.", _WAIT),
}


def _named_headers(names: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in names.items()}


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ErrorEnvelope,
        "description": text,
        "headers": _named_headers({"X-Request-ID": "the request's id", **headers}),
    }
    for status, (text, headers) in _MEANINGS.items()
}
"""Every error that a route may answer with."""


def answered_with(model: type[BaseModel], *, streamed: bool = False) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses``: the answer, and where it may be streamed, that."""
    found: dict[str, Any] = {"model": model, "description": "The answer."}
    if streamed:
        text = "With stream: true, pieces of the answer as server-sent events; the last one is [DONE] or an error."
        found["content"] = {"text/event-stream": {"schema": {"type": "string", "description": text}}}
    return {200: found}


class Usage(BaseModel):
    """Tokens of prompt and answer."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    id: str
    created: int = Field(description="seconds since 1970")
    model: str = Field(description="the served name")
    system_fingerprint: str = Field(description="which version answered")
    truncated: bool = Field(description="whether the prompt was cut")
    usage: Usage


class Alternative(BaseModel):
    """A token with its log-probability (nats); its bytes are null where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(Alternative):
    """A token of the answer, with the most likely ones at its place."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat's answer."""

    content: list[ChosenToken]
    refusal: None = None


class AssistantMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int = Field(ge=0)
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(_Completion):
    """Answer of ``/v1/chat/completions``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice] = Field(min_length=1)


class TextLogprobs(BaseModel):
    """Log-probabilities (nats) of a continued text, a place a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation."""

    index: int = Field(ge=0)
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(_Completion):
    """Answer of ``/v1/completions``."""

    object: Literal["text_completion"]
    choices: list[TextChoice] = Field(min_length=1)


class EmbeddingUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class Embedding(BaseModel):
    """A vector of length 1, as numbers or as little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int = Field(ge=0)
    embedding: list[float] | str


class Embeddings(BaseModel):
    """Answer of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[Embedding] = Field(min_length=1)
    model: str
    usage: EmbeddingUsage
    truncated: bool


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"]


class ModelState(BaseModel):
    """A model's state; what is loaded has more fields."""

    reference: str
    state: Literal["loading", "loaded", "unloaded"]
    problem: str | None = Field(description="why the last load or look at the registry failed")
    retry_in_s: float = Field(ge=0, description="seconds for which a load that failed is not tried again")


class DetailedHealth(BaseModel):
    """Every model with its state."""

    status: Literal["ok", "degraded"]
    version: str
    uptime_seconds: float
    models: dict[str, ModelState]


class MemoryReport(BaseModel):
    """Memory of the server and its engines, in bytes."""

    pid: int
    server_bytes: int
    engine_bytes: dict[str, int]
    total_bytes: int
    samples: int
    sampled_seconds: float
    lowest_bytes: int
    highest_bytes: int
    leak_suspected: bool
