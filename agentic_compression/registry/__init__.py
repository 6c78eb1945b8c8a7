"""The MLflow model registry: frontier members as versions, winners under aliases."""

from agentic_compression.registry.promotion import (
    ALIASES,
    RegisteredVersion,
    choose_aliases,
    forget_study,
    list_versions,
    model_folder,
    promote_frontier,
    registered_name,
)

__all__ = [
    "ALIASES",
    "RegisteredVersion",
    "choose_aliases",
    "forget_study",
    "list_versions",
    "model_folder",
    "promote_frontier",
    "registered_name",
]
