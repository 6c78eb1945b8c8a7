"""Registers frontier members as model versions and points the aliases at the winners.

A version's source is the one stored checkpoint: nothing is copied. Registering is keyed by study, episode and
checkpoint digest, so that a run which was interrupted between any two registry writes ends, when repeated, in
the same versions and aliases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from agentic_compression.errors import ModelError
from agentic_compression.records import EpisodeRecord, FrontierDocument, Record, Solution

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

__all__ = [
    "ALIASES",
    "RegisteredVersion",
    "choose_aliases",
    "forget_study",
    "list_versions",
    "model_folder",
    "promote_frontier",
    "registered_name",
]

_BEST: dict[str, Callable[[Solution], float]] = {
    "most-accurate": lambda solution: -solution.objectives.accuracy,
    "fastest": lambda solution: solution.objectives.latency_ms,
    "smallest": lambda solution: solution.objectives.model_size_gb,
    "leanest": lambda solution: solution.objectives.memory_gb,
    "greenest": lambda solution: solution.objectives.co2_grams,
}
ALIASES = ("champion", *_BEST)
_KEY, _STUDY, _STATE, _EPISODE, _REASON = "acf.key", "acf.study", "acf.state", "acf.episode", "acf.withheld"
_TAG_LIMIT = 1500


class RegisteredVersion(Record):
    """One version of a registered model, as ``acf registry list`` shows it."""

    model: str
    version: str
    aliases: tuple[str, ...]
    strategy: str
    state: str
    study: str
    episode: str
    objectives: dict[str, float]
    source: str


def registered_name(model: str, dataset: str) -> str:
    """``<model>--<dataset>`` in the characters that a registry and a URL take.

    Example:
        >>> registered_name("meta-llama/Llama-3.1-8B", "gsm8k")
        'meta-llama-Llama-3.1-8B--gsm8k'
    """
    return f"{_plain(model)}--{_plain(dataset)}"


def choose_aliases(solutions: Sequence[Solution]) -> dict[str, int]:
    """Which episode each alias points at.

    ``champion`` is the knee point; the others are the best of one objective. Only solutions that satisfy the
    study's constraints take part. Ties go to the more accurate, then to the smaller, then to the earlier episode.
    """
    eligible = [solution for solution in solutions if solution.meets_constraints]
    chosen: dict[str, int] = {}
    for alias, cost in _BEST.items():
        if eligible:
            chosen[alias] = min(eligible, key=lambda item, cost=cost: (cost(item), *_tie_break(item))).episode  # type: ignore[misc]
    knees = [solution for solution in eligible if solution.is_knee]
    if knees:
        chosen["champion"] = min(knees, key=_tie_break).episode
    return chosen


def promote_frontier(
    client: MlflowClient,
    name: str,
    document: FrontierDocument,
    records: Sequence[EpisodeRecord],
    withheld: Mapping[int, str] | None = None,
) -> FrontierDocument:
    """Make the registry show this frontier: versions for its members, aliases at the winners.

    Versions of this study that are no longer members lose their aliases and are tagged ``superseded``.

    Args:
        client: of the registry.
        name: the registered model.
        document: the frontier.
        records: of its members, and any others.
        withheld: members that did not pass the checks of the results, by episode, with the reason. They get no
            version; one that they have from before loses its aliases and is tagged ``withheld`` with the reason.

    Returns:
        The same document with every solution's ``registry_version``, or the reason there is none, filled in.
    """
    by_episode = {record.episode: record for record in records}
    reasons = {**_gone(document, by_episode), **(withheld or {})}
    _ensure_model(client, name, document)
    known = {version.tags.get(_KEY, ""): version for version in _versions(client, name)}
    members: dict[int, str] = {}
    for solution in document.solutions:
        record = by_episode[solution.episode]
        if record.checkpoint is None or record.episode in reasons:
            continue
        key = f"{document.study}/{record.episode}/{record.checkpoint.digest}"
        evidence = _evidence(solution, record)
        version = known.get(key)
        if version is None:
            version = _create(client, name, record, {_KEY: key, _STUDY: record.study, **evidence})
        else:
            _set_tags(client, version, {**evidence, **({_REASON: ""} if version.tags.get(_REASON) else {})})
        members[solution.episode] = str(version.version)
    chosen = choose_aliases([item for item in document.solutions if item.episode in members])
    _move_aliases(client, name, {alias: members[episode] for alias, episode in chosen.items()})
    for version in known.values():
        if version.tags.get(_STUDY) == document.study and str(version.version) not in members.values():
            reason = reasons.get(int(version.tags.get(_EPISODE, "-1")))
            state = {_STATE: "withheld", _REASON: reason[:_TAG_LIMIT]} if reason else {_STATE: "superseded"}
            _set_tags(client, version, state)
    solutions = tuple(
        item.model_copy(
            update={"registry_version": members.get(item.episode), "withheld": reasons.get(item.episode, "")}
        )
        for item in document.solutions
    )
    return document.model_copy(update={"solutions": solutions})


def _gone(document: FrontierDocument, by_episode: Mapping[int, EpisodeRecord]) -> dict[int, str]:
    """Members whose folder is not there: an alias must not point at nothing."""
    checkpoints = {item.episode: by_episode[item.episode].checkpoint for item in document.solutions}
    return {
        episode: f"its checkpoint {checkpoint.path} is gone; make it again: acf rebuild {document.study} {episode}"
        for episode, checkpoint in checkpoints.items()
        if checkpoint is not None and not Path(checkpoint.path).is_dir()
    }


def forget_study(client: MlflowClient, study: str) -> int:
    """Delete every version this study registered, and models left without versions; returns how many versions."""
    count = 0
    for model in _models(client):
        versions = _versions(client, model.name)
        mine = [version for version in versions if version.tags.get(_STUDY) == study]
        for version in mine:
            client.delete_model_version(model.name, str(version.version))
        count += len(mine)
        if mine and len(mine) == len(versions):
            client.delete_registered_model(model.name)
    return count


def list_versions(client: MlflowClient, name: str | None = None) -> list[RegisteredVersion]:
    """All versions this framework registered, newest last; of one model when ``name`` is given."""
    models = [model for model in _models(client) if name in {None, model.name}]
    found = []
    for model in models:
        aliases: dict[str, list[str]] = {}
        for alias, number in (model.aliases or {}).items():
            aliases.setdefault(str(number), []).append(alias)
        versions = sorted(_versions(client, model.name), key=lambda version: int(version.version))
        found += [
            _listed(version, aliases.get(str(version.version), [])) for version in versions if _KEY in version.tags
        ]
    return found


def model_folder(client: MlflowClient, uri: str) -> Path:
    """The checkpoint folder behind ``models:/name@alias`` or ``models:/name/version``.

    Raises:
        ModelError: when the URI is malformed, or there is no such model, alias, version or folder.
    """
    from mlflow.exceptions import MlflowException

    match = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", uri)
    if match is None:
        raise ModelError(f"a registered model is models:/NAME@ALIAS or models:/NAME/VERSION, got {uri!r}")
    name, alias, number = match.groups()
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise ModelError(f"{uri}: {error.message}; see: acf registry list") from error
    folder = Path(unquote(urlparse(version.source).path))
    if not folder.is_dir():
        raise ModelError(f"{uri}: its checkpoint {folder} is gone; make it again with 'acf rebuild'")
    return folder


def _plain(text: str) -> str:
    name = text.rstrip("/") if "://" in text or not text.startswith((".", "/", "~")) else Path(text).name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "model"


def _tie_break(solution: Solution) -> tuple[float, float, int]:
    return (-solution.objectives.accuracy, solution.objectives.model_size_gb, solution.episode)


def _models(client: MlflowClient) -> list[RegisteredModel]:
    """All registered models whose name this framework could have given (a quote would break MLflow's filter)."""
    found: list[RegisteredModel] = []
    token: str | None = None
    while True:
        page = client.search_registered_models(max_results=200, page_token=token)
        found += [model for model in page if "'" not in model.name]
        token = page.token
        if not token:
            return found


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _ensure_model(client: MlflowClient, name: str, document: FrontierDocument) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, tags={_STUDY: document.study}, description="Pareto-optimal checkpoints")


def _create(client: MlflowClient, name: str, record: EpisodeRecord, tags: dict[str, str]) -> ModelVersion:
    assert record.checkpoint is not None
    return client.create_model_version(
        name,
        source=Path(record.checkpoint.path).as_uri(),
        run_id=record.run_id,
        tags=tags,
        description=record.strategy.label,
    )


def _evidence(solution: Solution, record: EpisodeRecord) -> dict[str, str]:
    assert record.checkpoint is not None
    tags = {
        _STATE: "frontier",
        "acf.strategy": record.strategy.label,
        _EPISODE: str(record.episode),
        "acf.seed": str(record.seed),
        "acf.digest": record.checkpoint.digest,
        "acf.loads_with": ",".join(record.checkpoint.loads_with),
        "acf.energy_source": record.energy_source,
        "acf.meets_constraints": str(solution.meets_constraints).lower(),
    }
    if solution.search_accuracy is not None:
        tags["acf.search_accuracy"] = f"{solution.search_accuracy:.6g}"
    for objective, value in solution.objectives.model_dump().items():
        tags[f"acf.{objective}"] = f"{value:.6g}"
        if objective in solution.intervals:
            low, high = solution.intervals[objective]
            tags[f"acf.{objective}.interval"] = f"[{low:.6g}, {high:.6g}]"
    return tags


def _set_tags(client: MlflowClient, version: ModelVersion, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, str(version.version), key, value)


def _move_aliases(client: MlflowClient, name: str, chosen: dict[str, str]) -> None:
    """Setting an alias moves it in one write; only aliases with no holder at all are deleted."""
    current = {alias: str(version) for alias, version in (client.get_registered_model(name).aliases or {}).items()}
    for alias, version in chosen.items():
        if current.get(alias) != version:
            client.set_registered_model_alias(name, alias, version)
    for alias in set(current) & set(ALIASES) - set(chosen):
        client.delete_registered_model_alias(name, alias)


def _listed(version: ModelVersion, aliases: list[str]) -> RegisteredVersion:
    tags = version.tags
    names = ("accuracy", "latency_ms", "memory_gb", "model_size_gb", "co2_grams")
    return RegisteredVersion(
        model=version.name,
        version=str(version.version),
        aliases=tuple(sorted(aliases, key=ALIASES.index) if set(aliases) <= set(ALIASES) else sorted(aliases)),
        strategy=tags.get("acf.strategy", ""),
        state=tags.get(_STATE, ""),
        study=tags.get(_STUDY, ""),
        episode=tags.get("acf.episode", ""),
        objectives={name: float(tags[f"acf.{name}"]) for name in names if f"acf.{name}" in tags},
        source=unquote(urlparse(version.source).path),
    )
