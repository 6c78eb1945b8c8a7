"""Registered versions: how they are named, made, tagged, listed and removed.

A version's source is a thin MLflow model whose weights are hard links to the one stored checkpoint (see
``mlflow_model``). Registering is keyed by study, episode and checkpoint digest, so that a run which was interrupted
between any two registry writes ends, when repeated, in the same versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pydantic import Field

from agentic_compression.errors import ModelError
from agentic_compression.records import ALIASES, EpisodeRecord, Record, Solution
from agentic_compression.registry.mlflow_model import checkpoint_of, write_mlflow_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

__all__ = [
    "EPISODE",
    "EXAMPLE",
    "KEY",
    "REASON",
    "STATE",
    "STUDY",
    "RegisteredVersion",
    "born",
    "ensure_model",
    "forget_study",
    "holders",
    "list_versions",
    "model_folder",
    "parse_version",
    "register_member",
    "registered_name",
    "set_tags",
    "versions_of",
]

KEY, STUDY, STATE, EPISODE, REASON = "acf.key", "acf.study", "acf.state", "acf.episode", "acf.withheld"
EXAMPLE = "acf.example"
_OBJECTIVES = ("accuracy", "latency_ms", "memory_gb", "model_size_gb", "co2_grams")


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
    tags: dict[str, str] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """``demo--demo/3``."""
        return f"{self.model}/{self.version}"


def registered_name(model: str, dataset: str) -> str:
    """``<model>--<dataset>`` in the characters that a registry and a URL take.

    Example:
        >>> registered_name("meta-llama/Llama-3.1-8B", "gsm8k")
        'meta-llama-Llama-3.1-8B--gsm8k'
    """
    return f"{_plain(model)}--{_plain(dataset)}"


def list_versions(client: MlflowClient, name: str | None = None) -> list[RegisteredVersion]:
    """All versions this framework registered, newest last; of one model when ``name`` is given."""
    models = [model for model in _models(client) if name in {None, model.name}]
    of: dict[str, list[ModelVersion]] = {model.name: [] for model in models}
    for version in versions_of(client, name) if models else ():
        if version.name in of and KEY in version.tags:
            of[version.name].append(version)
    found = []
    for model in models:
        aliases: dict[str, list[str]] = {}
        for alias, number in (model.aliases or {}).items():
            aliases.setdefault(str(number), []).append(alias)
        versions = sorted(of[model.name], key=lambda version: int(version.version))
        found += [_listed(version, aliases.get(str(version.version), [])) for version in versions]
    return found


def parse_version(client: MlflowClient, text: str) -> RegisteredVersion:
    """The version that ``MODEL/3``, ``MODEL@ALIAS`` or either behind ``models:/`` names.

    Raises:
        ModelError: when the text is malformed, or there is no such model, alias or version of this framework.
    """
    match = re.fullmatch(r"(?:models:/)?([^@/]+)(?:@([^@/]+)|/(\d+))", text)
    if match is None:
        raise ModelError(f"a registered version is MODEL/NUMBER or MODEL@ALIAS, got {text!r}; see: acf registry list")
    name, alias, number = match.groups()
    versions = list_versions(client, name)
    found = next((item for item in versions if item.version == number or (alias and alias in item.aliases)), None)
    if found is None:
        raise ModelError(f"no version {text!r}; {_what_there_is(client, name, versions)}; see: acf registry list")
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
        known = _what_there_is(client, name, list_versions(client, name))
        raise ModelError(f"{uri}: {str(error.message).rstrip('.')}; {known}; see: acf registry list") from error
    folder = checkpoint_of(_path(version.source))
    if not folder.is_dir():
        raise ModelError(f"{uri}: its checkpoint {folder} is gone; make it again with 'acf rebuild'")
    return folder


def holders(client: MlflowClient, name: str) -> dict[str, str]:
    """Version by alias, of this framework's aliases."""
    aliases = client.get_registered_model(name).aliases or {}
    return {alias: str(version) for alias, version in aliases.items() if alias in ALIASES}


def born(client: MlflowClient, name: str) -> int | None:
    """When a registered model was made, ms since 1970 UTC; None when there is none.

    Names come back and version numbers with them; this tells a model from a former one.
    """
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_registered_model(name).creation_timestamp or 0)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # such as a database that is locked: nobody knows then
            raise
        return None


def ensure_model(client: MlflowClient, name: str, study: str) -> None:
    """Create the registered model unless it is there."""
    if born(client, name) is None:
        client.create_registered_model(name, tags={STUDY: study}, description="Pareto-optimal checkpoints")


def register_member(
    client: MlflowClient,
    name: str,
    solution: Solution,
    record: EpisodeRecord,
    known: Mapping[tuple[str, str], ModelVersion],
    place: tuple[Path, str],
    details: Mapping[str, str],
) -> str:
    """The version of a member of the frontier: made, or found and its tags brought up to date.

    Args:
        client: of the registry.
        name: the registered model.
        solution, record: the member; it has a checkpoint.
        known: versions of the model by key and source.
        place: folder of the thin MLflow models, and a prompt for the model's example.
        details: more tags.

    Returns:
        Its number.
    """
    assert record.checkpoint is not None
    source = write_mlflow_model(place[0], name, record.checkpoint, place[1]).as_uri()
    key = f"{record.study}/{record.episode}/{record.checkpoint.digest}"
    evidence = {**_evidence(solution, record), **details}
    version = known.get((key, source))
    if version is not None:
        set_tags(client, version, {**evidence, **({REASON: ""} if version.tags.get(REASON) else {})})
        return str(version.version)
    tags = {KEY: key, STUDY: record.study, **evidence}
    label = record.strategy.label
    made = client.create_model_version(name, source=source, run_id=record.run_id, tags=tags, description=label)
    return str(made.version)


def forget_study(client: MlflowClient, study: str) -> int:
    """Delete the versions this study registered, and models left without versions; returns how many versions.

    A version that holds an alias stays, tagged ``removed``, until the alias moves: what is served must not vanish.
    """
    count = 0
    for model in _models(client):
        versions = versions_of(client, model.name)
        held = {str(version) for version in (model.aliases or {}).values()}
        mine = [version for version in versions if version.tags.get(STUDY) == study]
        gone = [version for version in mine if str(version.version) not in held]
        for version in mine:
            if version in gone:
                client.delete_model_version(model.name, str(version.version))
            else:
                set_tags(client, version, {STATE: "removed"})
        count += len(gone)
        if gone and len(gone) == len(versions):
            client.delete_registered_model(model.name)
    return count


def set_tags(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Write the tags that differ."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, str(version.version), key, value)


def versions_of(client: MlflowClient, name: str | None) -> list[ModelVersion]:
    """All versions of a model; of every model when it is None."""
    found: list[ModelVersion] = []
    token: str | None = None
    only = None if name is None else f"name = '{name}'"
    while True:
        page = client.search_model_versions(only, max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _what_there_is(client: MlflowClient, name: str, versions: Sequence[RegisteredVersion]) -> str:
    """Versions and aliases of a model; where it has none, the models that have."""
    if not versions:
        models = ", ".join(dict.fromkeys(item.model for item in list_versions(client)))
        return f"versions of {name}: none; registered models: {models or 'none'}"
    aliases = ", ".join(f"{alias} ({item.version})" for item in versions for alias in item.aliases)
    return f"versions of {name}: {', '.join(item.version for item in versions)}; aliases: {aliases or 'none'}"


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


def _plain(text: str) -> str:
    name = text.rstrip("/") if "://" in text or not text.startswith((".", "/", "~")) else Path(text).name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "model"


def _path(source: str) -> Path:
    return Path(unquote(urlparse(source).path))


def _evidence(solution: Solution, record: EpisodeRecord) -> dict[str, str]:
    assert record.checkpoint is not None
    tags = {
        STATE: "frontier",
        "acf.strategy": record.strategy.label,
        EPISODE: str(record.episode),
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


def _listed(version: ModelVersion, aliases: list[str]) -> RegisteredVersion:
    tags = version.tags
    return RegisteredVersion(
        model=version.name,
        version=str(version.version),
        aliases=tuple(sorted(aliases, key=ALIASES.index) if set(aliases) <= set(ALIASES) else sorted(aliases)),
        strategy=tags.get("acf.strategy", ""),
        state=tags.get(STATE, ""),
        study=tags.get(STUDY, ""),
        episode=tags.get(EPISODE, ""),
        objectives={name: float(tags[f"acf.{name}"]) for name in _OBJECTIVES if f"acf.{name}" in tags},
        source=str(checkpoint_of(_path(version.source))),
        tags=dict(tags),
    )
