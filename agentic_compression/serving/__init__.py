"""The model server: OpenAI's wire format over checkpoints of every form, with models that follow the registry."""
