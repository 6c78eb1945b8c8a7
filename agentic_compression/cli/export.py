"""``acf export``: a checkpoint in the form that other runtimes load."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    from agentic_compression.records import ExportRecord

__all__ = ["export"]


def export(
    source: Annotated[
        str,
        typer.Argument(help="Checkpoint folder, models:/NAME@ALIAS, models:/NAME/VERSION, STUDY:EPISODE, or 'demo'."),
    ],
    format_: Annotated[str, typer.Option("--format", "-f", help="One of hf, gguf, compressed-tensors, onnx, recipe.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder; data/exports/NAME-FORMAT when left out.")
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", help="GGUF file type, such as Q4_K_M; the smallest that answers alike when left out."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Hub id or folder of the source model, for the model card.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in that folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Write SOURCE for another runtime, load it there, and compare its answers with the checkpoint's own.

    hf: a folder that plain transformers loads. gguf: a file for llama.cpp. compressed-tensors: a folder for vLLM.
    onnx: a graph for ONNX Runtime. recipe: the strategy for llm-compressor, AutoRound and 'acf compress'. What a
    format cannot hold is refused with the reason; an export that answers otherwise is not kept.

    Examples:

      acf export models:/demo--demo@smallest --format gguf

      acf export demo-demo:3 --format hf -o ./small-hf

      acf export demo --format gguf --type Q4_K_M -o ./demo-gguf
    """
    from agentic_compression.records import EXPORT_FORMATS

    if format_ not in EXPORT_FORMATS:
        raise ConfigurationError(f"--format is one of {', '.join(EXPORT_FORMATS)}, got {format_!r}")
    from agentic_compression.cli.live import wide_console
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.export import ExportRequest, export_checkpoint
    from agentic_compression.settings import get_settings

    request = ExportRequest(
        source=source, format=format_, output=output, gguf_type=type_, base_model=base_model, force=force
    )
    console: Any = wide_console(quiet=as_json)

    def show(what: str, done: int, total: int) -> None:
        status.update({"write": "writing the files", "check": "comparing the answers"}.get(what, what))

    with _terminated_as_interrupted(), console.status("reading the checkpoint") as status:
        record = export_checkpoint(request, get_settings(), shared_supervisor(), show)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
        return
    for line in _lines(record):
        typer.echo(line)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that what is half-written is removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines(record: ExportRecord) -> Iterator[str]:
    form = "" if record.form == record.format else f", {record.form}"
    size = f"{record.size_bytes / 1e6:.2f} MB" if record.size_bytes >= 1e5 else f"{record.size_bytes / 1e3:.1f} kB"
    yield f"{record.format}{form}: {size} in {record.path}"
    for note in record.notes:
        yield f"note      {note}"
    check = record.check
    if check is None:
        yield "check     recipes hold no weights; every file was read back"
        return
    same = sum(item.same for item in check.prompts)
    yield (
        f"check     {check.runtime} beside {check.reference}: {same} of {len(check.prompts)} greedy answers the same, "
        f"top-1 agreement {check.top1_agreement:.1%} of {check.tokens} tokens, KL {check.mean_kl:.2g} nats a token "
        f"({check.tolerance.mean_kl:g} allowed), at most {check.max_kl:.2g}"
    )
