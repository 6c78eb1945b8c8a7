"""The sub-agents that heal: each finds what is worth healing, weighs its options, and runs the best as an episode.

They compute nothing themselves: an option is a strategy whose stages are the registered methods ``lora``, ``qlora`` and
``distill``; the methods say what a stage takes, the optimizer what it brings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from agentic_compression.agent.costs import estimate_item
from agentic_compression.agent.desk import Desk
from agentic_compression.agent.episodes import run_strategy
from agentic_compression.agent.outlook import expectations, loss_of, outlook_of, proportions
from agentic_compression.agent.plan import Option
from agentic_compression.methods.estimates import Estimate, infeasible_reason, workload_of
from agentic_compression.planning.greybox.features import bits_of
from agentic_compression.planning.grid import canonical
from agentic_compression.planning.seeds import seed_strategies
from agentic_compression.records import EpisodeRecord, Expected, ModelSpec, Stage, Strategy

__all__ = ["DistillationAgent", "HealingAgent", "LoraAgent"]

_BASES = 3
_SHOWN = 5
_MERIT_WORTH_WAITING = 0.02  # what a longer training must be expected to add before its time is taken
_FEW_BITS = 3.5
_LINEAR_BY_MODEL = ("pruning", "low_rank")


class HealingAgent(ABC):
    """Heals what other stages broke.

    Attributes:
        name: of the agent.
        target: what it heals, in words.
    """

    name: str
    target: str

    @abstractmethod
    def bases(self, desk: Desk) -> Iterator[tuple[Strategy, int]]:
        """Strategies of the space that could be healed before anything is measured, the place of healing with each."""

    @abstractmethod
    def place(self, desk: Desk, strategy: Strategy) -> int | None:
        """After how many stages of a strategy this agent would heal; None where it would not."""

    @abstractmethod
    def stages(self, desk: Desk) -> Iterator[Stage]:
        """The configurations to weigh."""

    @abstractmethod
    def trainable(self, spec: ModelSpec, stage: Stage) -> int:
        """Values that a stage trains."""

    def options(self, desk: Desk, records: Sequence[EpisodeRecord]) -> tuple[Option, ...]:
        """What could be done now, the best first: the cheapest of those that are expected to serve the wish best.

        Left out: what was tried, what the space refuses, what does not fit into memory, the episode's time limit or
        what is left of the budgets.

        Args:
            desk: of the study.
            records: of the study, those that may be compared.
        """
        pairs = [
            (base, Strategy(stages=(*base.stages[:at], stage, *base.stages[at:])), stage)
            for base, at in self._worth_healing(desk, records)
            for stage in self.stages(desk)
        ]
        space = desk.healing_space
        legal = [pair for pair in pairs if space.problem_with(pair[1]) is None]
        every = {strategy.key: strategy for base, healed, _ in legal for strategy in (base, healed)}
        expected = expectations(desk, list(every.values()), records)
        found = [
            option
            for base, healed, stage in legal
            if desk.record_of(healed) is None and (option := self._option(desk, records, base, healed, stage, expected))
        ]
        return tuple(_ranked(found)[:_SHOWN])

    def run(self, desk: Desk, option: Option, expected: Expected) -> EpisodeRecord:
        """Measure an option in the study."""
        rationale = f"{self.name} sub-agent: heals {option.base}; trains {option.trainable:,} values"
        if option.recovery is not None:
            rationale += f"; expected to bring back {100 * option.recovery:.2f} points of accuracy"
        return run_strategy(desk, option.strategy, source=f"agent:{self.name}", rationale=rationale, expected=expected)

    def _worth_healing(self, desk: Desk, records: Sequence[EpisodeRecord]) -> list[tuple[Strategy, int]]:
        """The best that was measured and can be healed; where there is none, what the seeds would try."""
        baseline = desk.baseline(records)
        measured = [
            (loss_of(proportions(record.objectives, baseline), desk.wish.weights), record.strategy, at)
            for record in records
            if record.status == "succeeded" and record.objectives is not None and baseline is not None
            if (at := self.place(desk, record.strategy)) is not None
        ]
        measured.sort(key=lambda entry: (entry[0], entry[1].key))
        plain = [(canonical(desk.healing_space, strategy), at) for _, strategy, at in measured]
        chosen = [pair for pair in plain if self._can_heal(desk, *pair)]
        return (chosen or [pair for pair in self.bases(desk) if self._can_heal(desk, *pair)])[:_BASES]

    def _can_heal(self, desk: Desk, base: Strategy, at: int) -> bool:
        """Whether the space takes one of the stages there."""
        healed = (Strategy(stages=(*base.stages[:at], stage, *base.stages[at:])) for stage in self.stages(desk))
        return any(desk.healing_space.problem_with(strategy) is None for strategy in healed)

    def _option(
        self,
        desk: Desk,
        records: Sequence[EpisodeRecord],
        base: Strategy,
        healed: Strategy,
        stage: Stage,
        expected: dict[str, Expected],
    ) -> Option | None:
        said = expected.get(canonical(desk.healing_space, healed).key)
        estimate = estimate_item(desk, healed, records)
        if said is None or not _affordable(desk, estimate.compress_seconds, estimate.seconds, estimate.grams):
            return None
        if desk.config.evaluation.device in {"auto", "cpu"} and infeasible_reason(
            Estimate(estimate.peak_bytes, estimate.compress_seconds)
        ):
            return None
        baseline = desk.baseline(records)
        outlook = outlook_of(desk, said, baseline)
        before = self._drop(desk, records, base, expected)
        return Option(
            strategy=healed,
            base=desk.space.brief(base),
            trainable=self.trainable(desk.spec, stage),
            recovery=None if before is None else before - outlook.accuracy_drop[0],
            estimate=estimate.model_copy(update={"outlook": outlook}),
        )

    def _drop(
        self, desk: Desk, records: Sequence[EpisodeRecord], base: Strategy, expected: dict[str, Expected]
    ) -> float | None:
        """What the base loses: measured, else expected."""
        baseline, record = desk.baseline(records), desk.record_of(base, records)
        if record is not None and record.objectives is not None and baseline is not None:
            return baseline.accuracy - record.objectives.accuracy
        said = expected.get(canonical(desk.healing_space, base).key)
        return outlook_of(desk, said, baseline).accuracy_drop[0] if said else None


class LoraAgent(HealingAgent):
    """Heals pruned and low-rank models with low-rank corrections that are merged into the weights."""

    name, target = "lora", "the best pruned or low-rank model"

    def bases(self, desk: Desk) -> Iterator[tuple[Strategy, int]]:
        """Seeds that prune."""
        for strategy, _ in seed_strategies(desk.space, limit=64):
            if (at := self.place(desk, strategy)) is not None:
                yield strategy, at

    def place(self, desk: Desk, strategy: Strategy) -> int | None:
        """Behind the last stage that prunes or factorizes, if nothing healed yet."""
        kinds = _categories(desk, strategy)
        if "healing" in kinds or not any(kind in _LINEAR_BY_MODEL for kind in kinds):
            return None
        return max(at for at, kind in enumerate(kinds, start=1) if kind in _LINEAR_BY_MODEL)

    def stages(self, desk: Desk) -> Iterator[Stage]:
        """Ranks and lengths of training."""
        yield from _grid(desk, "lora", rank=(8, 16, 32), steps=(100, 300, 1000))

    def trainable(self, spec: ModelSpec, stage: Stage) -> int:
        """Both factors of every correction."""
        return _factors(spec) * int(stage.parameters.get("rank", 16))


class DistillationAgent(HealingAgent):
    """Heals models of two or three bits: distilled on their grid by the uncompressed model, or with adapters beside.

    The teacher is the uncompressed model, which both methods load themselves.
    """

    name, target = "distillation", "the best model of 2 to 3 bits"

    def bases(self, desk: Desk) -> Iterator[tuple[Strategy, int]]:
        """Seeds of few bits."""
        for strategy, _ in seed_strategies(desk.space, limit=64):
            if (at := self.place(desk, strategy)) is not None:
                yield strategy, at

    def place(self, desk: Desk, strategy: Strategy) -> int | None:
        """At the end, where the last stage stores at most 3 bits and a half."""
        if not strategy.stages or "healing" in _categories(desk, strategy):
            return None
        bits = bits_of(desk.healing_space.complete(strategy).stages[-1])
        return len(strategy.stages) if bits is not None and bits <= _FEW_BITS else None

    def stages(self, desk: Desk) -> Iterator[Stage]:
        """Distillation with and without text of the teacher's own, and adapters."""
        yield from _grid(desk, "distill", steps=(100, 300, 1000), generated=(0.0, 0.25))
        yield from _grid(desk, "qlora", rank=(8, 16), steps=(100, 300))

    def trainable(self, spec: ModelSpec, stage: Stage) -> int:
        """All weights of the linears, or both factors of every adapter."""
        if stage.method == "qlora":
            return _factors(spec) * int(stage.parameters.get("rank", 8))
        return workload_of(spec).linear_parameters


def _grid(desk: Desk, method: str, **values: tuple[float, ...]) -> Iterator[Stage]:
    """Every combination of values, where the method is on offer; values that its range does not hold are left out."""
    described = next((item for item in desk.space.offered if item.name == method), None)
    if described is None:
        return
    combinations: list[dict[str, float]] = [{}]
    for name, wanted in values.items():
        parameter = described.parameter(name)
        allowed = [value for value in wanted if parameter is not None and parameter.problem_with(value) is None]
        combinations = [{**held, name: value} for held in combinations for value in allowed]
    for combination in combinations:
        yield Stage.model_validate({"method": method, "parameters": combination})


def _categories(desk: Desk, strategy: Strategy) -> list[str]:
    found = (desk.space.method(stage.method) for stage in strategy.stages)
    return [method.category if method else "" for method in found]


def _factors(spec: ModelSpec) -> int:
    """Inputs and outputs of all linears together, from the model's shape: what one rank of corrections takes."""
    work = workload_of(spec)
    head = spec.head_dim or (work.hidden // spec.heads if spec.heads else 0)
    queries = (spec.heads or 0) * head or work.hidden
    keys = (spec.kv_heads or spec.heads or 0) * head or work.hidden
    attention = 2 * (work.hidden + queries) + 2 * (work.hidden + keys)
    matrices = 2 if spec.gated is False else 3
    return work.blocks * (attention + matrices * (work.hidden + (spec.intermediate_size or round(8 * work.hidden / 3))))


def _affordable(desk: Desk, compress_seconds: float, seconds: float, grams: float) -> bool:
    left, time_left = desk.grams_left, desk.seconds_left
    within = compress_seconds <= desk.config.episode_timeout_s
    return within and (left is None or grams <= left) and (time_left is None or seconds <= time_left)


def _ranked(options: Sequence[Option]) -> list[Option]:
    """By merit; among those that are about as good as the best, the quickest first."""
    merits = {id(option): option.estimate.outlook.merit if option.estimate.outlook else 0.0 for option in options}
    best = max(merits.values(), default=0.0)
    good = [option for option in options if merits[id(option)] >= best - _MERIT_WORTH_WAITING]
    rest = [option for option in options if merits[id(option)] < best - _MERIT_WORTH_WAITING]
    return sorted(good, key=lambda option: option.estimate.seconds) + sorted(rest, key=lambda o: -merits[id(o)])
