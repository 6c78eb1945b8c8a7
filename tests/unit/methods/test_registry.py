"""What is on offer, without importing torch; broken plugins are reported, not raised."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest

from agentic_compression.errors import StrategyError
from agentic_compression.methods import Choice, MethodConfig, describe_methods, get_method, parameters_of, registry
from agentic_compression.methods.magnitude import METHOD as MAGNITUDE
from agentic_compression.methods.rtn import METHOD as RTN

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    registry._load.cache_clear()
    yield
    registry._load.cache_clear()


def test_describing_all_methods_imports_no_torch() -> None:
    script = (
        "import sys\n"
        "import agentic_compression.methods as methods\n"
        "methods.describe_methods()\n"
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(StrategyError, match="did you mean 'gptq'"):
        get_method("gtpq")


def plugins(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = [
        importlib.metadata.EntryPoint(name=f"plugin{index}", value=value, group=registry.ENTRY_POINT_GROUP)
        for index, value in enumerate(values)
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


@pytest.mark.usefixtures("fresh_registry")
def test_broken_plugin_is_unavailable_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, "no_such_module:METHOD", "json:dumps", "agentic_compression.methods.rtn:METHOD")
    described = [description for description in describe_methods() if description.name.startswith("plugin")]
    broken = [description for description in described if not description.available]
    assert [description.name for description in broken] == ["plugin0", "plugin1", "plugin2"]
    reasons = [description.unavailable_reason or "" for description in broken]
    assert "ModuleNotFoundError" in reasons[0]
    assert "must be a Method" in reasons[1]
    assert "is taken" in reasons[2]
    with pytest.raises(StrategyError, match="plugin0 is not available"):
        get_method("plugin0")


@pytest.mark.usefixtures("fresh_registry")
def test_method_with_missing_library_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_missing", lambda method: "needs x" if method is RTN else None)
    described = {description.name: description for description in describe_methods()}
    assert described["rtn"].unavailable_reason == "needs x"
    assert described["magnitude"].available
    assert get_method("magnitude") is MAGNITUDE


def test_field_without_range_is_refused() -> None:
    class NoRange(MethodConfig):
        bits: int = 4

    class NoDefault(MethodConfig):
        bits: Annotated[int, Choice(4)]

    for config in (NoRange, NoDefault):
        with pytest.raises(TypeError, match="exactly one of Choice"):
            parameters_of(config)
