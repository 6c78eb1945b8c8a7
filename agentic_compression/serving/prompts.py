"""From what a request brings to token ids: chat templates, and cutting what is too long.

A chat that is too long loses its oldest turns first; the system messages and the newest turn stay. When these alone
are too long, the newest turn keeps its end, then the system messages keep their beginnings. A plain prompt keeps its
end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentic_compression.runtimes.tokenizer import bos_of
from agentic_compression.serving.engine import Generation, Prepared, PromptError

__all__ = ["DEFAULT_TEMPLATE", "PromptReader"]

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] | trim + '\\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] | trim + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Taken where a tokenizer has no chat template. Answers then end at ``\\nUser:``, too."""
DEFAULT_STOP = "\nUser:"

_ANSWER_TOKENS = 256
_LEAST_PROMPT = 8

Messages = list[dict[str, str]]


class PromptReader:
    """Reads prompts for one model.

    Args:
        tokenizer: of the model.
        context_length: tokens of prompt and answer together.
        max_new_tokens: of an answer, whatever is asked for.
        cache_tokens: of the cache, where that may be less than the context.
    """

    def __init__(
        self, tokenizer: Any, context_length: int, max_new_tokens: int, cache_tokens: int | None = None
    ) -> None:
        self._tokenizer, self._most = tokenizer, max_new_tokens
        self._context = min(context_length, cache_tokens or context_length)
        self._where = f"a context of {self._context}"
        if self._context < context_length:
            self._where = f"the server's cache of {self._context} (the model could take {context_length})"
        tokenizer("a", verbose=False)  # it settles its own state when first used; later two threads use it at once
        self.has_template = bool(getattr(tokenizer, "chat_template", None))

    def read(self, request: Generation) -> tuple[list[int], tuple[str, ...], Prepared]:
        """Token ids, stop strings, and what is said about them.

        The answer may have the tokens that were asked for, or what the context leaves. A prompt is cut only when it
        would leave an answer less than a quarter of the context (or than asked for, or than 256 tokens).

        Raises:
            PromptError: when the prompt has no tokens, is too long and may not be cut, or the template refuses it.
        """
        asked = min(request.new_tokens or self._most, self._most)
        reserve = min(asked, self._context // 4, _ANSWER_TOKENS if request.new_tokens is None else asked)
        limit = self._context - max(1, reserve)
        stop = request.stop
        if request.messages is not None:
            ids, truncated = self._read_chat([dict(item) for item in request.messages], limit, request.truncate)
            stop = stop if self.has_template else (*stop, DEFAULT_STOP)
        else:
            ids, truncated = self._read_text(request.prompt, limit, request.truncate)
        if not ids:
            raise PromptError("a prompt must have a token or more, got none", "empty_prompt", "prompt")
        return ids, stop, Prepared(len(ids), truncated, min(asked, self._context - len(ids)))

    def encode(self, text: str | Sequence[int], param: str = "input") -> list[int]:
        """Token ids of a text, or those that were given.

        Raises:
            PromptError: when one of them is not in the vocabulary.
        """
        if isinstance(text, str):
            return list(self._tokenizer(text, verbose=False)["input_ids"])
        if any(not 0 <= token < len(self._tokenizer) for token in text):
            raise PromptError(
                f"token ids must lie in 0 to {len(self._tokenizer) - 1}, got others", "invalid_token", param
            )
        return list(text)

    def _read_text(self, prompt: str | Sequence[int] | None, limit: int, truncate: bool) -> tuple[list[int], bool]:
        ids = self.encode(() if prompt is None else prompt, "prompt")
        if isinstance(prompt, str):
            ids = ids or bos_of(self._tokenizer)
        if len(ids) <= limit:
            return ids, False
        self._refuse_long(len(ids), limit, truncate, "prompt")
        begin = [token for token in bos_of(self._tokenizer) if ids[:1] == [token]]
        return [*begin, *ids[len(ids) - limit + len(begin) :]], True

    def _read_chat(self, messages: Messages, limit: int, truncate: bool) -> tuple[list[int], bool]:
        ids = self._render(messages)
        if len(ids) <= limit:
            return ids, False
        self._refuse_long(len(ids), limit, truncate, "messages")
        messages, ids = self._drop_turns(messages, ids, limit)
        newest = len(messages) - 1
        for place in [newest, *(index for index in range(newest) if messages[index]["role"] == "system")]:
            keep_end = place == newest
            for _ in range(4):  # what a cut saves is known only after tokenizing again
                if len(ids) > limit:
                    messages[place]["content"] = self._shorten(messages[place]["content"], len(ids) - limit, keep_end)
                    ids = self._render(messages)
        if len(ids) > limit:
            raise PromptError(
                f"the messages must fit {limit} tokens in {self._where}, got {len(ids)} even when cut; "
                "send shorter ones",
                "context_length_exceeded",
                "messages",
            )
        return ids, True

    def _drop_turns(self, messages: Messages, ids: list[int], limit: int) -> tuple[Messages, list[int]]:
        """Leave out the oldest turns until the chat fits or only system messages and the newest turn are left."""
        sizes = [self._count(item["content"]) for item in messages]
        around = -(-max(0, len(ids) - sum(sizes)) // len(messages))  # what the template puts around a turn
        while len(ids) > limit:
            turns = [place for place, item in enumerate(messages[:-1]) if item["role"] != "system"]
            if not turns:
                break
            excess, dropped = len(ids) - limit, 0
            while turns and dropped < excess:
                place = turns.pop(0)
                dropped += self._count(messages[place]["content"]) + max(1, around)
                messages[place] = {}
            messages = [item for item in messages if item]
            # An answer without its question says nothing to a model, and many templates refuse it.
            first = next((place for place, item in enumerate(messages) if item["role"] != "system"), len(messages))
            while first < len(messages) - 1 and messages[first]["role"] == "assistant":
                messages.pop(first)
            ids = self._render(messages)
        return messages, ids

    def _render(self, messages: Messages) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                **({} if self.has_template else {"chat_template": DEFAULT_TEMPLATE}),
            )
        except Exception as error:  # a template is a program of the model's maker; it may raise anything
            reason = " ".join(str(error).split())[:300]
            raise PromptError(
                f"the model's chat template must accept the messages, got: {reason}", "chat_template", "messages"
            ) from error
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _shorten(self, text: str, tokens: int, keep_end: bool) -> str:
        """The text without so many tokens at its beginning or its end; never wholly empty."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        left = max(_LEAST_PROMPT, len(ids) - tokens)
        decode: Callable[..., str] = self._tokenizer.decode
        kept = ids[len(ids) - left :] if keep_end and left < len(ids) else ids[:left]
        return decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _refuse_long(self, got: int, limit: int, truncate: bool, param: str) -> None:
        if not truncate:
            raise PromptError(
                f"the prompt must have at most {limit} tokens in {self._where} with the answer asked for, got {got}; "
                "shorten it, or send truncation: auto",
                "context_length_exceeded",
                param,
            )
