"""One export from the checkpoint's name to a finished, verified folder."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from agentic_compression import __version__
from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.export.build import BuildRequest, Built
from agentic_compression.export.card import model_card
from agentic_compression.export.check import CheckRequest, tolerance_of
from agentic_compression.export.copying import copy_file, legal_files, require_own_files
from agentic_compression.export.destination import RECORD_NAME, new_export, require_free_place
from agentic_compression.export.origin import Origin, find_origin, resolve_source
from agentic_compression.export.plan import ExportPlan, plan_export, without_own_grid
from agentic_compression.export.recipe import output_name, recipe_of, write_recipe
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import ExportCheck, ExportFormat, ExportRecord, ExportTolerance, Record
from agentic_compression.storage import write_record

if TYPE_CHECKING:
    from agentic_compression.execution import Supervisor
    from agentic_compression.settings import Settings

__all__ = ["ExportRequest", "export_checkpoint", "export_name"]

_BUILD = "agentic_compression.export.build:build"
_CHECK = "agentic_compression.export.check:check"
_NEAR_LOSSLESS = "F16"
_TIMEOUT_S = 6 * 3600.0
_PACKAGES = (
    "torch", "transformers", "safetensors", "compressed-tensors", "bitsandbytes", "accelerate", "xllamacpp", "gguf",
    "onnx", "onnxruntime",
)  # fmt: skip


class ExportRequest(Record):
    """What a user asks for."""

    source: str = Field(
        min_length=1, description="folder, models:/NAME@ALIAS, models:/NAME/VERSION, STUDY:EPISODE, or 'demo'"
    )
    format: ExportFormat
    output: Path | None = Field(default=None, description="new folder; data/exports/<name>-<format> when None")
    gguf_type: str | None = Field(default=None, description="GGUF file type; the tool chooses when None")
    base_model: str | None = Field(default=None, max_length=512, description="Hub id or folder of the source model")
    force: bool = Field(default=False, description="replace an earlier export")


def export_name(source: str) -> str:
    """A folder name from what the user named: ``demo--demo-smallest`` from ``models:/demo--demo@smallest``."""
    text = (
        source.removeprefix("models:/") if source.startswith("models:/") else Path(source).expanduser().resolve().name
    )
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:100] or "model"


def export_checkpoint(
    request: ExportRequest, settings: Settings, supervisor: Supervisor, progress: Progress = no_progress
) -> ExportRecord:
    """Write an export, compare its answers with the checkpoint's, and put it in its place; or leave nothing.

    Raises:
        ConfigurationError: when the checkpoint has no such form, or the destination is taken.
        ModelError: when the source leads nowhere.
        AcfError: when the files cannot be written, or do not answer as the checkpoint does.
    """
    folder = resolve_source(request.source, settings)
    require_own_files(folder)
    plan = plan_export(folder, request.format, request.gguf_type)
    final = request.output or settings.root / "data" / "exports" / f"{export_name(request.source)}-{request.format}"
    final = final.expanduser().absolute()
    require_free_place(final, force=request.force)
    _require_apart(final.resolve(), folder.resolve())
    origin = find_origin(request.source, folder, settings, request.base_model)
    legal = [*legal_files(origin.base_folder), *legal_files(origin.folder)]
    with new_export(final, force=request.force) as unfinished:
        if plan.making == "recipe":
            record = _recipe(origin, request, unfinished)
        else:
            record = _model(origin, request, plan, unfinished, supervisor, progress)
        record = record.model_copy(update={"path": str(final)})
        for path in legal:
            if not (unfinished / path.name).exists():
                copy_file(path, unfinished / path.name)
        (unfinished / "README.md").write_text(model_card(_with_files(record, unfinished), origin), encoding="utf-8")
        record = _with_files(record, unfinished)
        write_record(unfinished / RECORD_NAME, _shared(record))
    return record


def _require_apart(final: Path, folder: Path) -> None:
    """Neither holds the other: an export changes no checkpoint, and replacing an export deletes none."""
    if final == folder or folder in final.parents:
        raise ConfigurationError(
            f"an export must not lie in its checkpoint {folder}, got {final}; choose another place"
        )
    if final in folder.parents:
        raise ConfigurationError(
            f"an export must not take the place of a folder that holds its checkpoint {folder}, got {final}; choose "
            "another place"
        )


def _recipe(origin: Origin, request: ExportRequest, folder: Path) -> ExportRecord:
    assert origin.manifest is not None
    recipe = recipe_of(origin.manifest, output_name(origin.folder))
    write_recipe(recipe, folder)
    translated = recipe.modifiers or recipe.auto_round is not None
    form = "recipe" if translated else "strategy.json for 'acf compress' alone: no stage has a form in other tools"
    return _record(origin, request, form, recipe.notes, None)


def _model(
    origin: Origin,
    request: ExportRequest,
    plan: ExportPlan,
    folder: Path,
    supervisor: Supervisor,
    progress: Progress,
) -> ExportRecord:
    """Build and check; where the tool chooses the GGUF type, the first one whose answers are near enough."""
    tried: list[str] = []
    strict = _tolerance(origin, None)
    left: list[str | None] = [*(plan.gguf_types or (None,))]
    while left:
        gguf_type = left.pop(0)
        tolerance = _tolerance(origin, gguf_type if plan.chosen else None)
        near = None
        if gguf_type is not None and tolerance != strict and gguf_type != _NEAR_LOSSLESS:
            near = _near_lossless(origin, request, plan, folder, supervisor, progress)
        built = _build(origin, plan, gguf_type, folder, supervisor, progress)
        if not built.form:
            tried += built.notes or ("no linear keeps its codes",)
            left = [*without_own_grid(plan.gguf_types)]
            continue
        checked = _check(origin, request, tolerance, folder, supervisor, progress)
        if checked.passed:
            measured = () if near is None else (_rounding(str(gguf_type), checked, near),)
            return _record(origin, request, built.form, (*plan.notes, *built.notes, *tried, *measured), checked)
        tried.append(f"{gguf_type} was tried and lies too far off: {checked.problem}")
    raise AcfError(
        f"the {request.format} export does not answer as {request.source}: {checked.problem}; nothing was written"
    )


def _near_lossless(
    origin: Origin,
    request: ExportRequest,
    plan: ExportPlan,
    folder: Path,
    supervisor: Supervisor,
    progress: Progress,
) -> ExportCheck:
    """The same conversion without rounding to few bits, held to the strict limits: what is left is the rounding."""
    _build(origin, plan, _NEAR_LOSSLESS, folder, supervisor, progress)
    found = _check(origin, request, _tolerance(origin, None), folder, supervisor, progress)
    if not found.passed:
        raise AcfError(
            f"the conversion itself is at fault: {request.source} as {_NEAR_LOSSLESS}, which rounds next to nothing, "
            f"does not answer as it: {found.problem}; nothing was written"
        )
    return found


def _rounding(gguf_type: str, found: ExportCheck, near: ExportCheck) -> str:
    return (
        f"rounding of {gguf_type} measured: KL divergence {found.mean_kl:.2g} nats a token, most likely next tokens "
        f"agree on {found.top1_agreement:.1%}; the same conversion as {_NEAR_LOSSLESS}: {near.mean_kl:.2g} nats, "
        f"{near.top1_agreement:.1%}"
    )


def _tolerance(origin: Origin, gguf_type: str | None) -> ExportTolerance:
    kinds = {module.kind for module in origin.manifest.modules.values()} if origin.manifest else set()
    return tolerance_of(gguf_type, rounds_activations=bool(kinds & {"int8", "fp8"}))


def _build(
    origin: Origin, plan: ExportPlan, gguf_type: str | None, folder: Path, supervisor: Supervisor, progress: Progress
) -> Built:
    _empty(folder)
    request = BuildRequest(
        source=str(origin.folder), folder=str(folder), plan=plan, gguf_type=gguf_type, threads=_threads()
    )
    done = supervisor.run(_BUILD, request, timeout_s=_TIMEOUT_S, progress=progress)
    if done.result is None:
        raise AcfError(f"{origin.source} could not be written as {gguf_type or plan.making}: {done.error}")
    return Built.model_validate(done.result)


def _check(
    origin: Origin,
    request: ExportRequest,
    tolerance: ExportTolerance,
    folder: Path,
    supervisor: Supervisor,
    progress: Progress,
) -> ExportCheck:
    asked = CheckRequest(
        source=str(origin.folder),
        folder=str(folder),
        format=request.format,
        tolerance=tolerance,
        threads=_threads(),
    )
    done = supervisor.run(_CHECK, asked, timeout_s=_TIMEOUT_S, progress=progress)
    if done.result is None:
        raise AcfError(f"the {request.format} export could not be run, nothing was written: {done.error}")
    return ExportCheck.model_validate(done.result)


def _record(
    origin: Origin, request: ExportRequest, form: str, notes: tuple[str, ...], check: ExportCheck | None
) -> ExportRecord:
    return ExportRecord(
        format=request.format,
        form=form,
        source=request.source,
        source_digest=origin.digest,
        base_digest=origin.manifest.base_digest if origin.manifest else "",
        strategy=origin.strategy.label,
        code_version=__version__,
        packages=_versions(),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        checkpoint_bytes=origin.size_bytes,
        notes=notes,
        check=check,
    )


def _with_files(record: ExportRecord, folder: Path) -> ExportRecord:
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))
             if path.is_file()}  # fmt: skip
    return record.model_copy(update={"files": files})


def _shared(record: ExportRecord) -> ExportRecord:
    """As it goes with the files: paths say something of the machine and nothing of the export."""
    named = record.source.startswith("models:/")
    return record.model_copy(update={"path": "", "source": record.source if named else Path(record.source).name})


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _threads() -> int:
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
