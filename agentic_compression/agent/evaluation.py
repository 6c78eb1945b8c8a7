"""The sub-agent that judges: finalists beside the baseline on the same items, and which of them serves the wish."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from agentic_compression.agent.desk import Desk
from agentic_compression.agent.outlook import loss_of, proportions
from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.comparison import compare_evaluations
from agentic_compression.records import Comparison, Evaluation, FrontierDocument, Record, Report, Solution

__all__ = ["EvaluationAgent", "Judgement", "best_solution"]

_FINALISTS = 3


class Judgement(Record):
    """A finalist and what can be said of it."""

    episode: int
    strategy: str
    meets_constraints: bool
    loss: float = Field(description="weighted by the wish; lower is better")
    measured: dict[str, float] = Field(description="in proportion to the baseline, on the report items where asked")
    comparison: Comparison | None = None
    verdict: str


class EvaluationAgent:
    """Compares the frontier's best with the baseline; everything it needs was measured, so it costs next to nothing."""

    name = "evaluation"

    def judge(self, desk: Desk, document: FrontierDocument) -> tuple[Judgement, ...]:
        """The best members of the frontier, the one that serves the wish best first.

        Args:
            desk: of the study.
            document: its frontier.
        """
        if document.baseline is None:
            return ()
        finalists = _by_wish(desk, document)[:_FINALISTS]
        first = self._evaluation(desk, 0)
        return tuple(self._judgement(desk, document, solution, first) for solution in finalists)

    def _judgement(
        self, desk: Desk, document: FrontierDocument, solution: Solution, first: Evaluation | None
    ) -> Judgement:
        assert document.baseline is not None
        second = self._evaluation(desk, solution.episode)
        compared, told = None, "no items were asked of both, so there is no paired verdict"
        if first is not None and second is not None and first.split == second.split:
            names = ("baseline", f"episode {solution.episode}")
            weights = {task.name: task.weight for task in desk.dataset.tasks}
            try:
                compared = compare_evaluations(first, second, names=names, weights=weights, seed=desk.config.seed)
                told = compared.summary
            except DatasetError as error:
                told = f"no paired verdict: {error}"
        kept = "satisfies the constraints" if solution.meets_constraints else "breaks a constraint"
        values = proportions(solution.objectives, document.baseline)
        return Judgement(
            episode=solution.episode,
            strategy=solution.strategy,
            meets_constraints=solution.meets_constraints,
            loss=loss_of(values, desk.wish.weights),
            measured=values,
            comparison=compared,
            verdict=f"{kept}; {told}",
        )

    def _evaluation(self, desk: Desk, episode: int) -> Evaluation | None:
        """As recorded, on the report items where they were asked."""
        history, study = desk.bench.history, desk.config.name
        evaluation, report = history.evaluation(study, episode), history.report(study, episode)
        return _on_report_items(evaluation, report) if evaluation is not None and report is not None else evaluation


def best_solution(desk: Desk, document: FrontierDocument) -> Solution | None:
    """The compressed member of the frontier that serves the wish best among those that satisfy the constraints."""
    return next((item for item in _by_wish(desk, document) if item.meets_constraints), None)


def _by_wish(desk: Desk, document: FrontierDocument) -> Sequence[Solution]:
    baseline = document.baseline
    if baseline is None:
        return ()
    compressed = [item for item in document.solutions if item.episode > 0]
    return sorted(
        compressed,
        key=lambda item: (
            not item.meets_constraints,
            loss_of(proportions(item.objectives, baseline), desk.wish.weights),
            item.episode,
        ),
    )


def _on_report_items(evaluation: Evaluation, report: Report) -> Evaluation:
    changes = {"accuracy": report.accuracy, "benchmarks": report.benchmarks, "divergence": report.divergence}
    return evaluation.model_copy(update={**changes, "split": "report"})
