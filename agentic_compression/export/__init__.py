"""Exports: a checkpoint in the form that other runtimes load, verified there, with a model card.

``plan`` says from the manifest whether a format can hold a checkpoint; ``build`` writes it and ``check`` loads it in
the runtime it is for, each in a child process; ``exporting`` puts the folder in its place. Importing this imports no
torch.
"""

from agentic_compression.export.exporting import ExportRequest, export_checkpoint, export_name
from agentic_compression.export.plan import ExportPlan, plan_export

__all__ = ["ExportPlan", "ExportRequest", "export_checkpoint", "export_name", "plan_export"]
