"""Claiming an episode: what is on offer, what the planner proposes, and what asking for it took."""

from __future__ import annotations

from agentic_compression.errors import AcfError
from agentic_compression.frontier import comparable
from agentic_compression.methods import get_method, search_space
from agentic_compression.methods.without_calibration import without_calibration
from agentic_compression.planning import propose_episode
from agentic_compression.records import DatasetSpec, EpisodePlan, ModelSpec, SearchSpace, StudyConfig
from agentic_compression.storage import folder_bytes
from agentic_compression.study.situation import situation_of
from agentic_compression.study.workbench import Workbench
from agentic_compression.tracking import MlflowHistory
from agentic_compression.tracking.traces import without_texts, write_traces

__all__ = ["offered_space", "plan_episode"]


def plan_episode(config: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, bench: Workbench) -> EpisodePlan:
    """Claim the next episode with a strategy; a claim whose process died is carried out again as it was planned."""
    bench.announce("step", name="llm_plan")
    space = offered_space(config, dataset)
    with bench.lock(config.name):
        bench.history.open_study(config, f"model {spec.digest or 'unknown'}, data {dataset.digest}")
        if orphan := bench.history.adopt(config.name):
            bench.announce("planned", plan=orphan)
            return orphan
        records = bench.history.records(config.name)
        proposal = propose_episode(
            config.planner,
            space,
            comparable(records),
            config.seed,
            storage_path=bench.folder(config.name) / "planner_journal.log",
            in_flight=bench.history.in_flight(config.name),
            situation=situation_of(config, spec, dataset, bench),
        )
        plan = EpisodePlan(
            study=config.name,
            episode=bench.history.next_episode(config.name),
            strategy=space.complete(proposal.strategy) if proposal.strategy else None,
            end=proposal.end,
            rationale=proposal.rationale,
            planner=config.planner,
            source=proposal.source,
            seed=config.seed,
            expected=proposal.expected,
            calls=without_texts(proposal.calls),
            fallback=proposal.fallback,
        )
        bench.announce("planned", plan=plan)
        if plan.strategy is not None and not plan.strategy.is_baseline:
            _require_room(config, bench)
        claimed = bench.history.claim(plan) if plan.strategy is not None else plan
        if proposal.calls and isinstance(bench.history, MlflowHistory):
            write_traces(bench.history.client, config.name, proposal.calls, claimed.episode, claimed.run_id)
        return claimed


def offered_space(config: StudyConfig, dataset: DatasetSpec) -> SearchSpace:
    """The search space, without methods and settings that need calibration text the dataset does not have."""
    space = search_space(config.max_stages)
    if dataset.calibration_path is not None:
        return space
    source = dataset.calibration_source
    methods = tuple(
        without_calibration(get_method(method.name), method, source) if method.available else method
        for method in space.methods
    )
    return space.model_copy(update={"methods": methods})


def _require_room(config: StudyConfig, bench: Workbench) -> None:
    """Refuse to begin an episode when stored checkpoints take up the quota.

    Raises:
        AcfError: with what is stored and what to do; nothing is recorded.
    """
    root = bench.settings.checkpoints
    used = folder_bytes(root) / 1e9 if root.is_dir() else 0.0
    if used >= config.disk_quota_gb:
        raise AcfError(
            f"stored checkpoints take {used:.2f} GB, the quota is disk_quota_gb={config.disk_quota_gb:g}; raise it in "
            "the study file, or remove studies with 'acf clean' and unfinished folders with 'acf clean --caches'"
        )
