"""How records are stored and drawn in the ZenML dashboard."""

from materializers.checkpoint import CheckpointMaterializer
from materializers.evaluation import EvaluationMaterializer
from materializers.frontier import FrontierMaterializer

__all__ = ["CheckpointMaterializer", "EvaluationMaterializer", "FrontierMaterializer"]
