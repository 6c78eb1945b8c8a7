"""The history kept in MLflow: parameters, metrics, tags and artifacts chosen for its compare view."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import (
    EpisodePlan,
    EpisodeRecord,
    Evaluation,
    Objectives,
    Report,
    Strategy,
    StudyConfig,
)
from agentic_compression.tracking.ownership import owner_is_alive, owner_of_this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["MlflowHistory", "open_client"]

_PLAN, _RECORD, _OWNER, _EPISODE = "acf.plan", "acf.record", "acf.owner", "acf.episode"
_STATUS, _PARETO, _STUDY_KEY = "acf.status", "acf.pareto", "acf.study_key"
_DIGEST, _CLAIMED = "acf.digests", "acf.claimed_at"
_PAGE = 1000
_TAG_LIMIT = 7900
_TEXT_LIMIT = 1500  # characters of rationale and error kept in a tag (MLflow's limit is 8,000 for the whole tag)


def open_client(tracking_uri: str) -> MlflowClient:
    """A client whose tracking and registry store is ``tracking_uri``; telemetry off."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if tracking_uri.startswith("sqlite:///"):
        Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


class MlflowHistory:
    """A ``History`` in an MLflow tracking store."""

    def __init__(self, client: MlflowClient, artifact_root: Path) -> None:
        """Keep runs through ``client``; artifacts of new experiments go below ``artifact_root``."""
        self.client = client
        self._artifact_root = artifact_root
        self._experiments: dict[str, str] = {}

    def open_study(self, config: StudyConfig, digests: str = "") -> None:
        """Create the study's experiment, or check that an existing one asks the same question."""
        key = study_key(config)
        experiment = self.client.get_experiment_by_name(config.name)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            self._give_up_name(experiment.experiment_id, config.name, restore=True)
            experiment = None
        if experiment is None:
            location = (self._artifact_root / config.name).as_uri()
            tags = {_STUDY_KEY: key, _DIGEST: digests, "acf.model": config.model, "acf.dataset": config.dataset}
            self._experiments[config.name] = self.client.create_experiment(config.name, location, tags)
            return
        self._experiments[config.name] = experiment.experiment_id
        known, digest = experiment.tags.get(_STUDY_KEY), experiment.tags.get(_DIGEST, "")
        if known != key:
            raise ConfigurationError(
                f"study {config.name!r} was begun as {known}, got {key}; "
                f"choose another --name, or remove it with 'acf clean {config.name}'"
            )
        if digests and not digest:
            self.client.set_experiment_tag(experiment.experiment_id, _DIGEST, digests)
        elif digests and digest != digests:
            raise ConfigurationError(
                f"{config.model} or {config.dataset} have changed since study {config.name!r} began ({digest}; now "
                f"{digests}); choose another --name, or remove it with 'acf clean {config.name}'"
            )

    def _give_up_name(self, identifier: str, study: str, *, restore: bool) -> None:
        """Delete an experiment so that its name is free: MLflow keeps the names of deleted ones taken."""
        if restore:
            self.client.restore_experiment(identifier)
        self.client.rename_experiment(identifier, f"{study} (removed {identifier})")
        self.client.delete_experiment(identifier)
        self._experiments.pop(study, None)

    def exists(self, study: str) -> bool:
        """Whether MLflow has an active experiment of this name."""
        experiment = self.client.get_experiment_by_name(study)
        return experiment is not None and experiment.lifecycle_stage == "active"

    def forget(self, study: str) -> None:
        """Delete the experiment and free its name."""
        if self.exists(study):
            self._give_up_name(self._experiment(study), study, restore=False)

    def records(self, study: str) -> list[EpisodeRecord]:
        """All recorded episodes, by number."""
        found: dict[int, EpisodeRecord] = {}
        for run in self._runs(study, f"tags.`{_STATUS}` != 'claimed'"):
            record = EpisodeRecord.model_validate_json(run.data.tags[_RECORD])
            if record.episode == 0:
                record = record.model_copy(update={"evaluation": self._evaluation(run)})
            found.setdefault(record.episode, record)
        return [found[episode] for episode in sorted(found)]

    def evaluation(self, study: str, episode: int) -> Evaluation | None:
        """The full evaluation of one episode, with its per-item outcomes."""
        for run in self._runs(study, f"tags.`{_EPISODE}` = '{episode}' and tags.`{_STATUS}` != 'claimed'"):
            return self._evaluation(run)
        return None

    def report(self, study: str, episode: int) -> Report | None:
        """The full quality of one episode on the report items, where they were asked."""
        for run in self._runs(study, f"tags.`{_EPISODE}` = '{episode}' and tags.`{_STATUS}` != 'claimed'"):
            text = self._artifact(run, "report.json")
            return Report.model_validate_json(text) if text else None
        return None

    def adopt(self, study: str) -> EpisodePlan | None:
        """Take over the lowest-numbered claim whose process is gone."""
        orphans = [run for run in self._claims(study) if not owner_is_alive(run.data.tags.get(_OWNER, ""), _age_s(run))]
        plans = sorted(((_plan_of(run), run) for run in orphans), key=lambda pair: pair[0].episode)
        for plan, run in plans:
            self.client.set_tag(run.info.run_id, _CLAIMED, f"{time.time():.0f}")
            self.client.set_tag(run.info.run_id, _OWNER, owner_of_this_process())
            return plan.model_copy(update={"run_id": run.info.run_id})
        return None

    def in_flight(self, study: str) -> list[Strategy]:
        """The strategies that are claimed and not yet recorded."""
        plans = [_plan_of(run) for run in self._claims(study)]
        return [plan.strategy for plan in plans if plan.strategy is not None]

    def next_episode(self, study: str) -> int:
        """The lowest number that is neither recorded nor claimed."""
        taken = {int(run.data.tags[_EPISODE]) for run in self._runs(study, "")}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def claim(self, plan: EpisodePlan) -> EpisodePlan:
        """Create the episode's run, in progress."""
        from mlflow.entities import Param

        assert plan.strategy is not None
        tags = {
            _EPISODE: str(plan.episode),
            _STATUS: "claimed",
            _OWNER: owner_of_this_process(),
            _CLAIMED: f"{time.time():.0f}",
            _PLAN: _fitting(plan).model_dump_json(),
            "mlflow.note.content": f"**{plan.strategy.label}**\n\n{plan.rationale}",
            "mlflow.user": os.environ.get("USER", "acf"),
            "mlflow.source.name": "acf",
        }
        name = f"{plan.episode:03d} {plan.strategy.label}"[:250]
        run = self.client.create_run(self._experiment(plan.study), run_name=name, tags=tags)
        parameters = [Param(key, value) for key, value in _parameters(plan).items()]
        self.client.log_batch(run.info.run_id, params=parameters)
        return plan.model_copy(update={"run_id": run.info.run_id})

    def record(self, record: EpisodeRecord) -> None:
        """Finish the episode's run with its metrics, tags and artifacts."""
        from mlflow.entities import Metric, RunTag

        assert record.run_id is not None
        run_id = record.run_id
        self.client.log_text(run_id, record.strategy.model_dump_json(indent=2), "strategy.json")
        if record.evaluation is not None:
            self.client.log_text(run_id, record.evaluation.model_dump_json(indent=2), "evaluation.json")
        if record.report is not None:
            self.client.log_text(run_id, record.report.model_dump_json(indent=2), "report.json")
        slim = _fitting(_slim(record))
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in _metrics(record).items()]
        tags = [RunTag("acf.energy_source", record.energy_source), RunTag("acf.source", record.source)]
        if record.error:
            tags.append(RunTag("acf.error", record.error[:_TEXT_LIMIT]))
        self.client.log_batch(run_id, metrics=metrics, tags=tags)
        # One transaction makes the episode count: the record and its status together.
        self.client.log_batch(run_id, tags=[RunTag(_RECORD, slim.model_dump_json()), RunTag(_STATUS, record.status)])
        self.client.set_terminated(run_id, "FINISHED" if record.status == "succeeded" else "FAILED")

    def attach(self, study: str, texts: Mapping[str, str]) -> None:
        """Log the files as artifacts of the baseline's run, over those of the same name."""
        for run in self._runs(study, f"tags.`{_EPISODE}` = '0' and tags.`{_STATUS}` != 'claimed'"):
            for name, text in texts.items():
                self.client.log_text(run.info.run_id, text, name)
            return

    def mark_frontier(self, study: str, members: frozenset[int]) -> None:
        """Tag every episode's run with whether it is on the frontier now."""
        for run in self._runs(study, f"tags.`{_STATUS}` != 'claimed'"):
            value = str(int(run.data.tags[_EPISODE]) in members).lower()
            if run.data.tags.get(_PARETO) != value:
                self.client.set_tag(run.info.run_id, _PARETO, value)

    def _experiment(self, study: str) -> str:
        if study not in self._experiments:
            experiment = self.client.get_experiment_by_name(study)
            if experiment is None:
                raise ConfigurationError(
                    f"no study {study!r} in {self.client.tracking_uri}; begin it with 'acf run --name {study}'"
                )
            self._experiments[study] = experiment.experiment_id
        return self._experiments[study]

    def _runs(self, study: str, condition: str) -> Iterable[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._experiment(study)],
                condition,
                max_results=_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from (run for run in page if _EPISODE in run.data.tags)
            token = page.token
            if not token:
                return

    def _claims(self, study: str) -> Iterable[Run]:
        return self._runs(study, f"tags.`{_STATUS}` = 'claimed'")

    def _evaluation(self, run: Run) -> Evaluation | None:
        text = self._artifact(run, "evaluation.json")
        return Evaluation.model_validate_json(text) if text else None

    def _artifact(self, run: Run, name: str) -> str | None:
        """The text of a run's artifact; None when it has none of this name."""
        from urllib.parse import unquote, urlparse

        location = urlparse(run.info.artifact_uri)
        if location.scheme in {"", "file"}:
            path = Path(unquote(location.path)) / name
            return path.read_text() if path.exists() else None
        if name not in [item.path for item in self.client.list_artifacts(run.info.run_id)]:
            return None
        return Path(self.client.download_artifacts(run.info.run_id, name)).read_text()


def study_key(config: StudyConfig) -> str:
    """What makes two studies the same question: model, dataset, seed and how checkpoints are measured."""
    evaluation = config.evaluation
    return (
        f"model={config.model} dataset={config.dataset} seed={config.seed} "
        f"limit={evaluation.limit} workload={evaluation.prompt_tokens}+{evaluation.new_tokens} "
        f"report_share={config.report_share:g}"
    )


def _age_s(run: Run) -> float:
    return time.time() - float(run.data.tags.get(_CLAIMED, "0"))


def _plan_of(run: Run) -> EpisodePlan:
    return EpisodePlan.model_validate_json(run.data.tags[_PLAN])


Texts = TypeVar("Texts", EpisodePlan, EpisodeRecord)


def _slim(record: EpisodeRecord) -> EpisodeRecord:
    """What of a record goes into a tag: no items, and of the rungs' readings the last of each rung and quantity.

    The reason of a rejection is the record's error, so it is not kept twice.
    """
    last = {(reading.rung, reading.quantity): reading for reading in record.screening}
    return record.model_copy(
        update={
            "evaluation": None,
            "report": record.report.model_copy(update={"benchmarks": ()}) if record.report else None,
            "screening": tuple(reading.model_copy(update={"reason": ""}) for reading in last.values()),
        }
    )


def _fitting(value: Texts) -> Texts:
    """The same with its free texts cut until the JSON fits a tag; MLflow cuts longer ones, and then it is no JSON."""
    limit = _TEXT_LIMIT
    while True:
        texts: dict[str, str] = {"rationale": value.rationale[:limit]}
        if isinstance(value, EpisodeRecord) and value.error:
            texts["error"] = value.error[:limit]
        cut = value.model_copy(update=texts)
        if len(cut.model_dump_json()) <= _TAG_LIMIT or limit == 0:
            return cut
        limit //= 2


def _parameters(plan: EpisodePlan) -> dict[str, str]:
    """Flat parameters that the compare view can put on an axis."""
    strategy = plan.strategy or Strategy()
    flat: dict[str, Any] = {
        "strategy": strategy.label,
        "stages": len(strategy.stages),
        "methods": "+".join(stage.method for stage in strategy.stages) or "baseline",
        "episode": plan.episode,
        "planner": plan.planner,
        "source": plan.source,
        "seed": plan.seed,
    }
    for stage in strategy.stages:
        for name, value in stage.parameters.items():
            flat[f"{stage.method}.{name}"] = value
            if name in {"bits", "group_size", "sparsity", "rank_ratio"}:
                flat[name] = value
    return {key: str(value)[:500] for key, value in flat.items()}


def _metrics(record: EpisodeRecord) -> dict[str, float]:
    metrics: dict[str, float] = {"episode_joules": record.joules, "episode_co2_grams": record.co2_grams_spent}
    metrics.update({f"seconds.{phase}": seconds for phase, seconds in record.timings.items()})
    if record.objectives is not None:
        for name in Objectives.model_fields:
            metrics[name] = float(getattr(record.objectives, name))
            if name in record.intervals:
                metrics[f"{name}.low"], metrics[f"{name}.high"] = record.intervals[name]
    if record.report is not None:
        accuracy = record.report.accuracy
        metrics |= {"report.accuracy": accuracy.value, "report.low": accuracy.low, "report.high": accuracy.high}
    if record.evaluation is not None:
        evaluation = record.evaluation
        metrics["throughput_tokens_per_s"] = evaluation.latency.throughput_tokens_per_s
        metrics["ttft_ms"] = evaluation.latency.ttft_ms.value
        metrics["decode_ms_per_token"] = evaluation.latency.decode_ms_per_token.value
        metrics["joules_per_request"] = evaluation.energy.joules_per_request.value
        metrics.update({f"score.{score.task}": score.score.value for score in evaluation.benchmarks})
        if evaluation.perplexity is not None:
            metrics["perplexity"] = evaluation.perplexity.perplexity.value
    return metrics
