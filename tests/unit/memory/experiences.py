"""Builders of experiences; the numbers are made up."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from agentic_compression.records import Experience, ModelSpec, Situation, SpecSource, Strategy


def make_experience(study: str = "one", episode: int = 1, strategy: str = "rtn:bits=4", **changes: Any) -> Experience:
    """One that succeeded; ``changes`` lie over it."""
    values: dict[str, Any] = {
        "model": "m",
        "digest": "d" * 16,
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "parameters": 10**9,
        "dataset": "gsm8k",
        "tasks": ("gsm8k",),
        "status": "succeeded",
        "accuracy": 0.58,
        "baseline_accuracy": 0.6,
        "items": 1000,
        "ratios": {"latency_ms": 0.5, "memory_gb": 0.4, "model_size_gb": 0.3, "co2_grams": 0.6},
        "at": "2026-11-01T00:00:00+00:00",
    }
    chosen = {"study": study, "episode": episode, "strategy": Strategy.parse(strategy)}
    return Experience.model_validate({**values, **chosen, **changes})


def failed(study: str = "one", episode: int = 1, strategy: str = "rtn:bits=4", **changes: Any) -> Experience:
    """One that ran out of memory."""
    return make_experience(
        study, episode, strategy, **{"status": "oom", "error": "killed", "accuracy": None, "ratios": {}, **changes}
    )


def make_spec(**changes: Any) -> ModelSpec:
    """The model of ``make_experience``."""
    values: dict[str, Any] = {
        "model": "m",
        "digest": "d" * 16,
        "parameters": 10**9,
        "bytes_per_parameter": 2,
        "dtype": "bfloat16",
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "size_class": "small",
        "sources": (SpecSource(source="local_checkpoint", parameters=10**9, exact=True),),
    }
    return ModelSpec.model_validate({**values, **changes})


def make_situation(**changes: Any) -> Situation:
    """The situation of ``make_experience``."""
    return Situation.model_validate({"spec": make_spec(), "dataset": "gsm8k", "tasks": ("gsm8k",), **changes})


def experiences() -> st.SearchStrategy[Experience]:
    """Any believable experience."""
    share = st.floats(0, 1)
    ratio = st.floats(0.01, 10)
    return st.builds(
        make_experience,
        study=st.sampled_from(["one", "two", "three"]),
        episode=st.integers(0, 99),
        strategy=st.sampled_from(["rtn:bits=4", "nf4", "wanda:sparsity=0.5 | gptq:bits=4", "a | b | c"]),
        digest=st.sampled_from(["", "a" * 16, "b" * 16]),
        family=st.sampled_from(["unknown", "llama", "qwen2", "日本"]),
        architecture=st.sampled_from(["unknown", "A", "B"]),
        parameters=st.integers(1, 10**12),
        dataset=st.sampled_from(["", "gsm8k", "arc"]),
        tasks=st.lists(st.sampled_from(["gsm8k", "arc_easy", "arc_challenge"]), unique=True).map(tuple),
        device=st.sampled_from(["", "cpu", "cuda:0 (A)", "cuda:1 (B)"]),
        objective=st.sampled_from(["", "small and fast", "keep the accuracy"]),
        accuracy=share,
        baseline_accuracy=share,
        ratios=st.dictionaries(st.sampled_from(["latency_ms", "memory_gb", "model_size_gb", "co2_grams"]), ratio),
        at=st.sampled_from(["", "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"]),
    )
