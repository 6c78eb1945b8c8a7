"""The MLflow model registry: frontier members as loadable versions, aliases behind a gate and a journal."""

from agentic_compression.records import ALIASES
from agentic_compression.registry.aliases import choose_aliases
from agentic_compression.registry.journal import AliasJournal, journal_of
from agentic_compression.registry.moves import (
    Note,
    approve,
    move_aliases,
    recover,
    reject,
    request_move,
    require_usable,
    rollback,
)
from agentic_compression.registry.policy import policy_file, read_policy
from agentic_compression.registry.promotion import Evidence, RegistryDesk, consider, promote_frontier
from agentic_compression.registry.versions import (
    RegisteredVersion,
    forget_study,
    holders,
    list_versions,
    model_folder,
    parse_version,
    registered_name,
)

__all__ = [
    "ALIASES",
    "AliasJournal",
    "Evidence",
    "Note",
    "RegisteredVersion",
    "RegistryDesk",
    "approve",
    "choose_aliases",
    "consider",
    "forget_study",
    "holders",
    "journal_of",
    "list_versions",
    "model_folder",
    "move_aliases",
    "parse_version",
    "policy_file",
    "promote_frontier",
    "read_policy",
    "recover",
    "registered_name",
    "reject",
    "request_move",
    "require_usable",
    "rollback",
]
