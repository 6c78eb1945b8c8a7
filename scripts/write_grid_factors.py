"""Write ``agentic_compression/evaluation/grid_factors.json`` from the tables of the installed codecarbon.

    python scripts/write_grid_factors.py

One file of our own, so that a factor does not change when a library is updated between two studies. Run it again after
an update of codecarbon and read the difference; a test compares the file with the installed tables.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "agentic_compression" / "evaluation" / "grid_factors.json"
GRAMS_PER_POUND = 453.59237
# Grams a kWh of codecarbon's `_region_energy_mix_to_emissions_rate`; other sources count as zero there.
FOSSIL = {"coal": 995.725971, "petroleum": 816.6885263, "naturalGas": 743.8415916}
PROVINCES = {
    "alberta": "AB",
    "british columbia": "BC",
    "manitoba": "MB",
    "new brunswick": "NB",
    "newfoundland and labrador": "NL",
    "northwest territories": "NT",
    "nova scotia": "NS",
    "nunavut": "NU",
    "ontario": "ON",
    "prince edward island": "PE",
    "quebec": "QC",
    "saskatchewan": "SK",
    "yukon": "YT",
}


def tables() -> Path:
    spec = find_spec("codecarbon")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("codecarbon is not installed: pip install codecarbon")
    return Path(spec.submodule_search_locations[0]) / "data" / "private_infra"


def build(folder: Path) -> dict[str, Any]:
    """All factors: ``sources`` by key, ``factors`` by country (ISO 3166-1 alpha-3) or region (ISO 3166-2)."""
    world, states, mix, china, nordic = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in (
            "global_energy_mix.json",
            "2023/usa_emissions.json",
            "2023/canada_energy_mix.json",
            "2023/china_provincial_emissions.json",
            "nordic_emissions.json",
        )
    )
    sources = {
        "owid": "Our World in Data, carbon intensity of electricity, life cycle CO2e (CC BY 4.0)",
        "egrid": f"{states['_source']['name']}, direct emissions ({states['_source']['url']})",
        "canada": "codecarbon: 2023 mix x 996 g coal, 817 g oil, 744 g gas a kWh, other sources 0; direct CO2",
        "china": f"MEE and NBS announcement {china['metadata']['announcement']}, provincial averages, direct CO2",
        "nordic": "bidding zone's generation mix (ENTSO-E) x codecarbon's factor of each source, CO2e",
    }
    factors: dict[str, dict[str, Any]] = {}
    for code, row in world.items():
        factors[code] = entry(row["carbon_intensity"], row["country_name"], row["year"], "owid")
    for name, row in states.items():
        code = row.get("regionCode", "")
        if len(code) == 2 and code != "US":
            grams = row["emissions"] * GRAMS_PER_POUND / 1000
            factors[f"US-{code}"] = entry(grams, name.title(), states["_source"]["year"], "egrid")
    for name, shares in mix.items():
        grams = sum(shares[source] * grams for source, grams in FOSSIL.items()) / shares["total"]
        factors[f"CA-{PROVINCES[name]}"] = entry(grams, name.title(), 2023, "canada")
    for code, row in china["data"].items():
        factors[code] = entry(row["emission_factor"], row["description"], row["year"], "china")
    for zone, row in nordic["data"].items():
        if zone != "FI":  # one zone, the country; its figure there is older than its entry above
            factors[f"{zone[:2]}-{zone}"] = entry(row["emission_factor"], row["description"], row["year"], "nordic")
    origin = f"codecarbon {version('codecarbon')} (MIT licence), data/private_infra"
    return {"unit": "g CO2e/kWh", "origin": origin, "sources": sources, "factors": dict(sorted(factors.items()))}


def entry(grams: float, name: str, year: int, source: str) -> dict[str, Any]:
    return {"grams": round(grams, 3), "name": name, "year": year, "source": source}


def text_of(table: dict[str, Any]) -> str:
    """JSON with one factor a line, so that a change reads as one."""
    rows = ",\n".join(f"  {json.dumps(code)}: {json.dumps(row)}" for code, row in table["factors"].items())
    head = json.dumps({key: value for key, value in table.items() if key != "factors"}, indent=1)
    return head[:-2] + ',\n "factors": {\n' + rows + "\n }\n}\n"


if __name__ == "__main__":
    TARGET.write_text(text_of(build(tables())), encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET}\n")
