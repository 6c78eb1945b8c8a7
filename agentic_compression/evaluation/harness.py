"""A runtime as lm-evaluation-harness sees it.

Prompts, filters and metrics are the harness's own, and so are the rules of its Hugging Face model: texts are encoded
as the tokenizer does by default, with its beginning-of-sequence token if it adds one; what is too long loses its
beginning; an answer ends at the first stop string. Every text is tokenized once and in bulk, a batch that does not fit
into memory is halved, progress goes to our callback, and a likelihood that is not a number is an error instead of a
wrong answer. Where the harness's own model gives up, because the context has no room for the task's longest answer,
an answer gets half of the context.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from agentic_compression.errors import CompressionError, DatasetError
from agentic_compression.evaluation.batching import batch_limit
from agentic_compression.progress import Progress
from agentic_compression.runtimes import GenerationOptions, Runtime

__all__ = ["harness_model", "quiet_harness"]

_DEFAULT_NEW_TOKENS = 256  # of lm-evaluation-harness
_UNDERSTOOD = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p"})


def harness_model(runtime: Runtime, batch_size: int, progress: Progress) -> Any:
    """An ``lm_eval.api.model.LM`` over a runtime.

    Its ``cut`` says of every request of the last call whether it lost its beginning to fit the context, and its
    ``answer_tokens`` how many new tokens each answer could have (None for likelihoods).

    Args:
        runtime: the checkpoint.
        batch_size: sequences at once, at most.
        progress: told after every batch.
    """
    return _adapter_class()(runtime, batch_size, progress)


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Offline, without progress bars, warnings of the harness or compiling a template once an item."""
    import lm_eval.utils

    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="true")
    logger = logging.getLogger("lm_eval")
    level, environment = logger.level, lm_eval.utils.env
    compiled = environment.from_string
    logger.setLevel(logging.ERROR)
    environment.from_string = cache(compiled)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        environment.from_string = compiled
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _adapter_class() -> type:
    from lm_eval.api.model import TemplateLM

    class HarnessModel(TemplateLM):
        """The harness's model interface over a runtime."""

        def __init__(self, runtime: Runtime, batch_size: int, progress: Progress) -> None:
            super().__init__()
            self.tokenizer, self._runtime = runtime.tokenizer, runtime
            self._progress, self._batch_size, self._done, self._total = progress, batch_size, 0, 0
            self._encoded: dict[str, list[int]] = {}
            self._mark = "" if self.prefix_token_id is None else self.tokenizer.decode(self.prefix_token_id)
            self.cut: list[bool] = []
            self.answer_tokens: list[int | None] = []

        @property
        def eot_token_id(self) -> Any:
            return self.tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> Any:
            """What an empty context is replaced by: BOS, else EOS."""
            bos = self.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else bos

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None and string in self._encoded:
                return self._encoded[string]
            if add_special_tokens is None and self._begins_with_bos(string):
                add_special_tokens = False
            special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return list(self.tokenizer.encode(string, **special))

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            pairs = [request.args for request in requests]
            self._encode_all([text for context, rest in pairs for text in (context.rstrip(), context + rest) if text])
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            most = self._runtime.context_length + 1  # the last token is predicted, not run
            pairs, self.cut, self.answer_tokens = [], [], [None] * len(requests)
            for _, context, rest in requests:
                excess = max(0, len(context) + len(rest) - most)
                if excess >= len(context):
                    raise DatasetError(
                        f"an answer must fit the model's context of {most - 1} tokens, got one of {len(rest)}; "
                        "leave the item out or choose a model with a longer context"
                    )
                pairs.append((context[excess:], rest))
                self.cut.append(excess > 0)
            answers = self._run(len(pairs), lambda rows, report: self._runtime.score(pairs, rows, report))
            bad = sum(math.isnan(likelihood) for likelihood, _ in answers)
            if bad:
                raise CompressionError(
                    f"the checkpoint's likelihoods must be numbers, got NaN for {bad} of {len(answers)} answers; "
                    "the compression broke the model: use milder parameters or another method"
                )
            return answers

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise DatasetError("a task must ask for answers, got one of rolling likelihoods; give its texts as 'text'")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._encode_all([request.args[0] for request in requests])
            groups: dict[GenerationOptions, list[int]] = defaultdict(list)
            for index, request in enumerate(requests):
                groups[self._fitting(self._options(request.args[1]))].append(index)
            self.cut, self.answer_tokens = [False] * len(requests), [None] * len(requests)
            answers: dict[int, str] = {}
            for options, members in groups.items():
                room = self._runtime.context_length - options.new_tokens
                prompts = []
                for index in members:
                    ids = self.tok_encode(requests[index].args[0])
                    self.cut[index], self.answer_tokens[index] = len(ids) > room, options.new_tokens
                    prompts.append(ids[-room:])
                done = self._generated(prompts, options)
                answers.update(zip(members, done, strict=True))
            return [answers[index] for index in range(len(requests))]

        def _generated(self, prompts: list[list[int]], options: GenerationOptions) -> list[str]:
            done = self._run(len(prompts), lambda rows, report: self._runtime.generate(prompts, options, rows, report))
            return [answer.text for answer in done]

        def _fitting(self, options: GenerationOptions) -> GenerationOptions:
            """Answers of at most half of the context where it has no room for the prompt's last token otherwise."""
            context = self._runtime.context_length
            return options if options.new_tokens < context else replace(options, new_tokens=context // 2)

        def _run(self, items: int, work: Callable[[int, Callable[[int], None]], Any]) -> Any:
            """Work in batches that fit; progress counts this call's items."""
            self._done, self._total = 0, items
            return batch_limit(self._runtime).run(self._batch_size, work, self._report)

        def _options(self, arguments: dict[str, Any]) -> GenerationOptions:
            """The harness's generation arguments, as its models understand them."""
            from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

            found: dict[str, Any] = dict(normalize_gen_kwargs(arguments, _DEFAULT_NEW_TOKENS))
            if unknown := sorted(set(found) - _UNDERSTOOD):
                raise DatasetError(
                    f"generation arguments must be of {', '.join(sorted(_UNDERSTOOD))}, got {', '.join(unknown)}"
                )
            end = None if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id)
            return GenerationOptions(
                new_tokens=found["max_gen_toks"],
                stop_strings=tuple(handle_stop_sequences(found.get("until"), eos=end)),
                temperature=float(found.get("temperature", 0.0)) if found["do_sample"] else 0.0,
                top_p=float(found.get("top_p", 1.0)),
            )

        def _begins_with_bos(self, text: str) -> bool:
            return bool(self._mark) and text.startswith(self._mark)

        def _encode_all(self, texts: list[str]) -> None:
            """Encode distinct texts in one call, as ``tok_encode`` would one by one."""
            new = [text for text in dict.fromkeys(texts) if text not in self._encoded]
            plain = [text for text in new if not self._begins_with_bos(text)]
            if plain:
                self._encoded.update(zip(plain, self.tokenizer(plain, verbose=False)["input_ids"], strict=True))

        def _report(self, rows: int) -> None:
            self._done = min(self._total, self._done + rows)
            self._progress("items", self._done, self._total)

    return HarnessModel
