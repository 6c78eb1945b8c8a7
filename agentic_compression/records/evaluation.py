"""Measurements: every number carries n, spread, its source and whether it was measured or estimated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record

__all__ = [
    "BenchmarkScore",
    "CheckpointRef",
    "EnergyMeasurement",
    "Environment",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "LatencyMeasurement",
    "MemoryMeasurement",
    "Objectives",
    "Perplexity",
]

EnergySource = Literal["measured", "estimated"]


class Estimate(Record):
    """A number with its uncertainty: a 95 % interval from ``n`` observations."""

    value: float
    low: float
    high: float
    n: int = Field(ge=1)
    spread: float = Field(default=0.0, ge=0, description="standard deviation of the observations")


class Objectives(Record):
    """The five objectives. Accuracy goes up, the other four down."""

    accuracy: float = Field(ge=0, le=1, description="fraction correct, weighted mean over tasks")
    latency_ms: float = Field(ge=0, description="median milliseconds of one request of the fixed workload")
    memory_gb: float = Field(
        ge=0, description="GB (1e9 bytes) a fresh process grows by to load and run the checkpoint, at its peak"
    )
    model_size_gb: float = Field(ge=0, description="GB (1e9 bytes) on disk of what must be shipped")
    co2_grams: float = Field(ge=0, description="grams CO2e of 1,000 requests of the fixed workload")


class Environment(Record):
    """Where a number was measured."""

    device: str
    cpu: str = ""
    cores: int = 0
    threads: int = 0
    memory_total_gb: float = 0.0
    python: str = ""
    platform: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    runtime: str = Field(default="transformers", description="what ran the model: transformers, llama.cpp or vllm")


class CheckpointRef(Record):
    """A stored checkpoint; the folder is the only copy."""

    path: str = Field(description="absolute folder")
    digest: str = Field(description="content digest of what must be shipped")
    size_bytes: int = Field(gt=0, description="bytes on disk of what must be shipped")
    strategy_key: str
    loads_with: tuple[str, ...] = Field(default=("transformers",), description="runtimes that can load it")
    shared: bool = Field(default=False, description="the user's own folder (the baseline): never deleted")


class EvaluationSettings(Record):
    """How a checkpoint is measured; the same for every episode of a study."""

    limit: int | None = Field(
        default=None, ge=1, description="items a task, the first of a seeded shuffle; all when None"
    )
    batch_size: int = Field(default=64, ge=1)
    prompt_tokens: int = Field(default=64, ge=1, description="fixed prompt length of the latency workload")
    new_tokens: int = Field(default=16, ge=2, description="fixed output length of the latency workload")
    warmup_runs: int = Field(default=3, ge=1)
    runs: int = Field(default=12, ge=3)
    perplexity_tokens: int = Field(default=20_000, ge=256, description="held-out tokens scored for perplexity")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; all usable cores but one when None")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    seed: int = 0


class BenchmarkScore(Record):
    """One task's score."""

    task: str
    metric: str
    score: Estimate
    few_shot: int = 0
    harness: str = Field(description="library and version that computed it")
    items_digest: str = Field(default="", description="digest of the ids that were asked")
    outcomes: tuple[int, ...] = Field(default=(), description="1 or 0 an item in a fixed order, for paired comparison")


class Perplexity(Record):
    """Perplexity per token over held-out text; one document a window, BOS first when the tokenizer has one."""

    perplexity: Estimate
    tokens: int
    documents: int
    top1_accuracy: Estimate | None = Field(default=None, description="next-token top-1 accuracy on the same tokens")


class LatencyMeasurement(Record):
    """Prefill and decode of a fixed prompt and output length, batch 1."""

    request_ms: Estimate = Field(description="median of whole requests")
    request_p95_ms: float
    ttft_ms: Estimate = Field(description="median time to the first token (prefill)")
    decode_ms_per_token: Estimate = Field(description="median, tokens after the first")
    throughput_tokens_per_s: float = Field(description="new tokens over whole-request time")
    prompt_tokens: int
    new_tokens: int
    runs: int
    warmup_runs: int
    clock: Literal["perf_counter", "cuda_events"]


class MemoryMeasurement(Record):
    """Memory of a fresh process that loads the saved checkpoint and serves the latency workload."""

    peak_growth_bytes: Estimate = Field(description="peak above the process's size before loading")
    peak_rss_bytes: int = Field(description="whole process, runtime libraries included")
    weights_bytes: int = Field(description="of parameters and buffers as loaded")
    device_peak_bytes: int | None = Field(default=None, description="CUDA allocator's peak")


class EnergyMeasurement(Record):
    """Energy of one request of the fixed workload and the CO2e of 1,000 of them."""

    joules_per_request: Estimate
    co2_grams_per_1000_requests: Estimate
    source: EnergySource
    method: str = Field(description="for example 'NVML total energy counter' or 'CPU time x 15 W a core'")
    grid_grams_per_kwh: float
    grid_region: str
    total_joules: float = Field(description="of the whole evaluation")


class Evaluation(Record):
    """Everything measured on one checkpoint."""

    checkpoint_digest: str
    accuracy: Estimate
    benchmarks: tuple[BenchmarkScore, ...]
    perplexity: Perplexity | None = None
    latency: LatencyMeasurement
    memory: MemoryMeasurement
    energy: EnergyMeasurement
    size_bytes: int
    environment: Environment
    settings: EvaluationSettings
    wall_seconds: float

    @property
    def objectives(self) -> Objectives:
        """The five objectives of the frontier."""
        return Objectives(
            accuracy=self.accuracy.value,
            latency_ms=self.latency.request_ms.value,
            memory_gb=self.memory.peak_growth_bytes.value / 1e9,
            model_size_gb=self.size_bytes / 1e9,
            co2_grams=self.energy.co2_grams_per_1000_requests.value,
        )

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of the objectives, by objective name; size is exact."""
        memory, co2 = self.memory.peak_growth_bytes, self.energy.co2_grams_per_1000_requests
        size = self.size_bytes / 1e9
        return {
            "accuracy": (self.accuracy.low, self.accuracy.high),
            "latency_ms": (self.latency.request_ms.low, self.latency.request_ms.high),
            "memory_gb": (memory.low / 1e9, memory.high / 1e9),
            "model_size_gb": (size, size),
            "co2_grams": (co2.low, co2.high),
        }
