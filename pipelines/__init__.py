"""ZenML pipelines: one run is one episode, or one promotion."""
