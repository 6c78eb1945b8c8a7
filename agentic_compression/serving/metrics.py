"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        by_model = ("model",)
        self.requests = Counter(
            "acf_serve_requests",
            "Requests by route and outcome: the status, error where an answer broke off, or cancelled by its client.",
            ("route", "outcome"),
            registry=registry,
        )
        self.latency = Histogram(
            "acf_serve_request_seconds",
            "Seconds to the end of an answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "acf_serve_first_token_seconds",
            "Seconds to the first token.",
            by_model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("acf_serve_prompt_tokens", "Tokens of prompts.", by_model, registry=registry)
        self.completion_tokens = Counter(
            "acf_serve_completion_tokens", "Tokens of answers.", by_model, registry=registry
        )
        self.total_tokens = Counter("acf_serve_tokens", "Tokens of prompts and answers.", by_model, registry=registry)
        self.truncated = Counter("acf_serve_truncated_prompts", "Prompts that were cut.", by_model, registry=registry)
        self.loads = Counter("acf_serve_loads", "Models loaded, by outcome.", ("model", "outcome"), registry=registry)
        self.load_seconds = Histogram(
            "acf_serve_load_seconds", "Seconds to load a model.", by_model, buckets=_SECONDS, registry=registry
        )
        self.unloads = Counter(
            "acf_serve_unloads", "Models unloaded, by reason.", ("model", "reason"), registry=registry
        )
        self.fallbacks = Counter(
            "acf_serve_fallbacks", "Loads of a smaller version for lack of memory.", by_model, registry=registry
        )
        self.swaps = Counter("acf_serve_swaps", "Swaps to the version an alias moved to.", by_model, registry=registry)
        self.cancelled = Counter(
            "acf_serve_disconnects", "Answers whose client went away.", ("route",), registry=registry
        )
        self.active_models = Gauge("acf_serve_active_models", "Models loaded now.", registry=registry)
        self.running = Gauge("acf_serve_running_requests", "Requests that decode now.", by_model, registry=registry)
        self.waiting = Gauge("acf_serve_queue_depth", "Requests that wait for a slot.", by_model, registry=registry)

    def count_tokens(self, model: str, prompt: int, completion: int) -> None:
        """Add the tokens of one answer."""
        self.prompt_tokens.labels(model).inc(prompt)
        self.completion_tokens.labels(model).inc(completion)
        self.total_tokens.labels(model).inc(prompt + completion)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
