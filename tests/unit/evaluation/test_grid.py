from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import files

import pytest

from agentic_compression.errors import ConfigurationError
from agentic_compression.evaluation.grid import grid_factor


def raw_table() -> dict[str, dict[str, float]]:
    found = [path for path in files("codecarbon") or () if path.name == "global_energy_mix.json"]
    return json.loads(found[0].locate().read_text())


@pytest.mark.parametrize("country", ["USA", "FRA", "IND", "NOR", "POL"])
def test_factor_equals_the_raw_data(country: str) -> None:
    assert grid_factor(country).grams_per_kwh == raw_table()[country]["carbon_intensity"]


def test_factors_are_grams_a_kwh() -> None:
    # Coal-heavy grids emit several hundred grams a kWh, hydro and nuclear ones some tens.
    assert 400 < grid_factor("IND").grams_per_kwh < 1000
    assert 5 < grid_factor("NOR").grams_per_kwh < 60


def test_override_is_taken_as_it_is() -> None:
    factor = grid_factor("USA", 12.5)
    assert (factor.grams_per_kwh, factor.region, factor.source) == (12.5, "USA", "set by the user")


def test_unknown_country_says_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match=r"no grid factor for country 'XYZ'.*ACF_GRID_GRAMS_PER_KWH"):
        grid_factor("XYZ")


def test_light_names_import_nothing_heavy() -> None:
    code = (
        "import sys; from agentic_compression.evaluation import EnergyMeter, grid_factor, select_counter; "
        "grid_factor('USA'); heavy = {'torch', 'transformers', 'lm_eval', 'codecarbon', 'numpy', 'pandas'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
