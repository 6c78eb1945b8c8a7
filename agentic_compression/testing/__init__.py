"""Test doubles and fault injection. Nothing outside ``tests`` and ``benchmarks`` imports this package."""
