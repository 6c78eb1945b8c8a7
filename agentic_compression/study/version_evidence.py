"""What the studies know of registered versions: their evaluations, constraints and environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from agentic_compression import __version__
from agentic_compression.errors import AcfError, DatasetError
from agentic_compression.evaluation.comparison import compare_evaluations
from agentic_compression.frontier.comparable import compared_versions, differences
from agentic_compression.frontier.reported import displayed
from agentic_compression.records import (
    Comparison,
    DatasetSpec,
    EpisodeRecord,
    Evaluation,
    Report,
    StudyConfig,
    VersionEvidence,
    content_digest,
)
from agentic_compression.registry import RegisteredVersion
from agentic_compression.registry.mlflow_model import DEFAULT_EXAMPLE
from agentic_compression.study.workbench import Workbench, study_folder

__all__ = ["StudyEvidence", "on_report_items", "study_config"]

_EXAMPLE_WORDS = 12
_EXAMPLE_CHARACTERS = 400


class StudyEvidence:
    """Reads the history; keeps what it read for as long as it lives, which is one promotion.

    Args:
        bench: history and settings.
        config: of the study that is being recorded; other studies' are read from their folders.
    """

    def __init__(self, bench: Workbench, config: StudyConfig | None = None) -> None:
        self._bench = bench
        self._configs: dict[str, StudyConfig | None] = {config.name: config} if config else {}
        self._records: dict[str, list[EpisodeRecord]] = {}
        self._datasets: dict[str, DatasetSpec | None] = {}
        self._versions: dict[str, VersionEvidence] = {}
        self._compared: dict[tuple[object, ...], tuple[Comparison | str, tuple[str, ...]]] = {}

    def of_version(self, version: RegisteredVersion) -> VersionEvidence:
        """What is known of a version; ``missing`` says why that is not all."""
        key = f"{version.name} {version.state}"
        if key not in self._versions:
            self._versions[key] = self._of_version(version)
        return self._versions[key]

    def compare(
        self, challenger: VersionEvidence, incumbent: VersionEvidence
    ) -> tuple[Comparison | str, tuple[str, ...]]:
        """Incumbent to challenger on the same items, or why not; and how their environments differ."""
        sides = challenger, incumbent
        key = tuple((side.name, side.study, side.evaluation and side.evaluation.wall_seconds) for side in sides)
        if key not in self._compared:
            self._compared[key] = self._compare(challenger, incumbent)
        return self._compared[key]

    def details(self, record: EpisodeRecord) -> dict[str, str]:
        """Where a version was measured, by what code, and how it compares with its baseline."""
        tags = {"acf.code_version": __version__}
        if record.environment is not None:
            place = record.environment
            facts = {
                "device": place.device,
                "cpu": place.cpu,
                "threads": place.threads,
                "runtime": place.runtime,
                **compared_versions(place),
            }
            tags |= {"acf.environment": json.dumps(facts), "acf.environment_digest": content_digest(facts)}
        if record.episode == 0:
            return tags
        versions = [self._episode(record.study, episode) for episode in (0, record.episode)]
        if any(evaluation is None for evaluation in versions):
            return tags
        compared, _ = self._compare(
            VersionEvidence(
                model="", version=str(record.episode), study=record.study, episode=record.episode, state="",
                evaluation=versions[1],
            ),
            VersionEvidence(
                model="", version="baseline", study=record.study, episode=0, state="", evaluation=versions[0]
            ),
        )  # fmt: skip
        return tags | _deltas(compared) if isinstance(compared, Comparison) else tags

    def example(self, study: str) -> tuple[str, str]:
        """The beginning of the study's first question or text; or the fixed prompt, and why."""
        try:
            return self._example(study), ""
        except Exception as error:  # a dataset file may hold anything, and no version may be missing for its example
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return DEFAULT_EXAMPLE, f"a fixed prompt, the dataset gave none: {reason}"

    def config(self, study: str) -> StudyConfig | None:
        """The study's configuration; None when its folder is gone."""
        if study not in self._configs:
            self._configs[study] = study_config(self._bench, study)
        return self._configs[study]

    def records(self, study: str) -> list[EpisodeRecord]:
        """The study's recorded episodes; none when it was removed."""
        if study not in self._records:
            history = self._bench.history
            self._records[study] = history.records(study) if history.exists(study) else []
        return self._records[study]

    def _example(self, study: str) -> str:
        dataset = self._dataset(study)
        if dataset is None:
            raise DatasetError("the dataset is not there any more")
        task = next((task for task in dataset.tasks if task.kind != "benchmark"), None)
        if task is None:
            raise DatasetError("its tasks are benchmarks, which word their questions themselves")
        with Path(task.path).open(encoding="utf-8") as lines:
            item = json.loads(next(lines, "") or "null")
        if not isinstance(item, dict):
            raise DatasetError(f"{task.path}:1 must be an object, got {str(item)[:40]!r}")
        text = item["text" if task.kind == "text" else "question"]
        if not isinstance(text, str) or not text.strip():
            raise DatasetError(f"{task.path}:1 must hold a text, got {str(text)[:40]!r}")
        text.encode("utf-8")  # half a surrogate pair is JSON, and no file can hold it
        return " ".join(text.split()[:_EXAMPLE_WORDS]) if task.kind == "text" else text[:_EXAMPLE_CHARACTERS]

    def _of_version(self, version: RegisteredVersion) -> VersionEvidence:
        config = self.config(version.study)
        base = VersionEvidence(
            model=version.model,
            version=version.version,
            study=version.study,
            episode=int(version.episode or 0),
            strategy=version.strategy,
            state=version.state,
            constraints=config.constraints if config else (),
        )
        records = self.records(version.study)
        record = next((item for item in records if item.episode == base.episode), None)
        missing = _gap(version, record)
        if config is None and (study_folder(self._bench.settings, version.study) / "study.json").exists():
            missing = missing or f"study.json of {version.study} is damaged, and with it the study's constraints"
        if missing or record is None:
            return base.model_copy(update={"missing": missing})
        baseline = next((item for item in records if item.episode == 0 and item.objectives is not None), None)
        evaluation = self._bench.history.evaluation(version.study, base.episode)
        report = self._bench.history.report(version.study, base.episode)
        if evaluation is None:
            missing = f"the evaluation of episode {base.episode} of {version.study} is not in the history any more"
        elif report is None and baseline is not None and baseline.report is not None:
            missing = "it was never asked the report items"
        return base.model_copy(
            update={
                "objectives": displayed([record])[0].objectives,
                "baseline": displayed([baseline])[0].objectives if baseline else None,
                "evaluation": on_report_items(evaluation, report) if evaluation and report else evaluation,
                "missing": missing,
            }
        )

    def _compare(
        self, challenger: VersionEvidence, incumbent: VersionEvidence
    ) -> tuple[Comparison | str, tuple[str, ...]]:
        ours, theirs = challenger.evaluation, incumbent.evaluation
        if ours is None or theirs is None:
            side = challenger if ours is None else incumbent
            return f"version {side.version}: {side.missing or 'no evaluation'}", (
                f"where version {side.version} was measured is not known",
            )
        apart = tuple(
            text.replace("the baseline's", f"version {incumbent.version}'s")
            for text in differences(ours.environment, theirs.environment)
        )
        if challenger.study != incumbent.study and not _same_items(ours, theirs):
            of = f"version {incumbent.version} is of study {incumbent.study}, version {challenger.version} of "
            return f"{of}{challenger.study}, and they were asked other items", apart
        try:
            compared = compare_evaluations(
                theirs, ours, names=(incumbent.name, challenger.name), weights=self._weights(challenger.study, ours)
            )
        except (AcfError, ValueError) as error:
            return str(error), apart
        return compared, apart

    def _episode(self, study: str, episode: int) -> Evaluation | None:
        evaluation = self._bench.history.evaluation(study, episode)
        report = self._bench.history.report(study, episode)
        return on_report_items(evaluation, report) if evaluation and report else evaluation

    def _weights(self, study: str, evaluation: Evaluation) -> dict[str, float]:
        if len(evaluation.benchmarks) == 1:
            return {}
        dataset = self._dataset(study)
        return {task.name: task.weight for task in dataset.tasks} if dataset else {}

    def _dataset(self, study: str) -> DatasetSpec | None:
        """None when it cannot be resolved any more."""
        from agentic_compression.study.episode import dataset_of

        if study not in self._datasets:
            config = self.config(study)
            try:
                self._datasets[study] = dataset_of(config, self._bench.settings) if config else None
            except (AcfError, OSError):
                self._datasets[study] = None
        return self._datasets[study]


def study_config(bench: Workbench, study: str) -> StudyConfig | None:
    """``study.json`` of a study; None when there is none that can be read."""
    try:
        path = study_folder(bench.settings, study) / "study.json"
        return StudyConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, AcfError):
        return None


def on_report_items(evaluation: Evaluation, report: Report) -> Evaluation:
    """The evaluation with the answers to the report items in place of those that plans were made on."""
    return evaluation.model_copy(
        update={
            "accuracy": report.accuracy,
            "benchmarks": report.benchmarks,
            "divergence": report.divergence,
            "split": "report",
        }
    )


def _gap(version: RegisteredVersion, record: EpisodeRecord | None) -> str:
    if record is None:
        return f"episode {version.episode} of study {version.study} is not in the history any more"
    if record.status != "succeeded" or record.objectives is None:
        return f"episode {version.episode} of study {version.study} {record.status}"
    digest = version.tags.get("acf.digest", "")
    if record.checkpoint is None or (digest and record.checkpoint.digest != digest):
        return f"episode {version.episode} of study {version.study} is another checkpoint now"
    return ""


def _same_items(first: Evaluation, second: Evaluation) -> bool:
    def asked(evaluation: Evaluation) -> Sequence[tuple[str, str, tuple[str, ...]]]:
        return sorted((score.task, score.items_digest, score.items) for score in evaluation.benchmarks)

    return asked(first) == asked(second)


def _deltas(compared: Comparison) -> dict[str, str]:
    difference = compared.accuracy
    tags = {
        "acf.baseline.accuracy_delta": f"{difference.value:+.6g} [{difference.low:+.6g}, {difference.high:+.6g}]",
        "acf.baseline.verdict": compared.verdict,
        "acf.baseline.p_value": f"{compared.p_value:.3g}",
        "acf.baseline.items": str(difference.n),
    }
    for name, ratio in compared.ratios.items():
        tags[f"acf.baseline.{name}_ratio"] = f"{ratio.value:.4g} [{ratio.low:.4g}, {ratio.high:.4g}]"
    return tags
