"""Engines that load a checkpoint and run it: one Protocol, several engines."""
