"""MLflow as the history of record: one run an episode in the study's experiment."""

from agentic_compression.tracking.history import History
from agentic_compression.tracking.mlflow_history import MlflowHistory, open_client

__all__ = ["History", "MlflowHistory", "open_client"]
