"""What makes two evaluations unequal: a mix of environments is never compared without a word."""

from __future__ import annotations

from collections.abc import Iterator

from agentic_compression.records import Environment, Evaluation, EvaluationSettings

__all__ = ["unfairness"]

_WORKLOAD = ("prompt_tokens", "new_tokens")
_PLACES = {"device": "devices", "cpu": "processors", "cores": "numbers of cores", "threads": "numbers of threads"}
_NUMERICAL = ("torch", "transformers", "xllamacpp", "vllm", "lm_eval", "lm-eval")


def unfairness(baseline: Evaluation, candidate: Evaluation) -> tuple[str, ...]:
    """Warnings, one sentence each: environments, workloads, harness, split, energy sources, unsettled times."""
    return (
        *_environments(baseline.environment, candidate.environment),
        *_settings(baseline.settings, candidate.settings),
        *_scoring(baseline, candidate),
        *_costs(baseline, candidate),
    )


def _environments(first: Environment, second: Environment) -> Iterator[str]:
    for field, words in _PLACES.items():
        before, after = getattr(first, field), getattr(second, field)
        if before != after:
            yield f"measured on different {words} ({before} and {after}): times, memory and energy are not comparable"
    if first.runtime != second.runtime:
        yield f"run by different engines ({first.runtime} and {second.runtime}): the ratios compare engines as well"
    changed = [
        f"{name} {first.packages.get(name, 'none')} and {second.packages.get(name, 'none')}"
        for name in sorted(set(first.packages) | set(second.packages))
        if name in _NUMERICAL and first.packages.get(name) != second.packages.get(name)
    ]
    if changed and first.runtime == second.runtime:
        yield f"measured with different versions ({', '.join(changed)})"


def _settings(first: EvaluationSettings, second: EvaluationSettings) -> Iterator[str]:
    for name in _WORKLOAD:
        before, after = getattr(first, name), getattr(second, name)
        if before != after:
            yield f"served different workloads ({name} {before} and {after}): times and energy are not comparable"


def _scoring(baseline: Evaluation, candidate: Evaluation) -> Iterator[str]:
    if baseline.split != candidate.split:
        yield f"measured on different splits of the items ({baseline.split} and {candidate.split})"
    elif baseline.split == "search":
        yield "both answered the items that plans were made on: the best of many candidates is flattered by them"
    others = {score.task: score for score in candidate.benchmarks}
    for score in baseline.benchmarks:
        other = others.get(score.task)
        if other is None:
            continue
        if score.harness != other.harness:
            yield f"{score.task}: scored by {score.harness} and {other.harness}"
        if score.few_shot != other.few_shot:
            yield f"{score.task}: asked with {score.few_shot} and {other.few_shot} examples"
        if score.answer_tokens != other.answer_tokens and None not in (score.answer_tokens, other.answer_tokens):
            yield f"{score.task}: answered in at most {score.answer_tokens} and {other.answer_tokens} tokens"
        if score.truncated or other.truncated:
            yield f"{score.task}: {score.truncated} and {other.truncated} prompts lost their beginning to fit"


def _costs(baseline: Evaluation, candidate: Evaluation) -> Iterator[str]:
    first, second = baseline.energy, candidate.energy
    if (first.source, first.method) != (second.source, second.method):
        yield f"energy known in different ways ({first.source}: {first.method}; {second.source}: {second.method})"
    elif first.idle != second.idle:
        yield f"energy with the idle power {first.idle} and {second.idle}: not comparable"
    grids = [f"{energy.grid_region}, {energy.grid_grams_per_kwh:g} g/kWh" for energy in (first, second)]
    if first.grid_grams_per_kwh != second.grid_grams_per_kwh:
        yield f"CO2 reckoned with different grids ({grids[0]} and {grids[1]})"
    if first.pue != second.pue:
        yield f"CO2 reckoned with different buildings (PUE {first.pue:g} and {second.pue:g})"
    for name, evaluation in (("baseline", baseline), ("candidate", candidate)):
        if not evaluation.latency.stable:
            yield f"the {name}'s times had not settled when they were measured: its latency is uncertain"
