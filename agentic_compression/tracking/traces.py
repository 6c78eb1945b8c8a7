"""Calls to a language model as MLflow traces of the study's experiment, written from their records afterwards.

Written straight to the store of the history's client, neither through MLflow's process-wide tracing, which goes to
whatever tracking address is set globally, nor in the background, where the end of the process could lose it.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agentic_compression.records import PlannerCall

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Span

__all__ = ["without_texts", "write_traces"]

_NAME = "planner call"
_PREVIEW = 1000

_log = logging.getLogger(__name__)


def write_traces(
    client: MlflowClient, study: str, calls: Sequence[PlannerCall], episode: int, run_id: str | None = None
) -> int:
    """Write one trace a call: prompt and answer, model, prompt version, tokens, cost, latency and status.

    A trace that cannot be written is logged and passed over: no episode depends on it.

    Args:
        client: of the history.
        study: name of the experiment.
        calls: with their texts.
        episode: that was planned.
        run_id: the episode's run, which the traces are linked to.

    Returns:
        How many were written.
    """
    written = 0
    for call in calls:
        try:
            _write(client, study, call, episode, run_id)
            written += 1
        except Exception as problem:  # a database, a full disk, another version of MLflow
            _log.warning("a planner call of %s could not be traced: %s", study, type(problem).__name__)
    return written


def without_texts(calls: Sequence[PlannerCall]) -> tuple[PlannerCall, ...]:
    """The same calls without prompts and answers: what plans and records keep, which have little room."""
    return tuple(call.model_copy(update={"prompt": "", "answer": ""}) for call in calls)


def _write(client: MlflowClient, study: str, call: PlannerCall, episode: int, run_id: str | None) -> None:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient

    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        raise LookupError(f"no experiment {study}")
    trace_id, identifier = secrets.token_hex(16), experiment.experiment_id
    began_ns = int(datetime.fromisoformat(call.started_at).timestamp() * 1e9)
    metadata = {"mlflow.trace.tokenUsage": json.dumps(_usage(call))}
    if run_id is not None:
        metadata["mlflow.sourceRun"] = run_id
    info = TraceInfo(
        trace_id=f"tr-{trace_id}",
        trace_location=TraceLocation.from_experiment_id(identifier),
        request_time=began_ns // 10**6,
        state=TraceState.OK if call.status == "ok" else TraceState.ERROR,
        request_preview=call.prompt[:_PREVIEW],
        response_preview=(call.answer or call.error)[:_PREVIEW],
        execution_duration=round(call.seconds * 1000),
        trace_metadata=metadata,
        tags={"mlflow.traceName": _NAME, **_facts(call, episode)},
    )
    store = TracingClient(client.tracking_uri).store
    store.start_trace(info)
    store.log_spans(identifier, [_span(call, episode, trace_id, began_ns)])


def _span(call: PlannerCall, episode: int, trace_id: str, began_ns: int) -> Span:
    """The one span of a call."""
    from mlflow.entities import Span

    inputs = {"messages": json.loads(call.prompt) if call.prompt else []}
    attributes: dict[str, Any] = {
        "mlflow.traceRequestId": f"tr-{trace_id}",
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": inputs,
        "mlflow.spanOutputs": {"answer": call.answer, "error": call.error},
        "mlflow.chat.tokenUsage": _usage(call),
        "mlflow.llm.model": call.model,
        **_facts(call, episode),
    }
    if call.cost_usd is not None:
        attributes["mlflow.llm.cost"] = {"total_cost": call.cost_usd}
    status = "STATUS_CODE_OK" if call.status == "ok" else "STATUS_CODE_ERROR"
    return Span.from_dict(
        {
            "trace_id": f"tr-{trace_id}",
            "span_id": secrets.token_hex(8),
            "parent_span_id": None,
            "name": _NAME,
            "start_time_unix_nano": began_ns,
            "end_time_unix_nano": began_ns + int(call.seconds * 1e9),
            "events": [],
            "status": {"code": status, "message": call.error},
            "attributes": {name: json.dumps(value, ensure_ascii=False) for name, value in attributes.items()},
        }
    )


def _usage(call: PlannerCall) -> dict[str, int]:
    return {
        "input_tokens": call.prompt_tokens,
        "output_tokens": call.completion_tokens,
        "total_tokens": call.prompt_tokens + call.completion_tokens,
    }


def _facts(call: PlannerCall, episode: int) -> dict[str, str]:
    return {
        "acf.episode": str(episode),
        "acf.model": call.model,
        "acf.prompt_version": call.prompt_version,
        "acf.prompt_tokens": str(call.prompt_tokens),
        "acf.completion_tokens": str(call.completion_tokens),
        "acf.cost_usd": "unknown" if call.cost_usd is None else f"{call.cost_usd:.6f}",
        "acf.seconds": f"{call.seconds:.3f}",
        "acf.attempts": str(call.attempts),
        "acf.status": call.status,
        "acf.error": call.error[:200],
    }
