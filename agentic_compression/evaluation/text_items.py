"""A task of plain text: every document is an item, its answer the next-token top-1 accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.items import Item, ItemAnswer
from agentic_compression.evaluation.language_modelling import read_texts, score_documents
from agentic_compression.progress import Progress
from agentic_compression.records import DatasetTask
from agentic_compression.runtimes import Runtime

__all__ = ["TextItems"]


class TextItems:
    """Documents in the order of their ids: BOS when there is one, the text, cut at the context length.

    Documents with nothing to score (fewer than two tokens) are left out.

    Args:
        task: of kind ``text``.
        runtime: whose tokenizer and context count.

    Raises:
        DatasetError: when nothing is left.
    """

    def __init__(self, task: DatasetTask, runtime: Runtime) -> None:
        texts = read_texts(task.path)
        encoded = runtime.tokenizer(list(texts.values()), add_special_tokens=False, verbose=False)["input_ids"]
        self.items: list[Item] = []
        self._windows: list[list[int]] = []
        for (name, text), ids in zip(texts.items(), encoded, strict=True):
            window = (runtime.bos + list(ids))[: runtime.context_length]
            if len(window) > 1:
                self.items.append(Item(name, {"text": text}))
                self._windows.append(window)
        if not self.items:
            raise DatasetError(f"task {task.name!r} must hold a text of two tokens or more, got none in {task.path}")

    def tokens(self, position: int) -> int:
        """Scored tokens of a document."""
        return len(self._windows[position]) - 1

    def answers(
        self, positions: Sequence[int], runtime: Runtime, batch_size: int, progress: Progress
    ) -> list[ItemAnswer]:
        """Score some documents, in the order given."""
        scores = score_documents(runtime, [self._windows[position] for position in positions], batch_size, progress)
        return [ItemAnswer(sum(score.hits) / len(score.hits), score.hits) for score in scores]
