"""``acf serve``: models behind an OpenAI-compatible HTTP interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from agentic_compression.serving.engine import EngineKind

__all__ = ["serve"]


def serve(
    models: Annotated[list[str], typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, folders, or 'demo'.")],
    name: Annotated[
        list[str] | None, typer.Option(help="Name to serve a model under, in the order of the models; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    engine: Annotated[
        str | None, typer.Option(help="auto, transformers, llama.cpp or vllm; ACF_SERVE_ENGINE when left out.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of an engine; half the cores when left out.", min=1)
    ] = None,
) -> None:
    """Serve MODELS over HTTP in OpenAI's wire format: chats, completions and embeddings, streamed or not.

    A model is loaded when it is first asked for. One named by an alias follows it: when the alias moves, new requests
    go to the new version, while the old one finishes its answers. Limits, keys and origins come from ACF_SERVE_*
    variables; .env.example lists them. Ctrl-C lets answers that are under way finish.

    Examples:

      acf serve demo

      acf serve models:/demo--demo@champion --name champion --port 8080

      acf serve ./my-model ./my-model-gguf --name dense --name gguf --threads 2

      acf serve ./my-model --engine vllm --device cuda
    """
    import logging
    import os

    from agentic_compression.demo import model_path
    from agentic_compression.serving.app import create_app
    from agentic_compression.serving.engine import EngineOptions
    from agentic_compression.serving.metrics import Metrics
    from agentic_compression.serving.pool import ModelPool, PoolOptions
    from agentic_compression.serving.security import read_proxies
    from agentic_compression.serving.server import listening, run_server
    from agentic_compression.serving.sources import read_sources
    from agentic_compression.serving.summary import describe_server, list_risks
    from agentic_compression.settings import get_settings

    settings = get_settings()
    proxies = read_proxies(settings.serve_trusted_proxies)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    references = [str(model_path()) if model == "demo" else model for model in models]
    names = list(name or [])
    if not names and models == ["demo"]:
        names = ["demo"]
    sources = read_sources(references, names, _open_registry)
    options = EngineOptions(
        slots=settings.serve_slots,
        queue=settings.serve_queue,
        cache_tokens=settings.serve_cache_tokens,
        device=device,
        threads=threads or max(1, (os.cpu_count() or 2) // 2),
        max_new_tokens=settings.serve_max_new_tokens,
        engine=_read_engine(engine or settings.serve_engine, device),
        gpu_share=settings.serve_gpu_share,
    )
    pool = PoolOptions(
        max_models=settings.serve_max_models,
        memory_bytes=None if settings.serve_memory_gb is None else int(settings.serve_memory_gb * 1e9),
        idle_s=settings.serve_idle_s,
        load_timeout_s=settings.serve_load_timeout_s,
        follow_s=settings.serve_follow_s,
        logs=settings.logs,
    )
    metrics = Metrics()
    app = create_app(ModelPool(sources, options, pool, metrics), metrics, settings)
    shown = f"[{host}]" if ":" in host else host
    with listening(host, port) as listener:  # before an address is printed that is another's
        for line in describe_server(f"http://{shown}:{port}", sources, options, pool, settings):
            typer.echo(line)
        for risk in list_risks(host, settings):
            typer.secho(f"risk      {risk}", fg=typer.colors.YELLOW)
        run_server(app, listener, settings.serve_drain_s, proxies)


def _read_engine(name: str, device: str) -> EngineKind:
    """The engine of that name, once it can run here."""
    from agentic_compression.errors import ConfigurationError
    from agentic_compression.serving.engine import ENGINE_KINDS

    kind = next((kind for kind in ENGINE_KINDS if kind == name), None)
    if kind is None:
        raise ConfigurationError(f"an engine must be one of {', '.join(ENGINE_KINDS)}, got {name!r}; choose one")
    if kind == "vllm":
        from agentic_compression.serving.vllm_engine import require_vllm

        require_vllm(device)
    return kind


def _open_registry() -> MlflowClient:
    from agentic_compression.settings import get_settings
    from agentic_compression.tracking import open_client

    return open_client(get_settings().mlflow_uri)
