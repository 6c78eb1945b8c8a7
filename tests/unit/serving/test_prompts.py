"""What of a prompt is kept when it is too long."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.serving.engine import Generation, PromptError
from agentic_compression.serving.prompts import DEFAULT_STOP, PromptReader
from tests.unit.methods.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATED = tiny_tokenizer()
TEMPLATED.chat_template = "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}{% endfor %}"
ROLES = st.sampled_from(["system", "user", "assistant"])
CHATS = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": st.text("abc ", min_size=1, max_size=60)}), min_size=1, max_size=12
)


def text_of(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


@settings(max_examples=200, deadline=None)
@given(CHATS, st.integers(1, 80), st.booleans())
def test_a_chat_always_fits_and_keeps_system_and_newest(chat: list[Any], asked: int, templated: bool) -> None:
    reader = PromptReader(TEMPLATED if templated else TOKENIZER, 160, 100)
    if sum(len(item["content"]) for item in chat if item["role"] == "system") > 40:
        chat = [item for item in chat if item["role"] != "system"] or [{"role": "user", "content": "a"}]
    ids, _, prepared = reader.read(Generation(messages=chat, new_tokens=asked))
    assert len(ids) == prepared.prompt_tokens
    assert len(ids) + prepared.new_tokens <= 160
    assert prepared.new_tokens >= min(asked, 40)
    whole, _, _ = PromptReader(TEMPLATED if templated else TOKENIZER, 100_000, 100).read(Generation(messages=chat))
    assert prepared.truncated == (ids != whole)
    shown = text_of(ids)
    needed = [item["content"] for item in chat if item["role"] == "system"] + [chat[-1]["content"]]
    if templated and sum(len(text) + 3 for text in needed) <= 120:
        assert all(text in shown for text in needed)


def test_the_oldest_turns_go_first() -> None:
    reader = PromptReader(TEMPLATED, 80, 20)
    chat = [{"role": "system", "content": "S" * 10}]
    chat += [{"role": ("user", "assistant")[number % 2], "content": str(number) * 12} for number in range(9)]
    ids, _, prepared = reader.read(Generation(messages=chat, new_tokens=20))
    assert prepared.truncated
    assert text_of(ids) == "[s]" + "S" * 10 + "[u]" + "6" * 12 + "[a]" + "7" * 12 + "[u]" + "8" * 12


def test_a_newest_turn_that_is_too_long_keeps_its_end() -> None:
    reader = PromptReader(TEMPLATED, 80, 20)
    chat = [{"role": "system", "content": "S" * 10}, {"role": "user", "content": "a" * 200 + "the end"}]
    ids, _, _ = reader.read(Generation(messages=chat, new_tokens=20))
    assert text_of(ids).startswith("[s]SSSSSSSSSS[u]a")
    assert text_of(ids).endswith("the end")
    assert len(ids) == 60


def test_a_plain_prompt_keeps_its_beginning_token_and_its_end() -> None:
    reader = PromptReader(TOKENIZER, 40, 10)
    ids, stop, prepared = reader.read(Generation(prompt="x" * 100 + "end", new_tokens=10, stop=("q",)))
    assert ids[0] == TOKENIZER.bos_token_id
    assert text_of(ids) == "x" * 26 + "end"
    assert (len(ids), stop, prepared.truncated, prepared.new_tokens) == (30, ("q",), True, 10)


def test_an_answer_is_cut_before_a_prompt_is() -> None:
    reader = PromptReader(TOKENIZER, 40, 100)
    _, _, prepared = reader.read(Generation(prompt="x" * 20, new_tokens=90))
    assert (prepared.truncated, prepared.new_tokens) == (False, 19)


def test_a_long_prompt_is_refused_when_it_may_not_be_cut() -> None:
    with pytest.raises(PromptError, match="at most 30 tokens") as caught:
        PromptReader(TOKENIZER, 40, 10).read(Generation(prompt="x" * 50, truncate=False))
    assert caught.value.code == "context_length_exceeded"


def test_without_a_template_the_default_is_taken_and_its_stop() -> None:
    reader = PromptReader(TOKENIZER, 200, 10)
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    ids, stop, _ = reader.read(Generation(messages=chat, stop=("x",)))
    assert text_of(ids) == "Be kind.\n\nUser: Hi\nAssistant:"
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert stop == ("x", DEFAULT_STOP)


def test_a_template_that_refuses_is_told() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="roles must alternate"):
        PromptReader(tokenizer, 40, 10).read(Generation(messages=[{"role": "user", "content": "a"}]))


@pytest.mark.parametrize("ids", [[999], [-1]])
def test_token_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(PromptError, match="token ids must lie in"):
        PromptReader(TOKENIZER, 40, 10).read(Generation(prompt=ids))
