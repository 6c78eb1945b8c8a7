"""Ask a dataset's items, one portion after another: tasks are built once, no item is asked twice.

An item's prompt depends on its place in its task alone, never on what else is asked, so that two models which are asked
different portions saw the same prompts wherever these overlap.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentic_compression.errors import AcfError, DatasetError, UsageError
from agentic_compression.evaluation.harness import harness_model, quiet_harness
from agentic_compression.evaluation.harness_items import HarnessItems
from agentic_compression.evaluation.intervals import bootstrap_ratio, proportion
from agentic_compression.evaluation.items import Item, ItemAnswer
from agentic_compression.evaluation.text_items import TextItems
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import BenchmarkScore, DatasetSpec, EvaluationSettings, content_digest
from agentic_compression.runtimes import Runtime

__all__ = ["ItemScorer", "harness_version"]


def harness_version() -> str:
    """``lm-eval 0.4.13``."""
    return f"lm-eval {importlib.metadata.version('lm-eval')}"


class ItemScorer:
    """A loaded checkpoint and the items to ask it::

        scorer = ItemScorer(runtime, dataset, settings, tasks_dir)
        items = scorer.items("arc_easy")
        scorer.score("arc_easy", [0, 5, 9])           # asks three items
        scorer.benchmark_score("arc_easy", range(10))  # asks the other seven

    Args:
        runtime: the checkpoint; it must stay open.
        dataset: tasks with absolute paths.
        settings: batch size and seed; the item limit is the caller's affair.
        tasks_dir: folder of the two templates.
        progress: told after every batch.

    Raises:
        DatasetError: when a task cannot be built.
        UnavailableError: when a task runs code and nothing here can confine that.
    """

    def __init__(
        self,
        runtime: Runtime,
        dataset: DatasetSpec,
        settings: EvaluationSettings,
        tasks_dir: str,
        progress: Progress = no_progress,
    ) -> None:
        self._runtime, self._settings, self._progress = runtime, settings, progress
        self._sources: dict[str, HarnessItems | TextItems] = {}
        self._answers: dict[str, dict[int, ItemAnswer]] = defaultdict(dict)
        self._model: Any = None
        with quiet_harness() if any(task.kind != "text" for task in dataset.tasks) else contextlib.nullcontext():
            for task in dataset.tasks:
                if task.kind == "text":
                    self._sources[task.name] = TextItems(task, runtime)
                else:
                    self._sources[task.name] = HarnessItems(task, tasks_dir, runtime)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the dataset's order."""
        return tuple(self._sources)

    def items(self, task: str) -> list[Item]:
        """A task's items; positions count in this order."""
        return self._sources[task].items

    def tokens(self, task: str, position: int) -> int:
        """How many scored tokens a text has; 0 for a question."""
        source = self._sources[task]
        return source.tokens(position) if isinstance(source, TextItems) else 0

    def score(self, task: str, positions: Sequence[int]) -> list[ItemAnswer]:
        """Answers of some items of one task, in the order of ``positions``; see ``score_all``."""
        return self.score_all({task: positions})[task]

    def score_all(self, chosen: Mapping[str, Sequence[int]]) -> dict[str, list[ItemAnswer]]:
        """Answers of some items of several tasks; what was asked before is not asked again.

        Raises:
            UsageError: when a position is not one of the task's.
            DatasetError: when an item cannot be asked.
            CompressionError: when the model's likelihoods are not numbers.
            MemoryError: when not even one item fits.
        """
        wanted = {task: self._unanswered(task, positions) for task, positions in chosen.items()}
        questions = {
            task: (source, wanted[task])
            for task in chosen
            if isinstance(source := self._sources[task], HarnessItems) and wanted[task]
        }
        if questions:
            with quiet_harness(), _explained(questions):
                self._ask(questions)
        for task in chosen:
            source = self._sources[task]
            if isinstance(source, TextItems) and wanted[task]:
                answers = source.answers(wanted[task], self._runtime, self._settings.batch_size, self._progress)
                self._answers[task].update(zip(wanted[task], answers, strict=True))
        return {task: [self._answers[task][position] for position in chosen[task]] for task in chosen}

    def benchmark_score(self, task: str, positions: Sequence[int]) -> BenchmarkScore:
        """One task's score over some of its items, in ascending order; asks what has not been asked.

        Raises:
            UsageError: when there is no position or one is not the task's.
        """
        order = sorted(set(positions))
        if not order:
            raise UsageError(f"a score of {task!r} needs one item or more, got none; choose some")
        answers, source, items = self.score(task, order), self._sources[task], self.items(task)
        names = tuple(items[position].id for position in order)
        if isinstance(source, TextItems):
            return _text_score(task, answers, names, self._settings)
        values = [answer.value for answer in answers]
        binary = all(value in (0.0, 1.0) for value in values)
        outcomes = tuple(int(value) for value in values) if binary else ()
        limits = [answer.answer_tokens for answer in answers if answer.answer_tokens is not None]
        return BenchmarkScore(
            task=task,
            metric=source.metric,
            score=proportion(outcomes) if binary else bootstrap_ratio(values, [1.0] * len(values), self._settings.seed),
            few_shot=source.few_shot,
            harness=harness_version(),
            items_digest=content_digest(list(names)),
            outcomes=outcomes,
            values=() if binary else tuple(values),
            items=names,
            truncated=sum(answer.truncated for answer in answers),
            answer_tokens=min(limits, default=None),
        )

    def _unanswered(self, task: str, positions: Sequence[int]) -> list[int]:
        if task not in self._sources:
            raise UsageError(f"a task must be one of {', '.join(self._sources)}, got {task!r}")
        total = len(self._sources[task].items)
        if wrong := [position for position in positions if not 0 <= position < total]:
            raise UsageError(f"positions of {task!r} must lie in 0 … {total - 1}, got {wrong[0]}")
        return sorted(set(positions) - self._answers[task].keys())

    def _ask(self, questions: Mapping[str, tuple[HarnessItems, list[int]]]) -> None:
        """Ask the model for all requests of a kind at once, so that items of several tasks share batches."""
        if self._model is None:
            self._model = harness_model(self._runtime, self._settings.batch_size, self._progress)
        asked = {
            (task, position): source.requests(position)
            for task, (source, positions) in questions.items()
            for position in positions
        }
        kinds: dict[str, list[Any]] = defaultdict(list)
        for requests in asked.values():
            for request in requests:
                kinds[request.request_type] += [request] * request.repeats
        cut: dict[int, bool] = {}
        tokens: dict[int, int | None] = {}
        for kind, requests in kinds.items():
            for number, answer in enumerate(getattr(self._model, kind)(requests)):
                requests[number].resps.append(answer)
                cut[id(requests[number])] = self._model.cut[number]
                tokens[id(requests[number])] = self._model.answer_tokens[number]
        for (task, position), requests in asked.items():
            self._answers[task][position] = ItemAnswer(
                value=questions[task][0].answer(position, requests),
                truncated=any(cut[id(request)] for request in requests),
                answer_tokens=tokens[id(requests[0])],
                said=tuple(_said(answer) for request in requests for answer in request.resps),
            )


def _said(answer: Any) -> str | float:
    """A generated text, or the log-likelihood of ``(log-likelihood, is greedy)``."""
    return answer if isinstance(answer, str) else float(answer[0])


def _text_score(
    task: str, answers: Sequence[ItemAnswer], names: tuple[str, ...], settings: EvaluationSettings
) -> BenchmarkScore:
    """Next-token top-1 accuracy; the interval resamples documents, the outcomes are tokens."""
    tokens = tuple(len(answer.hits) for answer in answers)
    return BenchmarkScore(
        task=task,
        metric="next_token_top1",
        score=bootstrap_ratio([sum(answer.hits) for answer in answers], tokens, settings.seed),
        harness="agentic_compression next-token prediction",
        items_digest=content_digest([list(names), settings.perplexity_tokens]),
        outcomes=tuple(hit for answer in answers for hit in answer.hits),
        groups=tokens,
        items=names,
    )


@contextlib.contextmanager
def _explained(names: Mapping[str, Any]) -> Iterator[None]:
    """What the harness raises for an item that it cannot ask, as an error of the dataset."""
    try:
        yield
    except (AcfError, MemoryError):
        raise
    except (KeyError, IndexError, ValueError, TypeError, AssertionError) as error:
        raise DatasetError(
            f"the harness could not ask {', '.join(names)}: {type(error).__name__}: {error}; "
            "check the items and the context"
        ) from error
