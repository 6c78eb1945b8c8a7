"""One question to a registered model through MLflow, and the same to its checkpoint directly."""

from __future__ import annotations

import os
from contextlib import closing

from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Record, SmokeResult
from agentic_compression.registry.versions import model_folder

__all__ = ["SmokeRequest", "smoke"]

_NEW_TOKENS = 16


class SmokeRequest(Record):
    """Which model, in which registry."""

    uri: str
    registry: str


def smoke(request: SmokeRequest, progress: Progress = no_progress) -> SmokeResult:
    """Load the model as a user of MLflow does and compare its answer with the checkpoint's own greedy one."""
    os.environ["MLFLOW_TRACKING_URI"] = request.registry
    os.environ["MLFLOW_REGISTRY_URI"] = request.registry
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    from agentic_compression.runtimes import GenerationOptions, open_runtime

    mlflow.set_tracking_uri(request.registry)
    mlflow.set_registry_uri(request.registry)
    progress("load", 0, 1)
    model = mlflow.pyfunc.load_model(request.uri)
    prompt = str(model.input_example[0])
    answer = model.predict([prompt], params={"max_new_tokens": _NEW_TOKENS})[0]
    folder = model_folder(mlflow.MlflowClient(request.registry, request.registry), request.uri)
    with closing(open_runtime(folder, "cpu", max(1, len(os.sched_getaffinity(0)) - 1))) as runtime:
        ids = runtime.tokenizer(prompt, verbose=False)["input_ids"]
        expected = runtime.generate([ids], GenerationOptions(new_tokens=_NEW_TOKENS), 1)[0].text
    same = answer == expected
    return SmokeResult(
        uri=request.uri,
        prompt=prompt,
        answer=answer,
        expected=expected,
        passed=same,
        error="" if same else f"answered {answer!r} through MLflow, {expected!r} directly",
    )
