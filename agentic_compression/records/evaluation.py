"""Measurements: every number carries n, spread, its source and whether it was measured or estimated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record

__all__ = [
    "BenchmarkScore",
    "CheckpointRef",
    "Divergence",
    "EnergyMeasurement",
    "Environment",
    "Estimate",
    "Evaluation",
    "EvaluationSettings",
    "LatencyMeasurement",
    "MemoryMeasurement",
    "Objectives",
    "Perplexity",
    "Roofline",
    "Split",
    "Throughput",
]

EnergySource = Literal["measured", "estimated"]
Split = Literal["all", "search", "report"]
"""Which items were asked: all of them, those that plans are made on, or those that are reported."""


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
    values: tuple[float, ...] = Field(default=(), description="score an item where it is no 1 or 0, in that order")
    items: tuple[str, ...] = Field(default=(), description="what was asked, in that order: ids, or digests of content")
    groups: tuple[int, ...] = Field(
        default=(), description="outcomes of each document, in the order of items, where outcomes are tokens"
    )
    truncated: int = Field(default=0, ge=0, description="prompts that lost their beginning to fit the context")
    answer_tokens: int | None = Field(
        default=None, description="most new tokens an answer; fewer than the task's own where the context is too short"
    )


class Perplexity(Record):
    """Perplexity per token over held-out text; one document a window, BOS first when the tokenizer has one."""

    perplexity: Estimate
    tokens: int
    documents: int
    top1_accuracy: Estimate | None = Field(default=None, description="next-token top-1 accuracy on the same tokens")


class Divergence(Record):
    """How far the next-token distributions lie from the teacher's (the baseline's) on the same tokens."""

    kl: Estimate = Field(description="mean Kullback-Leibler divergence of the model from the teacher, nats a token")
    top1_agreement: Estimate = Field(description="share of tokens whose most likely next token is the teacher's")
    tokens: int
    sequences: int
    top_k: int = Field(description="teacher's logits kept a token; the rest of its mass is one bin")
    teacher_digest: str


class Throughput(Record):
    """Serving several requests of the fixed workload at once, all beginning together."""

    batch: int = Field(ge=1)
    prefill_tokens_per_s: float = Field(description="prompt tokens of all requests over the median time to read them")
    decode_tokens_per_s: float = Field(description="tokens after the first over the median time to write them")
    prefill_samples_ms: tuple[float, ...] = Field(default=(), description="every timed batch, to its first tokens")
    decode_samples_ms: tuple[float, ...] = Field(default=(), description="every timed batch, after its first tokens")


class Roofline(Record):
    """Achieved rates of one request beside the ceilings measured on this machine with as many threads.

    The ratios are not cut off: weights that stay in the processor's caches are read faster than memory can be, and an
    engine that multiplies integers can exceed the rate of floating-point products. Attention's own products and the
    reading of its cache are left out.
    """

    bytes_per_token: int = Field(description="of the weights that decoding one token reads, as they are stored")
    decode_bytes_per_s: float = Field(description="those bytes over the median time a token")
    bandwidth_bytes_per_s: float = Field(description="measured reading rate of main or device memory")
    of_bandwidth: float = Field(description="above 1 where the weights fit into the caches")
    flops_per_token: int = Field(description="2 x weights of the matrices that one token meets")
    prefill_flops_per_s: float = Field(
        description="of the prompt, the output matrix once, over the time to first token"
    )
    peak_flops_per_s: float = Field(description="measured rate of a large matrix product in dtype")
    of_peak: float
    dtype: str = Field(default="", description="of the large product; float32 for engines that multiply integers")


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
    inter_token_ms: Estimate | None = Field(
        default=None, description="median gap between two tokens of a request; n counts requests"
    )
    inter_token_p95_ms: float | None = Field(default=None, description="95th percentile of the gaps of all requests")
    request_samples_ms: tuple[float, ...] = Field(default=(), description="every timed request; none is left out")
    ttft_samples_ms: tuple[float, ...] = Field(default=(), description="time to first token of every timed request")
    stable: bool = Field(
        default=True,
        description="whether the warm-up ended because the times had settled, and the middle half of the timed "
        "requests lies within 15 % of their median; else the machine was busy",
    )


class MemoryMeasurement(Record):
    """Memory of a fresh process that loads the saved checkpoint and serves the latency workload."""

    peak_growth_bytes: Estimate = Field(description="peak above the process's size before loading")
    peak_rss_bytes: int = Field(description="whole process, runtime libraries included")
    weights_bytes: int = Field(description="of parameters and buffers as loaded")
    device_peak_bytes: int | None = Field(default=None, description="CUDA allocator's peak")
    kv_cache_bytes_per_token: int | None = Field(
        default=None, description="keys and values of all layers; None for other caches"
    )
    kv_cache_bytes: int | None = Field(default=None, description="held for the workload, in the engine's blocks")
    activation_bytes: int | None = Field(
        default=None,
        description="peak growth less weights and cache, at least 0: activations, working memory and the tokenizer",
    )


class EnergyMeasurement(Record):
    """Energy of one request of the fixed workload and the CO2e of 1,000 of them."""

    joules_per_request: Estimate
    co2_grams_per_1000_requests: Estimate
    source: EnergySource
    method: str = Field(description="for example 'NVML total energy counter' or 'CPU time x 15 W a core'")
    grid_grams_per_kwh: float
    grid_region: str
    total_joules: float = Field(description="of the whole evaluation")
    reason: str = Field(default="", description="why no better counter was read; empty for a hardware counter")
    joules_per_token: float | None = Field(default=None, description="of a request, over its new tokens")
    net_joules_per_request: Estimate | None = Field(default=None, description="above idle: joules less idle x seconds")
    idle_watts: float | None = Field(default=None, description="model loaded, nothing asked; None where not measured")
    idle_settled: bool | None = Field(default=None, description="whether the power had settled before the workload")
    idle: Literal["subtracted", "included", "not applicable"] = Field(
        default="not applicable", description="whether joules_per_request holds the idle power"
    )
    grid_source: str = Field(default="", description="where the grid's factor comes from")
    grid_year: int | None = Field(default=None, description="the factor's year")
    pue: float = Field(default=1.0, ge=1, description="energy of the building over the machine's; in CO2 and cost only")
    price_per_kwh: float | None = None
    cost_per_1000_requests: float | None = Field(default=None, description="electricity, in the price's currency")
    currency: str = ""


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
    split: Split = "all"
    divergence: Divergence | None = Field(default=None, description="None for the teacher itself, or where not asked")
    throughput: tuple[Throughput, ...] = ()
    roofline: Roofline | None = None

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
