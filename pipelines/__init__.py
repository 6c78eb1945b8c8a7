"""ZenML pipelines: one run is one episode."""
