"""Where there is no calibration text, exactly the settings that use none stay on offer."""

from __future__ import annotations

from itertools import product

import pytest

from agentic_compression.methods import describe_methods, get_method
from agentic_compression.methods.without_calibration import without_calibration

NAMES = [description.name for description in describe_methods() if description.available]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_left_uses_no_text(name: str) -> None:
    method = get_method(name)
    offered = without_calibration(method, method.describe(), "none in the file")
    if method.trains or (method.needs_calibration and method.calibrates is None):
        assert not offered.available
        assert "none in the file" in (offered.unavailable_reason or "")
        return
    assert offered.available
    grids = [parameter.values() or (parameter.low, parameter.high) for parameter in offered.parameters]
    names = [parameter.name for parameter in offered.parameters]
    for parameter in offered.parameters:
        assert parameter.problem_with(parameter.default) is None
    for values in product(*grids):
        assert not method.needs_calibration_for(method.config.model_validate(dict(zip(names, values, strict=True))))


def test_gguf_keeps_its_types_and_loses_the_importance() -> None:
    method = get_method("gguf")
    offered = without_calibration(method, method.describe())
    importance, kinds = offered.parameter("importance"), offered.parameter("type")
    assert importance is not None
    assert kinds is not None
    assert importance.choices == (False,)
    assert {"F16", "Q8_0", "Q4_K_M"} <= set(kinds.choices)
    assert "IQ2_XXS" not in kinds.choices
