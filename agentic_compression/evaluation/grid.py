"""Grams of CO2e a kWh of electricity, by country or by region.

The figures lie beside this module in ``grid_factors.json``, each with its year and source: Our World in Data's carbon
intensity of electricity for countries (life cycle), and for regions the EPA's eGRID (US states), Canada's provinces,
China's provinces and the Nordic bidding zones (direct emissions, or a mix times factors: the source says which). A
life cycle figure and a direct one differ by tens of grams: compare checkpoints under one factor only.
``scripts/write_grid_factors.py`` makes the file from codecarbon's tables.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import Record

__all__ = ["GridFactor", "grid_factor", "grid_regions"]

_FILE = Path(__file__).with_name("grid_factors.json")


class GridFactor(Record):
    """A grid's carbon intensity and where the figure comes from."""

    grams_per_kwh: float
    region: str
    source: str
    name: str = ""
    year: int | None = None

    @property
    def text(self) -> str:
        """One line, for people."""
        name = f" ({self.name})" if self.name else ""
        year = f"{self.year}, " if self.year else ""
        return f"{self.region}{name}: {self.grams_per_kwh:g} g CO2e/kWh ({year}{self.source})"


def grid_factor(country: str, override: float | None = None, region: str | None = None) -> GridFactor:
    """The user's own factor, else the region's, else the country's.

    Args:
        country: ISO 3166-1 alpha-3, for example ``FRA``.
        override: grams per kWh; taken as it is when given.
        region: ISO 3166-2, for example ``US-CA`` or ``CA-ON``; a Nordic bidding zone as ``SE-SE3``.

    Raises:
        ConfigurationError: when the country or region is not in the table.
    """
    if override is not None:
        return GridFactor(grams_per_kwh=override, region=region or country, source="set by the user")
    table = _table()
    code = region or country
    entry = table["factors"].get(code)
    if entry is None:
        raise ConfigurationError(_unknown(code, region is not None))
    return GridFactor(
        grams_per_kwh=entry["grams"],
        region=code,
        source=table["sources"][entry["source"]],
        name=entry["name"],
        year=entry["year"],
    )


def grid_regions(prefix: str = "") -> tuple[str, ...]:
    """Codes of regions below a country that have a factor, for example all that begin with ``CA-``."""
    return tuple(code for code in _table()["factors"] if "-" in code and code.startswith(prefix))


def _unknown(code: str, is_region: bool) -> str:
    near = get_close_matches(code, list(_table()["factors"]), n=3, cutoff=0.6)
    hint = f" (near: {', '.join(near)})" if near else ""
    if not is_region:
        return (
            f"no grid factor for country {code!r}{hint}; allowed: ISO alpha-3 codes such as USA, DEU, IND; "
            "or set ACF_GRID_GRAMS_PER_KWH"
        )
    known = sorted({region[:3] for region in grid_regions()})
    return (
        f"no grid factor for region {code!r}{hint}; allowed: ISO 3166-2 codes that begin with {', '.join(known)} "
        "such as US-CA; or set ACF_GRID_GRAMS_PER_KWH"
    )


@cache
def _table() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))
