"""What studies have learned, for the studies that follow: experiences, what they add up to, what to try next."""

from agentic_compression.memory.checkpoints import (
    KeptCheckpoint,
    forget_checkpoints,
    note_checkpoints,
    read_checkpoints,
)
from agentic_compression.memory.exchange import Imported, export_experiences, import_experiences
from agentic_compression.memory.experiments import (
    add_experiences,
    delete_experiences,
    measurement,
    read_experiences,
)
from agentic_compression.memory.findings import Finding, findings
from agentic_compression.memory.forget import Forgotten, forget, to_forget
from agentic_compression.memory.knowledge import refresh_knowledge
from agentic_compression.memory.quarantine import Quarantined, list_quarantined
from agentic_compression.memory.recall import recall, recalled_from
from agentic_compression.memory.recommend import Recommendation, recommend
from agentic_compression.memory.remember import experiences_of, remember
from agentic_compression.memory.similarity import Context, context_of, similarity
from agentic_compression.memory.workspace import Workspace

__all__ = [
    "Context",
    "Finding",
    "Forgotten",
    "Imported",
    "KeptCheckpoint",
    "Quarantined",
    "Recommendation",
    "Workspace",
    "add_experiences",
    "context_of",
    "delete_experiences",
    "experiences_of",
    "export_experiences",
    "findings",
    "forget",
    "forget_checkpoints",
    "import_experiences",
    "list_quarantined",
    "measurement",
    "note_checkpoints",
    "read_checkpoints",
    "read_experiences",
    "recall",
    "recalled_from",
    "recommend",
    "refresh_knowledge",
    "remember",
    "similarity",
    "to_forget",
]
