"""One task of lm-evaluation-harness, item by item: prompts, filters and metrics are the harness's own.

The harness draws a task's random few-shot examples one item after another from one generator, so that an item's prompt
depends on how many items are asked before it. Here it depends on the item's place alone: it is the prompt of a run over
the whole task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.code_answers import CODE_METRIC, require_sandbox, score_program
from agentic_compression.evaluation.harness_tasks import build_harness_task, runs_code
from agentic_compression.evaluation.items import named
from agentic_compression.records import DatasetTask
from agentic_compression.runtimes import Runtime

__all__ = ["HarnessItems"]


class HarnessItems:
    """A task's items, the harness's requests for them and their scores.

    Args:
        task: with absolute paths.
        tasks_dir: folder of the two templates.
        runtime: whose tokenizer says how long an answer of a local generation file can be.

    Raises:
        DatasetError: when the task cannot be built.
        UnavailableError: when it runs code and nothing here can confine that.
    """

    def __init__(self, task: DatasetTask, tasks_dir: str, runtime: Runtime) -> None:
        self._code = task.kind == "benchmark" and runs_code(task.lm_eval_task)
        if self._code:
            require_sandbox()
        self._name = task.name
        self._task = build_harness_task(task, tasks_dir, runtime)
        documents = [dict(document) for document in self._task.task_docs]
        self.items = named(documents)
        self.few_shot = int(self._task.config.num_fewshot or 0)
        self._examples = _DrawnExamples(getattr(self._task, "sampler", None), documents)
        self._task.sampler = self._examples
        self._filter: str = self._task._filters[0].name
        self._metric = ""

    @property
    def metric(self) -> str:
        """``metric,filter``: ``acc_norm`` where the task reports it, else its first metric; known after an answer."""
        return CODE_METRIC if self._code else f"{self._metric},{self._filter}"

    def requests(self, position: int) -> list[Any]:
        """The harness's requests (``Instance``) for one item."""
        document = self.items[position].document
        self._examples.position = position
        context = self._task.fewshot_context(
            document, num_fewshot=self.few_shot, gen_prefix=self._task.doc_to_prefix(document)
        )
        metadata = (self._task.config.task, position, self._task.config.repeats)
        asked = self._task.construct_requests(doc=document, ctx=context, metadata=metadata)
        return asked if isinstance(asked, list) else [asked]

    def answer(self, position: int, requests: Sequence[Any]) -> float:
        """What the answers in the requests' ``resps`` are worth, in [0, 1].

        Raises:
            DatasetError: when the metric lies outside.
        """
        document = self.items[position].document
        if self._code:
            return score_program(document, requests[0].resps[0])
        self._task._filters[0].apply(requests)
        scores = self._task.process_results(document, [request.filtered_resps[self._filter] for request in requests])
        self._metric = self._metric or ("acc_norm" if "acc_norm" in scores else next(iter(scores)))
        value = float(scores[self._metric])
        if not 0.0 <= value <= 1.0:
            raise DatasetError(
                f"accuracy must lie in [0, 1], got {self._metric} {value:g} of {self._name}; choose another task"
            )
        return value


class _DrawnExamples:
    """The harness's sampler, its draws kept by the items' places."""

    def __init__(self, sampler: Any, documents: Sequence[dict[str, Any]]) -> None:
        self._sampler, self._documents = sampler, documents
        self._draws: list[list[Any]] = []
        self.position = 0

    def sample(self, n: int, eval_doc: Any = None) -> list[Any]:
        """The examples of the item at ``position``; ``eval_doc`` says that they are drawn among the items."""
        while len(self._draws) <= self.position:
            asked = None if eval_doc is None else self._documents[len(self._draws)]
            self._draws.append(list(self._sampler.sample(n=n, eval_doc=asked)))
        return self._draws[self.position]
