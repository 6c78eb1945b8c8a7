"""Grams of CO2e a kWh of electricity, by country.

The figures are those that codecarbon ships (``global_energy_mix.json``): Our World in Data's carbon intensity of
electricity, grams of CO2-equivalent per kWh over the life cycle, one year a country. Only the file is read;
codecarbon itself is not imported.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError, UnavailableError
from agentic_compression.records import Record

__all__ = ["GridFactor", "grid_factor"]

_FILE = "data/private_infra/global_energy_mix.json"


class GridFactor(Record):
    """A grid's carbon intensity and where the figure comes from."""

    grams_per_kwh: float
    region: str
    source: str


def grid_factor(country: str, override: float | None = None) -> GridFactor:
    """The factor of a country, or the user's own.

    Args:
        country: ISO 3166-1 alpha-3, for example ``FRA``.
        override: grams per kWh; taken as it is when given.

    Raises:
        ConfigurationError: when the country is not in the table.
        UnavailableError: when codecarbon's data file is not there.
    """
    if override is not None:
        return GridFactor(grams_per_kwh=override, region=country, source="set by the user")
    table = _table()
    if country not in table:
        raise ConfigurationError(
            f"no grid factor for country {country!r}; allowed: {len(table)} ISO alpha-3 codes such as USA, DEU, IND; "
            "or set ACF_GRID_GRAMS_PER_KWH"
        )
    entry = table[country]
    intensity = entry.get("carbon_intensity")
    if intensity is None:
        raise ConfigurationError(
            f"codecarbon's table has no carbon intensity for {country}; set ACF_GRID_GRAMS_PER_KWH"
        )
    source = f"codecarbon global_energy_mix.json, {entry.get('year', 'year unknown')}"
    return GridFactor(grams_per_kwh=float(intensity), region=country, source=source)


@cache
def _table() -> dict[str, dict[str, Any]]:
    spec = find_spec("codecarbon")  # finds the package without running it: importing it costs a second
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0]) / _FILE if folders else None
    if path is None or not path.is_file():
        raise UnavailableError(
            f"codecarbon's table of grid factors is not here (looked for {path or 'the package'}); "
            "install codecarbon or set ACF_GRID_GRAMS_PER_KWH"
        )
    return json.loads(path.read_text(encoding="utf-8"))
