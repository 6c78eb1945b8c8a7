"""What the language model may answer: one Pydantic model that is the schema it is given and the check it must pass.

The model is made for each question from the methods on offer, so that an answer outside their names and ranges cannot
be expressed; what a schema cannot say (the order of stages, what was tried) is checked after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from agentic_compression.planning.grid import canonical
from agentic_compression.planning.llm.reply import InvalidAnswerError, first_object
from agentic_compression.planning.llm.texts import plain_line
from agentic_compression.records import (
    Candidate,
    Expected,
    MethodDescription,
    Objectives,
    Parameter,
    ParameterValue,
    SearchSpace,
    Stage,
    Strategy,
)

__all__ = ["Decision", "ExpectedOutcome", "Rules", "actions", "decision_model", "json_schema", "read_decision"]

_FAMILIES = ("quantization", "pruning", "lora", "qlora", "asvd", "distillation")


@dataclass(frozen=True)
class Rules:
    """What one question allows.

    Args:
        space: the methods on offer.
        candidates: the optimizer's, in the order of the question.
        may_override: whether a strategy of the model's own is allowed.
        may_end: whether the study may be ended.
        taken: keys of canonical forms that were tried or are running, with what to say of them.
        running: strategies that other processes are running now.
    """

    space: SearchSpace
    candidates: Sequence[Candidate]
    may_override: bool
    may_end: bool
    taken: Mapping[str, str]
    running: Sequence[Strategy] = ()


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


_Fraction = Annotated[float, Field(ge=0, le=1)]
_Ratio = Annotated[float, Field(ge=0, le=100)]


class FractionRange(_Answer):
    """A fraction and the ends of its 95 % interval."""

    value: _Fraction
    low: _Fraction
    high: _Fraction


class RatioRange(_Answer):
    """A ratio to the baseline and the ends of its 95 % interval."""

    value: _Ratio
    low: _Ratio
    high: _Ratio


class ExpectedOutcome(_Answer):
    """Accuracy as a fraction, costs over the baseline's."""

    accuracy: FractionRange
    size_ratio: RatioRange
    latency_ratio: RatioRange
    memory_ratio: RatioRange | None = None
    co2_ratio: RatioRange | None = None

    def in_units(self, baseline: Objectives | None) -> Expected:
        """The same in the objectives' units; ratios need a measured baseline. Ends that are crossed are put right."""
        found: Expected = {"accuracy": _ordered(self.accuracy, 1.0)}
        for name, ratio in (
            ("latency_ms", self.latency_ratio),
            ("memory_gb", self.memory_ratio),
            ("model_size_gb", self.size_ratio),
            ("co2_grams", self.co2_ratio),
        ):
            if ratio is not None and baseline is not None:
                found[name] = _ordered(ratio, float(getattr(baseline, name)))
        return found


def _ordered(given: FractionRange | RatioRange, unit: float) -> tuple[float, float, float]:
    ends = given.value, given.low, given.high
    return given.value * unit, min(ends) * unit, max(ends) * unit


@dataclass(frozen=True)
class Decision:
    """A checked answer: a strategy of the model's own, a candidate's index, or the end."""

    action: str
    rationale: str
    expected: ExpectedOutcome
    strategy: Strategy | None = None
    candidate: int | None = None


def actions(rules: Rules) -> tuple[str, ...]:
    """The actions that one question allows."""
    own = tuple(family for family in _FAMILIES if any(_belongs(method, family) for method in rules.space.offered))
    pipeline = ("pipeline",) if rules.space.max_stages > 1 else ()
    return (
        *((*own, *pipeline) if rules.may_override and own else ()),
        "search",
        *(("end",) if rules.may_end else ()),
    )


def decision_model(rules: Rules) -> type[BaseModel]:
    """The Pydantic model of the answer to one question."""
    fields: dict[str, Any] = {
        "rationale": (str, Field(description="why, in at most three sentences")),
        "action": (Literal[actions(rules)], Field(description="the kind of strategy, search or end")),
        "expected": (ExpectedOutcome, ...),
    }
    if rules.candidates:
        numbers = tuple(range(1, len(rules.candidates) + 1))
        about = "with action search: the number of the candidate to take; null: the first"
        fields["candidate"] = (Literal[numbers] | None, Field(default=None, description=about))
    if set(actions(rules)) - {"search", "end"}:
        about = "in the order in which they are applied; null with search and end"
        fields["stages"] = (list[_stage_union(rules.space)] | None, Field(default=None, description=about))  # type: ignore[misc]
    return create_model("Decision", __base__=_Answer, **fields)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of the same model in the strict form that structured outputs take."""
    import openai

    function: Any = openai.pydantic_function_tool(model)["function"]
    return _strict(function["parameters"])


def read_decision(text: str, model: type[BaseModel], rules: Rules) -> Decision:
    """Check an answer.

    Args:
        text: as the model wrote it.
        model: of ``decision_model``.
        rules: of the same question.

    Raises:
        InvalidAnswerError: with what is wrong, in words that the model can act on.
    """
    try:
        answer: Any = model.model_validate(first_object(text))
    except ValidationError as problem:
        raise InvalidAnswerError(_in_words(problem)) from None
    decision = Decision(answer.action, plain_line(answer.rationale), answer.expected)
    stages = getattr(answer, "stages", None) or []
    if answer.action in {"search", "end"}:
        if stages:
            raise InvalidAnswerError(f"action {answer.action} takes no stages; leave them out or choose another action")
        return decision if answer.action == "end" else _searched(decision, answer, rules)
    if not stages:
        raise InvalidAnswerError(f"action {answer.action} needs at least one stage")
    strategy = _strategy(stages, rules)
    _require_family(answer.action, strategy, rules.space)
    return Decision(decision.action, decision.rationale, decision.expected, strategy=strategy)


def _searched(decision: Decision, answer: Any, rules: Rules) -> Decision:
    if not rules.candidates:
        raise InvalidAnswerError("the optimizer has no candidate; choose another action")
    number = getattr(answer, "candidate", None) or 1
    return Decision(decision.action, decision.rationale, decision.expected, candidate=number - 1)


def _strategy(stages: Sequence[Any], rules: Rules) -> Strategy:
    space = rules.space
    if len(stages) > space.max_stages:
        raise InvalidAnswerError(f"a strategy has at most {space.max_stages} stages, got {len(stages)}")
    built = []
    for stage in stages:
        given = stage.parameters.model_dump(exclude_none=True, by_alias=True) if stage.parameters is not None else {}
        built.append(Stage(method=stage.method, parameters=given))
    strategy = Strategy(stages=tuple(built))
    if problem := space.problem_with(strategy):
        raise InvalidAnswerError(problem)
    plain = canonical(space, strategy)
    if plain.is_baseline:
        raise InvalidAnswerError("these stages change nothing; choose others")
    if plain.key in rules.taken:
        raise InvalidAnswerError(f"{space.brief(plain)} is {rules.taken[plain.key]}; choose one that is not")
    return plain


def _require_family(action: str, strategy: Strategy, space: SearchSpace) -> None:
    if action == "pipeline":
        if len(strategy.stages) < 2:
            raise InvalidAnswerError("action pipeline needs two stages or more; name the one method's family instead")
        return
    methods = [space.method(stage.method) for stage in strategy.stages]
    if not any(method is not None and _belongs(method, action) for method in methods):
        fitting = ", ".join(method.name for method in space.offered if _belongs(method, action))
        raise InvalidAnswerError(f"action {action} needs a stage of: {fitting}; got {space.brief(strategy)}")


def _belongs(method: MethodDescription, family: str) -> bool:
    if family == "asvd":
        return method.category == "low_rank"
    if family == "distillation":
        return method.name.startswith("distill")
    if family in {"lora", "qlora"}:
        return method.name.split("_")[0] == family
    return method.category == family


def _stage_union(space: SearchSpace) -> Any:
    variants = [_stage_model(method) for method in space.offered]
    if len(variants) == 1:
        return variants[0]
    return Annotated[reduce(or_, variants), Field(discriminator="method")]


def _stage_model(method: MethodDescription) -> Any:
    values: dict[str, Any] = {  # under names of our own: a parameter may be called as an attribute of a Pydantic model
        f"value_{at}": (
            Annotated[_value_type(parameter), BeforeValidator(_lenient(parameter))] | None,
            Field(default=None, alias=parameter.name),
        )
        for at, parameter in enumerate(method.parameters)
    }
    parameters = create_model(f"{method.name}_parameters", __base__=_Answer, **values)
    fields: dict[str, Any] = {
        "method": (Literal[method.name], ...),
        "parameters": (parameters | None, Field(default=None)),
    }
    return create_model(f"{method.name}_stage", __base__=_Answer, **fields)


def _value_type(parameter: Parameter) -> Any:
    if parameter.kind == "choice":
        return Literal[tuple(parameter.choices)]
    kind = int if parameter.kind == "int" else float
    return Annotated[kind, Field(ge=parameter.low, le=parameter.high)]


def _lenient(parameter: Parameter) -> Any:
    """``"4"``, ``4.0`` and ``"True"`` mean the choices 4 and true; anything else is left to the check that follows."""

    def read(value: Any) -> Any:
        if parameter.kind != "choice":
            return None if isinstance(value, bool) else value
        for choice in parameter.choices:
            if _same(value, choice):
                return choice
        return value

    return read


def _same(value: Any, choice: ParameterValue) -> bool:
    if isinstance(value, str) or isinstance(choice, bool) or isinstance(value, bool):
        return str(value).strip().lower() == str(choice).lower()
    return isinstance(value, int | float) and not isinstance(choice, str) and value == choice


def _strict(value: Any) -> Any:
    """``anyOf`` for ``oneOf``, and without what structured outputs refuse: discriminators, titles, defaults."""
    if isinstance(value, dict):
        kept = {
            "anyOf" if key == "oneOf" else key: _strict(item)
            for key, item in value.items()
            if key != "discriminator" and (key not in {"title", "default"} or isinstance(item, dict))
        }
        if kept.get("type") == "object":
            kept.setdefault("required", [])
            kept.setdefault("properties", {})
        return kept
    return [_strict(item) for item in value] if isinstance(value, list) else value


def _in_words(problem: ValidationError) -> str:
    errors = problem.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(str(part) for part in error['loc']) or 'answer'}: {error['msg']}" for error in errors[:6]]
    more = f"; and {len(errors) - 6} more" if len(errors) > 6 else ""
    return plain_line("; ".join(shown) + more, limit=1200)
