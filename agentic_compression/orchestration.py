"""The one module that starts ZenML pipelines: state inside the project, an idempotent stack, one run an episode."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import AcfError
from agentic_compression.records import Promoted, PromotionRequest, StudyConfig
from agentic_compression.settings import Settings

if TYPE_CHECKING:
    from zenml.client import Client

__all__ = ["ensure_stack", "prepare_environment", "run_episode", "run_promotion"]

STACK = "acf-local"
_QUIET = {
    "ZENML_ANALYTICS_OPT_IN": "false",
    "ZENML_DISABLE_INTERACTIVE_INPUT": "true",
    "ZENML_DISABLE_STEP_LOGS_STORAGE": "true",
    "ZENML_DISABLE_PIPELINE_LOGS_STORAGE": "true",
    "ZENML_ENABLE_REPO_INIT_WARNINGS": "false",
    "ZENML_LOGGING_VERBOSITY": "ERROR",
    "ZENML_LOGGING_COLORS_DISABLED": "true",
    "AUTO_OPEN_DASHBOARD": "false",
    "ZENML_AUTO_OPEN_DASHBOARD": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(settings: Settings) -> None:
    """Set what ZenML and MLflow read when they are imported; call before importing either.

    Values the user has set are left alone, except that ZenML's own state always lies under ``ACF_HOME``
    unless ``ZENML_CONFIG_PATH`` or a ZenML server (``ZENML_STORE_URL``) is given.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("ZENML_CONFIG_PATH", str(settings.zenml_config))
    # No repository: its marker folder would keep the active stack of one root for all roots.
    os.environ.setdefault("ZENML_REPOSITORY_PATH", str(settings.zenml_config))
    _prefer_own_uv()
    settings.zenml_config.mkdir(parents=True, exist_ok=True)


def ensure_stack(settings: Settings) -> None:
    """Make the local stack once and activate it; a stack the user chose with ``ZENML_ACTIVE_STACK_ID`` is kept.

    The stack has a local orchestrator, the artifact store under ``data/artifacts``, MLflow as experiment tracker
    and MLflow as model registry. Repeating this changes nothing.
    """
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind
    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(Path(__file__).resolve().parent.parent))
    client = Client()
    if "ZENML_ACTIVE_STACK_ID" in os.environ:
        return
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    wanted: dict[Kind, tuple[str, dict[str, Any]]] = {
        Kind.ORCHESTRATOR: ("local", {}),
        Kind.ARTIFACT_STORE: ("local", {"path": str(settings.artifacts)}),
        Kind.EXPERIMENT_TRACKER: ("mlflow", {"tracking_uri": settings.mlflow_uri}),
        Kind.MODEL_REGISTRY: ("mlflow", {}),
    }
    existing = _stack_or_none(client)
    if existing is None:
        components = {kind: _component(client, kind, flavor, values) for kind, (flavor, values) in wanted.items()}
        existing = client.create_stack(STACK, components)
    if client.active_stack_model.id != existing.id:
        client.activate_stack(existing.id)


def run_episode(config: StudyConfig) -> None:
    """Advance the study by one episode: one run of the episode pipeline on the active stack.

    Raises:
        AcfError: what a step raised on purpose, as it was raised.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.
    """
    from pipelines.episode import compression_episode

    _run(compression_episode, study=config)


def run_promotion(request: PromotionRequest) -> Promoted:
    """Promote a version: one run of the promotion pipeline on the active stack.

    Raises:
        AcfError: what a step raised on purpose: the gate's refusal, a failed smoke test.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.
    """
    from pipelines.promotion import promotion

    response = _run(promotion, request=request)
    if response is None:
        raise AcfError("the promotion was started elsewhere; see: zenml pipeline runs list")
    promoted: Promoted = response.steps["smoke_test"].outputs["promoted"][0].load()
    return promoted


def _run(pipeline: Any, **parameters: Any) -> Any:
    """One run to its end; its response, or None where it goes on elsewhere."""
    from zenml.exceptions import RunInterruptedException

    try:
        with _zenml_quiet():
            response = pipeline.with_options(run_name=None)(**parameters)
    except RunInterruptedException as error:  # ZenML's own handler of SIGINT and SIGTERM
        raise KeyboardInterrupt from error
    if response is not None and str(response.status) not in {"completed", "ExecutionStatus.COMPLETED"}:
        raise AcfError(f"the pipeline run {response.name} ended as {response.status}; see: zenml pipeline runs list")
    return response


def _stack_or_none(client: Client) -> Any:
    try:
        return client.get_stack(STACK, allow_name_prefix_match=False)
    except KeyError:
        return None


def _component(client: Client, kind: Any, flavor: str, values: dict[str, Any]) -> Any:
    name = f"{STACK}-{kind.value}".replace("_", "-")
    try:
        return client.get_stack_component(kind, name, allow_name_prefix_match=False).id
    except KeyError:
        return client.create_stack_component(name, flavor, kind, values).id


def _prefer_own_uv() -> None:
    """ZenML lists the installed packages twice a run; with ``uv`` on the path that takes 1-2 s less."""
    folder = Path(sys.executable).parent
    if (folder / "uv").exists():
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


@contextmanager
def _zenml_quiet() -> Iterator[None]:
    """ZenML logs every step and the traceback of a failing one; the caller shows both in one line."""
    logger = logging.getLogger("zenml")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
