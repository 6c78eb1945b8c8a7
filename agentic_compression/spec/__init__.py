"""What is known about a model before anything runs: its size, shape and memory needs, with the source of each count."""

from agentic_compression.spec.infer import infer_spec, preferred_methods, size_class

__all__ = ["infer_spec", "preferred_methods", "size_class"]
