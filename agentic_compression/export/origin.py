"""What is known of a checkpoint: where it came from, what was measured on it, and its source model's licence."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentic_compression.checkpoints import CheckpointManifest, checkpoint_ref, read_manifest
from agentic_compression.demo import model_path
from agentic_compression.errors import AcfError, ModelError
from agentic_compression.export.copying import LEGAL_NAME
from agentic_compression.records import BASELINE, EpisodeRecord, ModelSpec, Strategy, StudyConfig
from agentic_compression.settings import Settings

__all__ = ["Licence", "Origin", "find_origin", "licence_of", "resolve_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_EPISODE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,99}):(\d{1,6})")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,95}")
_LINK = re.compile(r"https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~/%+-]*)?(#[A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Licence:
    """The source model's licence as its own card names it.

    Attributes:
        names: Hub identifiers, several where the card has a list; none: not known.
        why: it is not known.
        title: of a licence that the Hub has no identifier for (``other``).
        link: to its text: an https address, or a file of the model.
    """

    names: tuple[str, ...] = ()
    why: str = ""
    title: str = ""
    link: str = ""


@dataclass(frozen=True)
class Origin:
    """A checkpoint and what the state root knows of it.

    Attributes:
        source: as the user named it.
        folder: of the checkpoint.
        digest: of what must be shipped.
        size_bytes: of what must be shipped.
        manifest: None for a plain Hugging Face folder.
        base_model: Hub id, path or name of the model that was compressed; None when not known.
        base_folder: where its files are, when they are here.
        on_hub: ``base_model`` names a model of the Hub: it was compressed from there, or the user says so.
        stated: it is the user's word what ``base_model`` is.
        licence: of that model.
        study: in which it was measured; empty when it was not.
        measured: its episode, accuracy on the report items where there are any; None when it was not measured here.
        baseline: the uncompressed model's episode of the same study.
    """

    source: str
    folder: Path
    digest: str
    size_bytes: int
    manifest: CheckpointManifest | None
    base_model: str | None
    base_folder: Path | None
    licence: Licence
    on_hub: bool = False
    stated: bool = False
    study: str = ""
    measured: EpisodeRecord | None = None
    baseline: EpisodeRecord | None = None

    @property
    def strategy(self) -> Strategy:
        """What was done to the model."""
        return BASELINE if self.manifest is None else self.manifest.strategy


def resolve_source(source: str, settings: Settings) -> Path:
    """The folder that a folder, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``STUDY:EPISODE`` or ``demo`` names.

    Raises:
        ModelError: when it leads nowhere.
    """
    if source == "demo":
        return model_path()
    if source.startswith("models:/"):
        from agentic_compression.registry import model_folder
        from agentic_compression.tracking import open_client

        if not _database(settings).is_file():
            raise ModelError(f"{source}: there is no registry in {settings.root}; give a folder, or set ACF_HOME")
        return model_folder(open_client(settings.mlflow_uri), source).resolve()
    folder = Path(source).expanduser()
    if not folder.exists() and (match := _EPISODE.fullmatch(source)):
        return _episode_folder(match[1], int(match[2]), settings)
    if not folder.is_dir():
        raise ModelError(
            f"what is exported is a folder, models:/NAME@ALIAS or STUDY:EPISODE, got {source!r}; check the path"
        )
    return folder.resolve()


def _episode_folder(study: str, episode: int, settings: Settings) -> Path:
    from agentic_compression.tracking import MlflowHistory, open_client

    records: list[EpisodeRecord] = []
    if _database(settings).is_file():
        history = MlflowHistory(open_client(settings.mlflow_uri), settings.mlflow_artifacts)
        records = history.records(study) if history.exists(study) else []
    record = next((item for item in records if item.episode == episode), None)
    if record is None:
        known = ", ".join(str(item.episode) for item in records) or "none, there is no such study"
        raise ModelError(f"no episode {episode} of study {study!r} in {settings.root}; its episodes: {known}")
    if record.checkpoint is None:
        raise ModelError(f"{study}:{episode} has no checkpoint: it {record.status} ({record.error or 'no reason'})")
    folder = Path(record.checkpoint.path)
    if not folder.is_dir():
        raise ModelError(
            f"the checkpoint of {study}:{episode} is gone; make it again with 'acf rebuild {study} {episode}' and "
            "export the folder that it names"
        )
    return folder.resolve()


def find_origin(source: str, folder: Path, settings: Settings, base_model: str | None = None) -> Origin:
    """Gather what is known; nothing is guessed.

    Args:
        source: as the user named it.
        folder: the checkpoint it names.
        settings: of the state root that may have measured it.
        base_model: what the user says was compressed; else it is looked up.

    Raises:
        ModelError: when the folder is no checkpoint.
    """
    manifest = read_manifest(folder)
    reference = checkpoint_ref(folder, BASELINE.key)
    study, measured, baseline = _evidence(reference.digest, settings)
    base = _stated(base_model) if base_model else _base(manifest, folder, study, settings)
    place = base.folder if base.folder is not None and base.folder.is_dir() else None
    return Origin(
        source=source,
        folder=folder,
        digest=reference.digest,
        size_bytes=reference.size_bytes,
        manifest=manifest,
        base_model=base.name,
        base_folder=place,
        licence=licence_of(base.name, place, settings, on_hub=base.on_hub),
        on_hub=base.on_hub,
        stated=bool(base_model),
        study=study,
        measured=measured,
        baseline=baseline,
    )


def licence_of(name: str | None, place: Path | None, settings: Settings, *, on_hub: bool = False) -> Licence:
    """The licence that a model's own card states, read from its folder, or asked of the Hub if it is from there."""
    if place is not None:
        found = _licence(_front_matter(place / "README.md"))
        return found or Licence(why="the source model's folder has no card that names one")
    if name is None:
        return Licence(why="the source model is not known")
    if not on_hub:
        return Licence(why="the source model's folder is not here")
    return _hub_licence(name, settings)


def _hub_licence(name: str, settings: Settings) -> Licence:
    from huggingface_hub import HfApi

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        card: Any = HfApi(endpoint=settings.hf_endpoint, token=token).model_info(name, timeout=10).card_data
        values = card.to_dict() if card is not None else {}
    except Exception as error:  # offline, gated, gone: the licence is then not known
        return Licence(why=f"the Hub could not be asked ({type(error).__name__})")
    found = _licence(values)
    if found is None:
        return Licence(why="the source model's card names none")
    if found.link and not found.link.startswith("https://"):
        return replace(found, link=f"{settings.hf_endpoint.rstrip('/')}/{name}/blob/main/{found.link}")
    return found


def _licence(card: dict[str, Any]) -> Licence | None:
    """What the values at the start of a model card say; None when that is nothing that can be taken over."""
    found = card.get("license")
    given: list[Any] = found if isinstance(found, list) else [found]
    names = tuple(item.lower() for item in given if isinstance(item, str) and _LICENCE.fullmatch(item))
    if not names or len(names) < len(given):
        return None
    title, link = card.get("license_name"), card.get("license_link")
    return Licence(
        names=names,
        title=title if isinstance(title, str) and _TITLE.fullmatch(title) else "",
        link=link if isinstance(link, str) and (_LINK.fullmatch(link) or LEGAL_NAME.fullmatch(link)) else "",
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML block at the start of a model card; empty when there is none that can be read."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    match = re.match(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", text, re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _evidence(digest: str, settings: Settings) -> tuple[str, EpisodeRecord | None, EpisodeRecord | None]:
    """Study, episode and baseline of the registered version with this digest, the newest of several."""
    if not _database(settings).is_file():
        return "", None, None
    from agentic_compression.frontier.reported import displayed
    from agentic_compression.registry import list_versions
    from agentic_compression.tracking import MlflowHistory, open_client

    client = open_client(settings.mlflow_uri)
    found = [item for item in list_versions(client) if item.tags.get("acf.digest") == digest and item.episode]
    history = MlflowHistory(client, settings.mlflow_artifacts)
    for version in reversed(found):
        if not history.exists(version.study):
            continue
        records = {item.episode: item for item in displayed(history.records(version.study))}
        mine = records.get(int(version.episode))
        if mine is not None and mine.objectives and mine.checkpoint and mine.checkpoint.digest == digest:
            return version.study, mine, records.get(0)
    return "", None, None


@dataclass(frozen=True)
class _Base:
    """The model that was compressed; all empty: not known."""

    name: str | None = None
    folder: Path | None = None
    on_hub: bool = False


def _stated(name: str) -> _Base:
    """What the user says; a name that is a folder here is none of the Hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _Base(name, folder)
    return _Base(name, on_hub=bool(_HUB_ID.fullmatch(name)))


def _base(manifest: CheckpointManifest | None, folder: Path, study: str, settings: Settings) -> _Base:
    """By its study, or by the digest in the manifest. What a study read from a folder is not the Hub's of that name."""
    config = _study_config(study, settings) if study else None
    if config is not None and not config.model.startswith("models:/"):
        if config.model == "demo":
            return _Base("demo", model_path())
        spec = _model_spec(settings.experiments / study / "model_spec.json")
        return _Base(config.model, Path(config.model).expanduser()) if spec is None else _of_spec(spec)
    if manifest is None:
        return _Base("demo" if folder == model_path().resolve() else folder.name, folder)
    return _by_digest(manifest.base_digest, settings) if manifest.base_digest else _Base()


def _by_digest(digest: str, settings: Settings) -> _Base:
    if digest == _digest(model_path(), settings):
        return _Base("demo", model_path())
    specs = map(_model_spec, sorted(settings.experiments.glob("*/model_spec.json")))
    return next((_of_spec(spec) for spec in specs if spec is not None and spec.digest == digest), _Base())


def _of_spec(spec: ModelSpec) -> _Base:
    if spec.path is not None:
        return _Base(spec.model, Path(spec.path))
    return _Base(spec.model, on_hub=bool(_HUB_ID.fullmatch(spec.model)))


def _model_spec(path: Path) -> ModelSpec | None:
    try:
        return ModelSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _study_config(study: str, settings: Settings) -> StudyConfig | None:
    try:
        text = (settings.experiments / study / "study.json").read_text(encoding="utf-8")
        return StudyConfig.model_validate_json(text)
    except (OSError, ValidationError):
        return None


def _digest(folder: Path, settings: Settings) -> str | None:
    from agentic_compression.spec import infer_spec

    try:
        return infer_spec(str(folder), settings=settings).digest
    except AcfError:
        return None


def _database(settings: Settings) -> Path:
    return settings.root / "data" / "mlflow.db"
