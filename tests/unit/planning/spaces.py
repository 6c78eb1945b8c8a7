"""Small search spaces and recorded histories for the planners' tests."""

from __future__ import annotations

from agentic_compression.records import (
    EpisodeRecord,
    EpisodeStatus,
    MethodDescription,
    Objectives,
    Parameter,
    SearchSpace,
    Strategy,
)

__all__ = ["SPACE", "TINY_SPACE", "fake_result", "record"]


def _choice(name: str, *choices: bool | int | str, default: bool | int | str) -> Parameter:
    return Parameter(name=name, kind="choice", choices=choices, default=default)


def _ratio(name: str, default: float, step: float | None = 0.1) -> Parameter:
    return Parameter(name=name, kind="float", low=0.1, high=0.9, step=step, default=default)


BITS, GROUP = _choice("bits", 2, 3, 4, 8, default=4), _choice("group_size", 32, 64, 128, default=128)
MAGNITUDE = MethodDescription(
    name="magnitude", category="pruning", summary="", paper="", parameters=(_ratio("sparsity", 0.5),)
)
LOW_RANK = MethodDescription(
    name="svd_llm",
    category="low_rank",
    summary="",
    paper="",
    parameters=(_ratio("rank_ratio", 0.5),),
    may_follow=("pruning",),
)
RTN = MethodDescription(
    name="rtn",
    category="quantization",
    summary="",
    paper="",
    parameters=(BITS, GROUP, _choice("symmetric", True, False, default=True)),
    may_follow=("pruning", "low_rank"),
)
GPTQ = MethodDescription(
    name="gptq",
    category="quantization",
    summary="",
    paper="",
    parameters=(BITS, GROUP, _choice("order", "natural", "activation", default="natural")),
    may_follow=("pruning", "low_rank"),
    needs_calibration=True,
)
AWQ = MethodDescription(
    name="awq",
    category="quantization",
    summary="",
    paper="",
    parameters=(BITS,),
    available=False,
    unavailable_reason="needs a GPU",
)

SPACE = SearchSpace(methods=(RTN, GPTQ, MAGNITUDE, LOW_RANK, AWQ), max_stages=2)
"""Two quantizers, pruning, low rank and one method that is not offered."""

TINY_SPACE = SearchSpace(
    methods=(
        RTN.model_copy(update={"parameters": (BITS,)}),
        MAGNITUDE.model_copy(update={"parameters": (_choice("sparsity", 0, 1, default=1),)}),
    ),
    max_stages=2,
)
"""4 quantized, 1 pruned, 4 pruned and quantized: 9 strategies; sparsity 0 is none of them."""


def fake_result(strategy: Strategy) -> Objectives:
    """A made-up, deterministic trade-off of accuracy and size, for histories of tests."""
    size, accuracy = 1.0, 0.7
    for stage in strategy.stages:
        values = stage.parameters
        if "bits" in values:
            size *= float(values["bits"]) / 16
            accuracy -= 0.5 / 2 ** float(values["bits"])
        size *= float(values.get("rank_ratio", 1.0))
        accuracy -= 0.1 * (1 - float(values.get("rank_ratio", 1.0))) + 0.05 * float(values.get("sparsity", 0.0))
    return Objectives(
        accuracy=max(accuracy, 0.0), latency_ms=100 * size, memory_gb=size, model_size_gb=size, co2_grams=size
    )


def record(episode: int, strategy: Strategy, status: EpisodeStatus = "succeeded") -> EpisodeRecord:
    """A recorded episode with ``fake_result`` when it succeeded."""
    return EpisodeRecord(
        study="test",
        episode=episode,
        strategy=strategy,
        status=status,
        error=None if status == "succeeded" else f"planted {status}",
        objectives=fake_result(strategy) if status == "succeeded" else None,
    )
