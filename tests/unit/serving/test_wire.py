"""Bodies of requests as official clients send them."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import ValidationError

from agentic_compression.serving.wire import ChatRequest


def test_an_answer_may_be_sent_back_as_history() -> None:
    answer = ChatCompletionMessage.model_validate({"role": "assistant", "content": "yes", "refusal": None})
    for told in (answer.model_dump(), answer.model_dump(exclude_unset=True), {**answer.model_dump(), "tool_calls": []}):
        body = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}, told]})
        assert body.messages[1].plain() == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("extra", [{"tool_calls": [{"id": "1"}]}, {"refusal": "no"}, {"audio": {"id": "1"}}])
def test_what_cannot_be_shown_to_a_model_is_refused(extra: dict[str, object]) -> None:
    message = {"role": "assistant", "content": "yes", **extra}
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "m", "messages": [message]})
