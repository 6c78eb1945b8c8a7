"""The measurements of one loaded checkpoint, each taken once and only when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from agentic_compression.errors import ModelError
from agentic_compression.evaluation.divergence import held_out_texts, measure_divergence
from agentic_compression.evaluation.energy import EnergyCounter, select_counter
from agentic_compression.evaluation.energy_requests import (
    RequestEnergy,
    counts_single_requests,
    energy_measurement,
    measure_energy,
)
from agentic_compression.evaluation.environment import resolve_device, resolve_threads
from agentic_compression.evaluation.grid import GridFactor, grid_factor
from agentic_compression.evaluation.item_scorer import ItemScorer
from agentic_compression.evaluation.items import Item
from agentic_compression.evaluation.language_modelling import (
    encode_documents,
    perplexity_of,
    read_texts,
    score_documents,
    within_budget,
)
from agentic_compression.evaluation.latency import glance_at, latency_of, time_requests
from agentic_compression.evaluation.memory_in_waiting import MemoryInWaiting
from agentic_compression.evaluation.performance import Serving, measure_serving
from agentic_compression.evaluation.quality import Choose, choose_by_limit, combine, score_chosen
from agentic_compression.evaluation.request import EvaluationRequest, engine_of
from agentic_compression.evaluation.split import on_side, unsplit_warning
from agentic_compression.evaluation.teacher_cache import (
    TeacherLogits,
    TeacherSettings,
    read_teacher,
    teacher_key,
    teacher_logits,
)
from agentic_compression.evaluation.workload import Workload, build_workload, check_finite
from agentic_compression.progress import Progress
from agentic_compression.records import (
    BenchmarkScore,
    CheckpointRef,
    Divergence,
    EnergyMeasurement,
    Estimate,
    LatencyMeasurement,
    MemoryMeasurement,
    Perplexity,
    Report,
    ScreeningPlan,
    Split,
)
from agentic_compression.runtimes import Runtime, open_runtime

__all__ = ["Measuring", "measure_perplexity", "side_chooser"]

_FLOOR = 0.8


class Measuring:
    """A loaded checkpoint under measurement; a ``rungs.Candidate``."""

    def __init__(
        self, runtime: Runtime, request: EvaluationRequest, memory: MemoryInWaiting, progress: Progress
    ) -> None:
        """Measure with ``runtime`` what ``request`` asks.

        Args:
            runtime: the checkpoint; it must stay open.
            request: items, settings, split.
            memory: waits to measure the checkpoint's memory.
            progress: told about every repetition and batch.
        """
        self._runtime, self._request, self._waiting, self._progress = runtime, request, memory, progress
        self._ready: tuple[Workload, EnergyCounter] | None = None
        self._served: tuple[LatencyMeasurement, RequestEnergy] | None = None
        self._memory: MemoryMeasurement | None = None
        self._divergence: Divergence | None = None
        self._diverged = False
        self._scorer: ItemScorer | None = None
        self._places: dict[str, dict[str, int]] = {}

    @property
    def size_gb(self) -> float:
        """Bytes that must be shipped, in GB."""
        return self._request.checkpoint.size_bytes / 1e9

    @property
    def memory_floor_gb(self) -> float:
        """What memory cannot be below: most of the file or of the loaded weights, whichever is smaller."""
        return _FLOOR * min(self._request.checkpoint.size_bytes, self._runtime.memory().weights_bytes) / 1e9

    @property
    def weights_gb(self) -> float:
        """Of the weights as loaded."""
        return self._runtime.memory().weights_bytes / 1e9

    @property
    def engine(self) -> str:
        """As ``engine_of`` names it."""
        return engine_of(self._request.checkpoint)

    @property
    def vocabulary(self) -> int:
        """Tokens."""
        return self._runtime.vocabulary

    def glance(self) -> tuple[float, float]:
        """The least ms and grams CO2e of three requests; no grams from a counter that is too coarse for one request."""
        workload, counter = self._prepared()
        runs = glance_at(self._runtime, workload, counter)
        if not counts_single_requests(counter):
            return min(runs.request_ms), 0.0
        energy = energy_measurement(RequestEnergy(counter, tuple(runs.joules)), self._request, self._grid(), 0.0)
        return min(runs.request_ms), energy.co2_grams_per_1000_requests.low

    def glance_at_memory(self) -> float:
        """GB of the first repetition."""
        return self._waiting.glance() / 1e9

    def serve(self) -> tuple[Estimate, Estimate]:
        """Latency in ms and grams CO2e of the fixed workload."""
        return self.latency().request_ms, self.energy(0.0).co2_grams_per_1000_requests

    def remember(self) -> Estimate:
        """Memory in GB."""
        peak = self.memory().peak_growth_bytes
        return peak.model_copy(
            update={
                "value": peak.value / 1e9,
                "low": peak.low / 1e9,
                "high": peak.high / 1e9,
                "spread": peak.spread / 1e9,
            }
        )

    def diverge(self) -> Estimate | None:
        """Nats a token from the teacher; None without one."""
        divergence = self.divergence()
        return divergence.kl if divergence else None

    def answer(self, items: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of items named by task and id."""
        wanted: dict[str, list[int]] = {}
        for task, name in items:
            wanted.setdefault(task, []).append(self._place(task, name))
        answers = self.scorer().score_all(wanted)
        value = {
            (task, position): answer.value
            for task, positions in wanted.items()
            for position, answer in zip(positions, answers[task], strict=True)
        }
        return [value[task, self._place(task, name)] for task, name in items]

    def latency(self) -> LatencyMeasurement:
        """Of the fixed workload."""
        return self._serve()[0]

    def serving(self) -> Serving:
        """Several requests at once, and the rates beside the machine's ceilings."""
        runtime, settings = self._runtime, self._request.settings
        workload, ceilings = build_workload(runtime, settings), Path(self._request.store_root) / "ceilings"
        return measure_serving(runtime, workload, self.latency(), settings, self._progress, ceilings)

    def energy(self, total_joules: float) -> EnergyMeasurement:
        """Of the fixed workload; ``total_joules`` is what the evaluation has taken."""
        return energy_measurement(self._serve()[1], self._request, self._grid(), total_joules)

    def memory(self) -> MemoryMeasurement:
        """Of fresh processes that load and serve the checkpoint."""
        if self._memory is None:
            self._memory = self._waiting.measure(self._progress)
        return self._memory

    def scorer(self) -> ItemScorer:
        """The tasks, built once."""
        if self._scorer is None:
            request = self._request
            self._scorer = ItemScorer(
                self._runtime, request.dataset, request.settings, request.tasks_dir, self._progress
            )
        return self._scorer

    def items(self) -> dict[str, tuple[str, ...]]:
        """Ids by task that this evaluation asks; empty where a task is plain text, which is not asked in portions."""
        if any(task.kind == "text" for task in self._request.dataset.tasks):
            return {}
        choose = side_chooser(self._request, self._request.split)
        listed = {task: self.scorer().items(task) for task in self.scorer().tasks}
        chosen = {task: [items[position].id for position in choose(task, items)] for task, items in listed.items()}
        return {task: tuple(names) for task, names in chosen.items() if names}

    def scores(self, split: Split) -> tuple[BenchmarkScore, ...]:
        """Every task on one side of the split; what was asked already is not asked again."""
        return score_chosen(self.scorer(), self._request.settings, side_chooser(self._request, split))

    def perplexity(self) -> Perplexity | None:
        """On held-out text."""
        return measure_perplexity(self._runtime, self._request, self._progress)

    def divergence(self) -> Divergence | None:
        """From the teacher on cached text; None without a teacher, without text, or with other tokens than its."""
        if self._divergence is None and self._request.teacher is not None and not self._diverged:
            self._diverged = True
            teacher = self._teacher(self._request.teacher)
            if teacher is not None:
                with suppress(ModelError):  # other tokens: nothing can be compared, and nothing is wrong
                    settings = self._request.settings
                    self._divergence = measure_divergence(
                        self._runtime, teacher, self._progress, seed=settings.seed, batch_size=settings.batch_size
                    )
        return self._divergence

    def teach(self) -> None:
        """Keep this checkpoint's own next-token distributions for the candidates that follow."""
        texts = held_out_texts(self._request.dataset)
        if texts:
            self._distributions(self._runtime, texts, self._request.checkpoint.digest)

    def report(self) -> Report:
        """Quality on the side that no plan has seen."""
        started = time.perf_counter()
        request = self._request
        scores = self.scores("report")
        warnings = [
            unsplit_warning(task, self._texts(task), request.settings.seed, request.report_share)
            for task in self.scorer().tasks
        ]
        return Report(
            accuracy=combine(scores, request.dataset),
            benchmarks=scores,
            divergence=self._divergence,
            warnings=tuple(warning for warning in warnings if warning),
            seconds=time.perf_counter() - started,
        )

    def _teacher(self, teacher: CheckpointRef) -> TeacherLogits | None:
        """Cached when the baseline was measured; made again, with the teacher loaded beside, where that is lost."""
        texts = held_out_texts(self._request.dataset)
        if not texts:
            return None
        cached = read_teacher(self._request.store_root, teacher_key(teacher.digest, texts, self._teaching()))
        if cached is not None:
            return cached
        settings = self._request.settings
        with closing(open_runtime(teacher.path, resolve_device(settings.device), resolve_threads(settings))) as runtime:
            return self._distributions(runtime, texts, teacher.digest)

    def _distributions(self, runtime: Runtime, texts: list[str], digest: str) -> TeacherLogits:
        return teacher_logits(runtime, texts, self._teaching(), self._request.store_root, digest, self._progress)

    def _teaching(self) -> TeacherSettings:
        plan = self._request.screening or ScreeningPlan()
        return TeacherSettings(sequences=plan.sequences)

    def _texts(self, task: str) -> list[str]:
        items = self.scorer().items(task)
        limited = choose_by_limit(self._request.settings)(task, items)
        return [items[position].text for position in limited]

    def _serve(self) -> tuple[LatencyMeasurement, RequestEnergy]:
        if self._served is None:
            runtime, settings = self._runtime, self._request.settings
            workload, counter = self._prepared()
            runs = time_requests(runtime, workload, counter, settings, self._progress)
            latency = latency_of(runs, settings, runtime)
            self._served = latency, measure_energy(runtime, workload, counter, runs.joules)
        return self._served

    def _prepared(self) -> tuple[Workload, EnergyCounter]:
        """The workload, which the model answers with finite numbers, and what counts its energy."""
        if self._ready is None:
            runtime, request = self._runtime, self._request
            workload = build_workload(runtime, request.settings)
            check_finite(runtime, workload.prompt)
            counter = select_counter(
                runtime.device, request.cpu_watts_per_core, tree=False, gpu_watts=request.gpu_watts
            )
            self._ready = workload, counter
        return self._ready

    def _grid(self) -> GridFactor:
        request = self._request
        return grid_factor(request.grid_country, request.grid_grams_per_kwh, request.grid_region)

    def _place(self, task: str, name: str) -> int:
        if task not in self._places:
            self._places[task] = {item.id: position for position, item in enumerate(self.scorer().items(task))}
        return self._places[task][name]


def side_chooser(request: EvaluationRequest, split: Split) -> Choose:
    """The items of a side: the limit applies first, then the split divides what it left."""
    limited = choose_by_limit(request.settings)

    def choose(task: str, items: Sequence[Item]) -> list[int]:
        positions = limited(task, items)
        texts = [items[position].text for position in positions] if split != "all" else [""] * len(positions)
        return [positions[place] for place in on_side(texts, split, request.settings.seed, request.report_share)]

    return choose


def measure_perplexity(runtime: Runtime, request: EvaluationRequest, progress: Progress) -> Perplexity | None:
    """Perplexity over the held-out text, or over a text task's own documents where there is no other."""
    dataset, settings = request.dataset, request.settings
    path = dataset.perplexity_path or next((task.path for task in dataset.tasks if task.kind == "text"), None)
    if path is None:
        return None
    windows = encode_documents(runtime, list(read_texts(path).values()))
    windows = within_budget(windows, settings.perplexity_tokens)
    if not windows:
        return None
    return perplexity_of(score_documents(runtime, windows, settings.batch_size, progress), settings.seed)
