from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import files
from typing import Any

import pytest
from pydantic import ValidationError

from agentic_compression.errors import ConfigurationError
from agentic_compression.evaluation.grid import grid_factor, grid_regions
from agentic_compression.settings import Settings


def raw_table(name: str = "global_energy_mix.json") -> dict[str, dict[str, Any]]:
    found = [path for path in files("codecarbon") or () if path.name == name]
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


def test_every_country_of_the_table_is_here_with_its_year() -> None:
    for country, row in raw_table().items():
        factor = grid_factor(country)
        assert factor.grams_per_kwh == pytest.approx(row["carbon_intensity"], abs=5e-4)
        assert factor.year == row["year"]


def test_states_are_egrids_pounds_a_megawatt_hour() -> None:
    states = [row for row in raw_table("usa_emissions.json").values() if len(row.get("regionCode", "")) == 2]
    assert len(states) >= 51
    for row in states:
        if row["regionCode"] == "US":
            continue
        factor = grid_factor("USA", region=f"US-{row['regionCode']}")
        assert factor.grams_per_kwh == pytest.approx(row["emissions"] * 0.45359237, abs=5e-4)
        assert "eGRID2023" in factor.source
    assert grid_factor("USA", region="US-WY").grams_per_kwh > 3 * grid_factor("USA", region="US-CA").grams_per_kwh


def test_provinces_are_their_mix_times_fossil_factors() -> None:
    # Ontario 2023: 8.6 % gas and 0.1 % oil of a total of 99.8 % or so; the other sources count as zero.
    mix = raw_table("canada_energy_mix.json")["ontario"]
    grams = (mix["naturalGas"] * 743.8415916 + mix["petroleum"] * 816.6885263 + mix["coal"] * 995.725971) / mix["total"]
    assert grid_factor("CAN", region="CA-ON").grams_per_kwh == pytest.approx(grams, abs=1e-3)
    assert grid_factor("CAN", region="CA-AB").grams_per_kwh > 5 * grid_factor("CAN", region="CA-QC").grams_per_kwh


def test_zones_and_provinces_elsewhere_are_as_published() -> None:
    assert grid_factor("CHN", region="CN-BJ").grams_per_kwh == 555.4
    zones = raw_table("nordic_emissions.json")["data"]
    assert grid_factor("NOR", region="NO-NO4").grams_per_kwh == zones["NO4"]["emission_factor"]
    assert {code[:2] for code in grid_regions()} == {"US", "CA", "CN", "SE", "NO"}
    assert len(grid_regions("CA-")) == 13


def test_every_factor_has_a_source_a_year_and_a_plausible_size() -> None:
    for code in (*raw_table(), *grid_regions()):
        factor = grid_factor("USA", region=code)
        assert factor.source
        assert factor.year is not None
        assert 2009 <= factor.year <= 2026
        assert 0 <= factor.grams_per_kwh < 1400


def test_unknown_region_names_near_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no grid factor for region 'US-CX' \(near: .*US-.*such as US-CA"):
        grid_factor("USA", region="US-CX")


def test_text_names_region_year_and_source() -> None:
    assert grid_factor("USA", region="CA-ON").text.startswith("CA-ON (Ontario): 64.722 g CO2e/kWh (2023, codecarbon: ")
    assert grid_factor("USA", 12.0).text == "USA: 12 g CO2e/kWh (set by the user)"


def test_settings_read_region_price_and_pue(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"GRID_REGION": "CA-QC", "PUE": "1.3", "ELECTRICITY_PRICE": "0.12", "ELECTRICITY_CURRENCY": "CAD"}
    for name, value in values.items():
        monkeypatch.setenv(f"ACF_{name}", value)
    read = Settings(_env_file=None)
    assert (read.grid_region, read.pue, read.electricity_price, read.electricity_currency) == (
        "CA-QC",
        1.3,
        0.12,
        "CAD",
    )


@pytest.mark.parametrize(
    ("name", "value"), [("PUE", "0.9"), ("ELECTRICITY_PRICE", "-1"), ("GRID_REGION", "california")]
)
def test_settings_refuse_nonsense(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"ACF_{name}", value)
    with pytest.raises(ValidationError, match=f"ACF_{name}"):
        Settings(_env_file=None)
