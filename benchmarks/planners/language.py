"""Scripted stand-ins for a language model: how much a planner with a bad one loses, and how little with a bored one.

None of them is a language model, and what they come to says nothing of one. They answer through a real socket in the
place of one, so that the question, the schema, the checks and the shares are those of a study:

* ``follower`` takes the optimizer's first candidate every time;
* ``default-lover`` overrides whenever it may, with default configurations: 4 bits in groups of 128 first, then every
  method as it comes, then pairs of these. That is what language models were found to propose (arXiv 2606.21641);
* ``contrarian`` overrides whenever it may, with what is worst: of all measured strategies the one that covers least of
  the reference box alone. It looks that up in the table, so no model can do worse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from agentic_compression.planning.grid import canonical
from agentic_compression.planning.hybrid import HybridPlanner
from agentic_compression.planning.interface import Planner
from agentic_compression.planning.llm import LlmPlanner
from agentic_compression.planning.llm.endpoint import Endpoint, Limits
from agentic_compression.planning.registry import load_optimizer
from agentic_compression.records import SearchSpace, Stage, Strategy
from agentic_compression.settings import Settings
from agentic_compression.testing.language_model import answer, decision, scripted_model
from benchmarks.planners.replay import Course, Replay, course_of, episodes_of

__all__ = ["CODE", "STAND_INS", "default_settings", "play_stand_in", "preferences", "stand_in_planner"]

STAND_INS = ("hybrid:follower", "hybrid:default-lover", "hybrid:contrarian", "llm:default-lover", "llm:contrarian")
"""Kind of planner and character of the stand-in."""

_PLANNING = Path(__file__).resolve().parent.parent.parent / "agentic_compression" / "planning"
CODE = (Path(__file__), _PLANNING / "hybrid.py", *sorted((_PLANNING / "llm").glob("*.py")))
"""What a course with a stand-in follows from, besides the optimizer."""

_ACTIONS = {"low_rank": "asvd"}
_KINDS: dict[str, Callable[..., Planner]] = {"hybrid": HybridPlanner, "llm": LlmPlanner}


def preferences(character: str, replay: Replay) -> Iterator[Strategy]:
    """The strategies that a character would try of its own accord, in its order."""
    if character == "default-lover":
        yield from _defaults(replay.space)
    elif character == "contrarian":
        measured = (replay.record(Strategy.parse(row.strategy), 1) for row in replay.table.rows if not row.error)
        worth = [
            (replay.volume([record.objectives]), -record.objectives.model_size_gb, record.strategy.label)
            for record in measured
            if record.objectives is not None and not record.strategy.is_baseline
        ]
        yield from (canonical(replay.space, Strategy.parse(label)) for _, _, label in sorted(worth))
    elif character != "follower":
        raise ValueError(f"unknown stand-in {character!r}; known: {', '.join(STAND_INS)}")


def _defaults(space: SearchSpace) -> Iterator[Strategy]:
    usual = sorted(space.offered, key=lambda method: (method.name != "gptq", method.category != "quantization"))
    stages = [Stage(method=method.name) for method in usual]
    four_bits = Stage(method="gptq", parameters={"bits": 4, "group_size": 128})
    for chosen in ((four_bits,), *((stage,) for stage in stages), *product(stages, stages)):
        strategy = Strategy(stages=chosen)
        if space.problem_with(strategy) is None:
            yield canonical(space, strategy)


def scripted_answer(question: dict[str, Any], wanted: Sequence[Strategy], space: SearchSpace) -> str:
    """What a stand-in says: its first untried preference where that is allowed, else the first candidate.

    Args:
        question: body of the request.
        wanted: its preferences in their order.
        space: of the replay.
    """
    text = question["messages"][1]["content"]
    told = json.loads(text[text.index("<data>") + 6 : text.index("</data>")])
    tried = {result["strategy"] for result in told["tried"]}
    action = question["response_format"]["json_schema"]["schema"]["properties"]["action"]
    allowed = action.get("enum") or [action["const"]]
    for strategy in wanted:
        family = _action(strategy, space)
        if family in allowed and space.brief(strategy) not in tried:
            stages = [{"method": stage.method, "parameters": dict(stage.parameters)} for stage in strategy.stages]
            return decision(family, stages=stages)
    return decision("search")


def _action(strategy: Strategy, space: SearchSpace) -> str:
    if len(strategy.stages) > 1:
        return "pipeline"
    method = space.method(strategy.stages[0].method)
    assert method is not None, "a preference is a strategy of the replay's space"
    return _ACTIONS.get(method.category, method.category)


def default_settings() -> Settings:
    """The planner's settings at their defaults, whatever the environment says."""
    fields = Settings.model_fields
    names = [name for name in fields if name.startswith(("planner_", "openai_", "hf_token"))]
    return Settings(_env_file=None, **{str(fields[name].validation_alias): fields[name].default for name in names})


@contextmanager
def stand_in_planner(name: str, replay: Replay) -> Iterator[Planner]:
    """The planner of that name with its stand-in behind a socket, until the block ends.

    Args:
        name: one of ``STAND_INS``.
        replay: what it will be led through.
    """
    kind, _, character = name.partition(":")
    wanted = list(preferences(character, replay))
    with scripted_model(lambda body, number: answer(scripted_answer(body, wanted, replay.space))) as server:
        limits = Limits(timeout_s=120.0, deadline_s=480.0)
        yield _KINDS[kind](load_optimizer(), Endpoint(server.url, "stand-in", "no-key", limits), default_settings())


def play_stand_in(replay: Replay, name: str, episodes: int) -> Course:
    """A course with a stand-in.

    Raises:
        RuntimeError: where one of its answers could not be used, so that the course would be another's.
    """
    with stand_in_planner(name, replay) as planner:
        records = []
        for record in episodes_of(replay, planner, episodes, replay.table.header.spec):
            if record.fallback:
                raise RuntimeError(f"{name}, seed {replay.seed}, episode {record.episode}: {record.fallback}")
            records.append(record)
    return course_of(replay, records)
