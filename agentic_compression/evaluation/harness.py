"""The loaded model as lm-evaluation-harness sees it.

``HFLM`` with five differences: progress goes to our callback instead of a terminal bar, every text is tokenized
once and in bulk, choices of one question share its context (see ``likelihood``), a likelihood that is not a number is
an error instead of a wrong answer, and weights are not tied again. Prompts, tokens, filters and metrics are the
harness's own: texts are encoded as the tokenizer does by default, with its beginning-of-sequence token if it adds one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from agentic_compression.errors import CompressionError
from agentic_compression.evaluation.likelihood import can_share_contexts, score_continuations
from agentic_compression.evaluation.loading import LoadedModel
from agentic_compression.progress import Progress

__all__ = ["harness_model", "quiet_harness"]

_LOGIT_BYTES = 1 << 29


def harness_model(loaded: LoadedModel, batch_size: int, progress: Progress) -> Any:
    """An ``lm_eval.api.model.LM`` over a loaded checkpoint.

    Args:
        loaded: model and tokenizer, already on their device.
        batch_size: sequences at once; fewer when their logits would pass 512 MB.
        progress: told after every batch.
    """
    with _weights_stay_as_they_are(loaded.model):
        return _adapter_class()(loaded, batch_size, progress)


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


@contextlib.contextmanager
def _weights_stay_as_they_are(model: Any) -> Iterator[None]:
    """HFLM ties embeddings again when it takes a model; that would undo a compression of one of the two."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@cache
def _adapter_class() -> type:
    from lm_eval.models.huggingface import HFLM

    class HarnessModel(HFLM):
        """HFLM over a model that is already loaded."""

        def __init__(self, loaded: LoadedModel, batch_size: int, progress: Progress) -> None:
            super().__init__(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                backend="causal",
                batch_size=batch_size,
                max_length=loaded.context_length,
            )
            self._progress, self._asked, self._done, self._total = progress, batch_size, 0, 0
            self._vocabulary = loaded.vocabulary
            self._shares = can_share_contexts(loaded.model)
            self._encoded: dict[str, list[int]] = {}

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
        ) -> list[int]:
            if add_special_tokens is None and not left_truncate_len and string in self._encoded:
                return self._encoded[string]
            return super().tok_encode(string, add_special_tokens, left_truncate_len)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            pairs = [request.args for request in requests]
            self._encode_all([text for context, rest in pairs for text in (context.rstrip(), context + rest) if text])
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._encode_all([request.args[0] for request in requests])
            self._begin(len(requests), max(len(self.tok_encode(request.args[0])) for request in requests), last=True)
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None) -> Any:
            longest = max(len(context) + len(rest) for _, context, rest in requests)
            share = self._shares and longest <= self.max_length
            self._begin(len(requests), max(len(rest) for _, _, rest in requests) if share else longest)
            if share:
                pairs = [(context, rest) for _, context, rest in requests]
                answers = score_continuations(self.model, pairs, self.batch_size, self._report)
            else:
                answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
            bad = sum(math.isnan(likelihood) for likelihood, _ in answers)
            if bad:
                raise CompressionError(
                    f"the checkpoint's likelihoods must be numbers, got NaN for {bad} of {len(answers)} answers; "
                    "the compression broke the model: use milder parameters or another method"
                )
            self._progress("items", len(requests), len(requests))
            return answers

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            logits = super()._model_call(inps, attn_mask, labels)
            self._report(len(inps))
            return logits

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
            answer = super()._model_generate(context, max_length, stop, **kwargs)
            self._report(len(context))
            return answer

        def _begin(self, total: int, longest: int, *, last: bool = False) -> None:
            """Set the batch size for sequences of this length; generation keeps the last position's logits only."""
            a_row = 4 * self._vocabulary * (1 if last else longest)
            self.batch_size_per_gpu = max(1, min(self._asked, _LOGIT_BYTES // a_row))
            self._done, self._total = 0, total

        def _report(self, rows: int) -> None:
            self._done = min(self._total, self._done + rows)
            self._progress("items", self._done, self._total)

        def _encode_all(self, texts: list[str]) -> None:
            """Encode distinct texts in one call, as ``tok_encode`` would one by one."""
            mark = self.tokenizer.decode(self.prefix_token_id)
            plain = [text for text in dict.fromkeys(texts) if not text.startswith(mark)]
            if plain:
                self._encoded = dict(zip(plain, self.tokenizer(plain, verbose=False)["input_ids"], strict=True))

    return HarnessModel
