"""What can be known to be wrong in a second is said before anything slow starts."""

from __future__ import annotations

from agentic_compression.methods import describe_methods
from agentic_compression.records import ModelSpec, StudyConfig
from agentic_compression.settings import Settings
from agentic_compression.spec import infer_spec
from agentic_compression.study.episode import dataset_of

__all__ = ["preflight"]


def preflight(config: StudyConfig, settings: Settings) -> ModelSpec | None:
    """Infer the model's specification and resolve the dataset, without history or child processes.

    Returns:
        The specification; None for a model in the registry, which needs the history to be found.

    Raises:
        ModelError: the model is missing, corrupt, gated or has no tokenizer.
        DatasetError: the dataset is missing or malformed.
    """
    spec = None
    if not config.model.startswith("models:/"):
        spec = infer_spec(
            config.model, settings=settings, trust_remote_code=config.trust_remote_code, methods=describe_methods()
        )
    dataset_of(config, settings)
    return spec
