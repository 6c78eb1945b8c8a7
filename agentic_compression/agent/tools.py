"""What the tools of ``acf mcp`` do: plain functions from checked arguments to JSON-able values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from agentic_compression.agent.confinement import allowed_folder, allowed_reference
from agentic_compression.agent.desk import bench_for_planning
from agentic_compression.agent.execute import Experiment, execute_experiment, finish, resume_plan
from agentic_compression.agent.plan import CompressionPlan
from agentic_compression.agent.planner import plan_compression, plan_file
from agentic_compression.agent.reflection import frontier_of, reflect_and_improve
from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.errors import ConfigurationError
from agentic_compression.memory import Workspace, recall, recommend
from agentic_compression.methods import describe_methods
from agentic_compression.records import Situation, StudyConfig
from agentic_compression.settings import get_settings
from agentic_compression.spec import infer_spec
from agentic_compression.storage import write_record
from agentic_compression.study import open_workbench, validate_data
from agentic_compression.study.comparison import Side, compare_sides
from agentic_compression.study.naming import short_name
from agentic_compression.study.workbench import study_folder

__all__ = ["compare", "execute", "list_methods", "plan", "recommended", "reflect"]

_EPISODE = re.compile(r"(?P<study>[A-Za-z0-9][A-Za-z0-9_.-]{0,99}):(?P<episode>\d{1,6})")


def plan(
    model: str, dataset: str, objective: str, carbon_budget_grams: float | None, episodes: int | None,
    settings_of_study: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Plan a study and keep the plan in its folder, so that ``execute`` can go through it; nothing is run.

    An unfinished plan of the same wish is gone on with.
    """
    settings = get_settings()
    allowed_reference(model, settings)
    allowed_reference(dataset, settings)
    base = StudyConfig.model_validate({"model": model, "dataset": dataset, **settings_of_study})
    made = plan_compression(model, objective, carbon_budget_grams, dataset=dataset, episodes=episodes, base=base)
    folder = study_folder(settings, made.study.name)
    made = resume_plan(made, folder)
    write_record(plan_file(folder), made)
    return made.model_dump(mode="json")


def execute(study: str, item: int | None) -> dict[str, Any]:
    """Carry out one item of a study's plan, the next open one where none is named.

    After the last one the study is finished with its reason.
    """
    made = _plan_of(study)
    chosen = item or next((one.number for one in made.items if one.is_open), None)
    if chosen is None:
        raise ConfigurationError(f"the plan of study {study!r} has nothing left to do; plan again, or reflect on it")
    bench = open_workbench()
    bench.supervisor.start()
    bench.history.open_study(made.study)
    validate_data(made.study, bench)
    done = execute_experiment(Experiment(made, chosen, bench))
    left = [one.number for one in done.items if one.is_open]
    reason = None if left else finish(done, bench).termination_reason
    one = next(one for one in done.items if one.number == chosen)
    return {"study": study, "item": one.model_dump(mode="json"), "left": left, "termination_reason": reason}


def reflect(study: str, objective: str | None) -> dict[str, Any]:
    """What a study found, held against its objective or another one."""
    folder = study_folder(get_settings(), study)
    document = frontier_of(folder)
    wished = objective or _config_of(study).objective
    if not wished:
        raise ConfigurationError(f"study {study!r} has no objective; give one")
    return reflect_and_improve(document, wished, bench=bench_for_planning(study)).model_dump(mode="json")


def compare(baseline: str, candidate: str, dataset: str) -> dict[str, Any]:
    """Two checkpoints on the same items; an episode's is measured as its study measures."""
    settings = get_settings()
    allowed_reference(dataset, settings)
    study = next((match["study"] for name in (baseline, candidate) if (match := _EPISODE.fullmatch(name))), None)
    config = StudyConfig(model="demo", dataset=dataset, name="by-hand") if study is None else _config_of(study)
    bench = open_workbench()
    bench.supervisor.start()
    data, _ = validate_data(config, bench)
    first, second = (_side(name) for name in (baseline, candidate))
    return compare_sides(config, data, first, second, bench).model_dump(mode="json")


def recommended(model: str, dataset: str, limit: int) -> list[dict[str, Any]]:
    """Strategies that memory speaks for, with the reasons."""
    settings = get_settings()
    allowed_reference(model, settings)
    spec = infer_spec(model, settings=settings, methods=describe_methods())
    found = recall(Workspace(settings.workspace), Situation(spec=spec, dataset=short_name(dataset)))
    return [item.model_dump(mode="json") for item in recommend(found, limit=limit)]


def list_methods() -> list[dict[str, Any]]:
    """Every method with its parameters, and why it is not available where it is not."""
    return [method.model_dump(mode="json") for method in describe_methods()]


def _plan_of(study: str) -> CompressionPlan:
    path = plan_file(study_folder(get_settings(), study))
    if not path.is_file():
        raise ConfigurationError(f"study {study!r} has no plan (looked for {path}); plan it first")
    return CompressionPlan.model_validate_json(path.read_text(encoding="utf-8"))


def _config_of(study: str) -> StudyConfig:
    path = study_folder(get_settings(), study) / "study.json"
    if not path.is_file():
        raise ConfigurationError(f"no study {study!r} (looked for {path})")
    return StudyConfig.model_validate_json(path.read_text(encoding="utf-8"))


def _side(name: str) -> Side:
    """A checkpoint folder, or ``STUDY:EPISODE``."""
    match = _EPISODE.fullmatch(name)
    if match is None:
        folder = allowed_folder(name, get_settings())
        if not folder.is_dir():
            raise ConfigurationError(f"no checkpoint folder {name!r}; name a folder, or STUDY:EPISODE")
        return Side(name=name, checkpoint=checkpoint_ref(folder, "by-hand", shared=True))
    study, episode = match["study"], int(match["episode"])
    records = open_workbench().history.records(study) if open_workbench().history.exists(study) else []
    record = next((item for item in records if item.episode == episode), None)
    if record is None or record.checkpoint is None:
        raise ConfigurationError(f"{name} has no checkpoint; see: acf frontier {study}")
    kept = Path(record.checkpoint.path).is_dir()
    if not kept:
        raise ConfigurationError(f"the checkpoint of {name} is gone; make it again: acf rebuild {study} {episode}")
    return Side(name=f"{name} ({record.strategy.label})", checkpoint=record.checkpoint)
