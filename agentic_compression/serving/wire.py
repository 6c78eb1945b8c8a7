"""Bodies of requests in OpenAI's wire format. What no engine here can do is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agentic_compression.serving.errors import RequestError
from agentic_compression.serving.structured import JSON_OBJECT, schema_text
from agentic_compression.serving.unions import one_of

__all__ = ["ChatMessage", "ChatRequest", "CompletionRequest", "EmbeddingRequest", "ResponseFormat", "StreamOptions"]

_MOST_CHOICES = 8
_MOST_PROMPTS = 128
_MOST_INPUTS = 256
_MOST_FIELDS = 64
_REFUSED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "functions": ([], None),
    "function_call": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
    "audio": (None,),
    "prediction": (None,),
    "suffix": ("", None),
    "echo": (False, None),
    "dimensions": (None,),
}
"""Fields whose work no engine here does, with the values that ask for none."""


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be Unicode text without lone surrogates") from error
    return text


Text = Annotated[str, AfterValidator(_check_text)]
Name = Annotated[Text, Field(min_length=1, max_length=256)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]  # the engine knows the vocabulary
# Lists end at their first fault: a body of a megabyte has room for hundreds of thousands.
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1)]
_PROMPTS = "a string, a list of strings, a list of token ids or a list of lists of them"
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]


class _Body(BaseModel):
    """Unknown fields are refused: a misspelt one would be ignored silently."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, fields: Any) -> Any:
        """Each unknown field is a fault of its own, and there may be as many as fit a body."""
        if isinstance(fields, dict) and len(fields) > _MOST_FIELDS:
            raise ValueError(f"must have at most {_MOST_FIELDS} fields, got {len(fields)}")
        return fields


class StreamOptions(_Body):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(default=False, description="send a last piece with the usage")
    include_obfuscation: bool | None = Field(default=None, description="accepted; nothing is obfuscated")


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Body):
    """One turn. ``developer`` is read as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Text | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)],
        one_of("a string or a list of text parts"),
    ]
    name: Text | None = Field(default=None, description="accepted; templates do not show it")
    refusal: None = Field(default=None, description="as answers carry it when they are sent back as history")
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _Request(_Body):
    """What every request may carry. Bookkeeping fields are accepted and have no effect here."""

    answered: ClassVar[frozenset[str]] = frozenset()
    """Fields that this kind of request has and others do not."""

    model: Name
    user: Text | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    truncation: Literal["auto", "disabled"] = Field(
        default="auto", description="auto cuts a prompt that is too long and says so; disabled refuses it"
    )
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    suffix: Any = None
    echo: Any = None
    dimensions: Any = None

    def refuse_unsupported(self) -> None:
        """Raise RequestError (400) for the first field that asks for what no engine here does."""
        for name, idle in _REFUSED.items():
            if name in self.answered:
                continue
            value = getattr(self, name)
            if not any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in idle):
                raise RequestError(
                    400,
                    "unsupported_parameter",
                    f"{name} is not supported by any engine of this server; leave it out",
                    param=name,
                    suggestions=(f"send the request without {name}",),
                )


class _Sampled(_Request):
    """What chats and completions share."""

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False, description="1 when left out")
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False, description="1 when left out")
    seed: Seed | None = Field(default=None, description="drawn when left out")
    stop: (
        Annotated[
            Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=4)], one_of("a string or a list of strings")
        ]
        | None
    ) = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> _Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextFormat(_Body):
    """Any text."""

    type: Literal["text"]

    def schema_text(self) -> str | None:
        """The JSON schema that answers keep to, as JSON."""
        return None


class JsonObjectFormat(_Body):
    """Any JSON object."""

    type: Literal["json_object"]

    def schema_text(self) -> str | None:
        """The JSON schema that answers keep to, as JSON."""
        return JSON_OBJECT


class NamedSchema(_Body):
    """A JSON schema. Answers keep to it whether ``strict`` or not."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = Field(default=None, description="accepted; the model does not see it")
    body: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(_Body):
    """JSON of one schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def schema_text(self) -> str | None:
        """The JSON schema that answers keep to, as JSON.

        Raises:
            PromptError: when it is too large or too deep.
        """
        return schema_text(self.json_schema.body)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat,
    Field(discriminator="type"),
    one_of("an object whose type is text, json_object or json_schema"),
]


class ChatRequest(_Sampled):
    """Body of ``POST /v1/chat/completions``."""

    answered: ClassVar[frozenset[str]] = frozenset({"response_format"})

    response_format: ResponseFormat | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = Field(default=None, description="taken before max_tokens")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(default=None, description="needs logprobs: true")

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def new_tokens(self) -> int | None:
        """Of the answer, at most."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Sampled):
    """Body of ``POST /v1/completions``: prompts as text or as token ids."""

    prompt: Annotated[
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=_MOST_PROMPTS)]
        | Tokens
        | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MOST_PROMPTS)],
        one_of(_PROMPTS),
    ]
    max_tokens: Count | None = Field(default=16)
    best_of: Annotated[int, Field(ge=1, le=1)] | None = Field(default=None, description="only 1")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="after")
    def _check_choices(self) -> CompletionRequest:
        if (count := len(self.prompts) * (self.n or 1)) > _MOST_PROMPTS:
            raise ValueError(f"prompts times n must be at most {_MOST_PROMPTS}, got {count}")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each one."""
        return _several(self.prompt)


class EmbeddingRequest(_Request):
    """Body of ``POST /v1/embeddings``: texts, or their token ids."""

    input: Annotated[
        Annotated[Text, Field(min_length=1)]
        | Annotated[
            list[Annotated[Text, Field(min_length=1)]], Field(fail_fast=True, min_length=1, max_length=_MOST_INPUTS)
        ]
        | Tokens
        | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MOST_INPUTS)],
        one_of(_PROMPTS),
    ]
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """Each one."""
        return _several(self.input)


def _several(given: Any) -> list[str | list[int]]:
    """A text or a list of tokens is one; anything else is a list of them."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
