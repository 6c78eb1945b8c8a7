"""Recorded tables of real results, and planners replayed on them."""
