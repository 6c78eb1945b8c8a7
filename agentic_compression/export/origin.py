"""What is known of a checkpoint: where it came from, what was measured on it, and its source model's licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentic_compression.checkpoints import CheckpointManifest, checkpoint_ref, read_manifest
from agentic_compression.demo import model_path
from agentic_compression.errors import AcfError, ModelError
from agentic_compression.records import BASELINE, EpisodeRecord, ModelSpec, Strategy, StudyConfig
from agentic_compression.settings import Settings

__all__ = ["Licence", "Origin", "find_origin", "licence_of", "resolve_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


@dataclass(frozen=True)
class Licence:
    """The source model's licence as its own card names it; ``name`` None: not known, ``why`` says why not."""

    name: str | None
    why: str = ""


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
    study: str = ""
    measured: EpisodeRecord | None = None
    baseline: EpisodeRecord | None = None

    @property
    def strategy(self) -> Strategy:
        """What was done to the model."""
        return BASELINE if self.manifest is None else self.manifest.strategy


def resolve_source(source: str, settings: Settings) -> Path:
    """The checkpoint folder that a folder, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``demo`` names.

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
    if not folder.is_dir():
        raise ModelError(f"what is exported is a folder or models:/NAME@ALIAS, got {source!r}; check the path")
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
    name, place = (base_model, None) if base_model else _base(manifest, folder, study, settings)
    if name is not None and place is None and Path(name).expanduser().is_dir():
        place = Path(name).expanduser()
    return Origin(
        source=source,
        folder=folder,
        digest=reference.digest,
        size_bytes=reference.size_bytes,
        manifest=manifest,
        base_model=name,
        base_folder=place,
        licence=licence_of(name, place, settings),
        study=study,
        measured=measured,
        baseline=baseline,
    )


def licence_of(name: str | None, place: Path | None, settings: Settings) -> Licence:
    """The licence that a model's own card states, read from its folder or asked of the Hub."""
    if place is not None:
        found = _front_matter(place / "README.md").get("license")
        if isinstance(found, str) and _LICENCE.fullmatch(found):
            return Licence(found.lower())
        return Licence(None, "the source model's folder has no card that names one")
    if name is None:
        return Licence(None, "the source model is not known")
    if not _HUB_ID.fullmatch(name):
        return Licence(None, "the source model's folder is not here")
    return _hub_licence(name, settings)


def _hub_licence(name: str, settings: Settings) -> Licence:
    from huggingface_hub import HfApi

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        card: Any = HfApi(endpoint=settings.hf_endpoint, token=token).model_info(name, timeout=10).card_data
        found = card.get("license") if card is not None else None
    except Exception as error:  # offline, gated, gone: the licence is then not known
        return Licence(None, f"the Hub could not be asked ({type(error).__name__})")
    if isinstance(found, str) and _LICENCE.fullmatch(found):
        return Licence(found.lower())
    return Licence(None, "the source model's card names none")


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


def _base(
    manifest: CheckpointManifest | None, folder: Path, study: str, settings: Settings
) -> tuple[str | None, Path | None]:
    """Name and folder of the model that was compressed: by its study, or by the digest in the manifest."""
    if study and (config := _study_config(study, settings)) is not None and not config.model.startswith("models:/"):
        demo = config.model == "demo"
        return config.model, model_path() if demo else None
    if manifest is None:
        return ("demo" if folder == model_path().resolve() else folder.name), folder
    if manifest.base_digest:
        if manifest.base_digest == _digest(model_path(), settings):
            return "demo", model_path()
        for path in sorted(settings.experiments.glob("*/model_spec.json")):
            try:
                spec = ModelSpec.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValidationError):
                continue
            if spec.digest == manifest.base_digest:
                return spec.model, Path(spec.path) if spec.path else None
    return None, None


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
