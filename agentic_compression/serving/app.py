"""The server's routes."""

from __future__ import annotations

import array
import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from agentic_compression import __version__
from agentic_compression.errors import AcfError
from agentic_compression.serving.answers import embedding_answer, model_card
from agentic_compression.serving.engine import Embedded
from agentic_compression.serving.errors import RequestError, as_request_error, error_response, refused_body
from agentic_compression.serving.follow import look_after
from agentic_compression.serving.gate import Gate
from agentic_compression.serving.generation import answer_generation, version_headers
from agentic_compression.serving.memory_watch import MemoryWatch
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.pool import Loaded, ModelPool
from agentic_compression.serving.schemas import (
    ERRORS,
    ChatCompletion,
    DetailedHealth,
    Embeddings,
    Health,
    MemoryReport,
    ModelCard,
    ModelList,
    TextCompletion,
    answered_with,
)
from agentic_compression.serving.security import ApiKeys, RateLimit, read_origins
from agentic_compression.serving.streams import while_connected
from agentic_compression.serving.wire import ChatRequest, CompletionRequest, EmbeddingRequest
from agentic_compression.settings import Settings

__all__ = ["create_app"]


def create_app(pool: ModelPool, metrics: Metrics, settings: Settings) -> FastAPI:
    """The application; the pool is started and closed with it.

    Raises:
        ConfigurationError: when keys or origins in the environment are malformed.
    """
    keys = ApiKeys(settings.serve_api_keys.get_secret_value() if settings.serve_api_keys else "")
    watch = MemoryWatch(lambda: {item.model: item.engine.resident_bytes() for item in pool.loaded})

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        pool.start()
        tasks = [asyncio.create_task(look_after(pool)), asyncio.create_task(watch.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await pool.close()

    # The gate checks keys; this only tells readers of the OpenAPI document that it does.
    documented = [Security(HTTPBearer(auto_error=False, description="a key of this server"))] if len(keys) else []
    app = FastAPI(
        title="acf serve",
        version=__version__,
        lifespan=life,
        redoc_url=None,
        responses=ERRORS,
        dependencies=documented,
    )
    app.add_middleware(
        Gate,
        keys=keys,
        rate=RateLimit(settings.serve_requests_per_minute),
        failures=RateLimit(settings.serve_failures_per_minute),
        metrics=metrics,
        max_body_bytes=settings.serve_max_body_bytes,
    )
    origins, credentials = read_origins(settings.serve_cors_origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials=credentials,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients send their own, such as X-Stainless-Lang; origins are what is limited
            expose_headers=["X-Request-ID", "X-ACF-Version", "X-ACF-Fallback", "X-ACF-Truncated", "Retry-After"],
        )
    _add_error_handlers(app)
    _add_inference(app, pool, metrics)
    _add_operation(app, pool, metrics, watch)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    def answer(request: Request, error: RequestError) -> JSONResponse:
        return error_response(error, request.state.request_id)

    @app.exception_handler(AcfError)
    async def known(request: Request, error: AcfError) -> JSONResponse:
        return answer(request, as_request_error(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "route_not_found", 405: "method_not_allowed"}
        message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        code = codes.get(error.status_code, "http_error")
        return answer(request, RequestError(error.status_code, code, message, headers=dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, refused_body(error.errors(), error.body))


def _add_inference(app: FastAPI, pool: ModelPool, metrics: Metrics) -> None:
    @app.get("/v1/models", response_model=None, responses=answered_with(ModelList))
    async def list_models() -> dict[str, Any]:
        """The served models."""
        cards = [model_card(item.name, item.created) for item in pool.models.values()]
        return {"object": "list", "data": cards}

    @app.get("/v1/models/{model:path}", response_model=None, responses=answered_with(ModelCard))
    async def show_model(model: str) -> dict[str, Any]:
        """One served model."""
        item = pool.find(model)
        return model_card(item.name, item.created)

    @app.post("/v1/chat/completions", response_model=None, responses=answered_with(ChatCompletion, streamed=True))
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a chat."""
        return await answer_generation(request, body, pool, metrics)

    @app.post("/v1/completions", response_model=None, responses=answered_with(TextCompletion, streamed=True))
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continue a text."""
        return await answer_generation(request, body, pool, metrics)

    @app.post("/v1/embeddings", response_model=None, responses=answered_with(Embeddings))
    async def embed(request: Request, body: EmbeddingRequest) -> Response:
        """Vectors of texts: the mean of the last hidden states, of length 1."""
        body.refuse_unsupported()

        async def work() -> tuple[Loaded, Embedded]:
            async with pool.lease(body.model) as loaded:
                return loaded, await loaded.engine.embed(body.texts, body.truncation == "auto")

        loaded, found = await while_connected(request, work())
        metrics.count_tokens(loaded.model, found.tokens, 0)
        encode = _as_base64 if body.encoding_format == "base64" else _as_floats
        answer = embedding_answer(body.model, [encode(item) for item in found.vectors], found.tokens, found.truncated)
        return JSONResponse(answer, headers=version_headers(loaded, found.truncated))


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _as_floats(vector: bytes) -> list[float]:
    return list(array.array("f", vector))


def _add_operation(app: FastAPI, pool: ModelPool, metrics: Metrics, watch: MemoryWatch) -> None:
    started = time.time()

    @app.get("/health", response_model=None, responses=answered_with(Health))
    async def health() -> dict[str, str]:
        """Whether the server answers; needs no key."""
        return {"status": "ok"}

    @app.get("/health/detailed", response_model=None, responses=answered_with(DetailedHealth))
    async def detailed() -> dict[str, Any]:
        """Every model with its state."""
        models = {name: _state(pool, name) for name in pool.models}
        troubled = any(state["problem"] for state in models.values())
        return {
            "status": "degraded" if troubled else "ok",
            "version": __version__,
            "uptime_seconds": time.time() - started,
            "models": models,
        }

    @app.get("/health/memory", response_model=None, responses=answered_with(MemoryReport))
    async def memory() -> dict[str, Any]:
        """Memory of the server and its engines, and whether it looks like a leak."""
        return await asyncio.to_thread(watch.report)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def read_metrics() -> Response:
        """Metrics for Prometheus."""
        running: dict[str, list[int]] = {name: [0, 0] for name in pool.models}
        for item in pool.loaded:
            running[item.model][0] += item.engine.running
            running[item.model][1] += item.engine.waiting
        for name, (busy, waiting) in running.items():
            metrics.running.labels(name).set(busy)
            metrics.waiting.labels(name).set(waiting)
        return Response(metrics.render(), media_type=metrics.content_type)


def _state(pool: ModelPool, name: str) -> dict[str, Any]:
    served = pool.models[name]
    state: dict[str, Any] = {
        "reference": served.source.reference,
        "state": "loading" if served.loading else "loaded" if served.loaded else "unloaded",
        "problem": served.problem,
        "retry_in_s": served.backoff.wait_s,
    }
    if (loaded := served.loaded) is not None:
        state |= {
            "serves": loaded.target.label,
            "in_place_of": loaded.wanted.label if loaded.fell_back else None,
            "loaded_at": loaded.since,
            "memory_bytes": loaded.bytes,
            "requests": loaded.users,
            "running": loaded.engine.running,
            "waiting": loaded.engine.waiting,
            "engine": vars(loaded.engine.info),
        }
    return state
