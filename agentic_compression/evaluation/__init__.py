"""Measures a checkpoint: accuracy, latency, memory, size, energy and CO2.

``agentic_compression.evaluation.evaluate:evaluate`` is the entry point of the child process that measures; the
names below are light enough for any process. Nothing here imports torch, transformers or lm_eval at import.
"""

from agentic_compression.evaluation.energy import EnergyMeter, EnergyReading, select_counter
from agentic_compression.evaluation.grid import GridFactor, grid_factor
from agentic_compression.evaluation.request import EvaluationRequest

__all__ = ["EnergyMeter", "EnergyReading", "EvaluationRequest", "GridFactor", "grid_factor", "select_counter"]
