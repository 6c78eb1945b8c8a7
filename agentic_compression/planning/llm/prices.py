"""List prices of language models; the figures lie beside this module in ``prices.json`` with their source and date."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["cost_usd"]

_FILE = Path(__file__).with_name("prices.json")
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def cost_usd(base_url: str, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    """What a call costs at list price, in USD.

    Args:
        base_url: of the endpoint; prices are those of one provider, so any other host has none.
        model: its name; a date at its end is left off where the dated name has no price of its own.
        prompt_tokens: as the provider counted them.
        completion_tokens: as the provider counted them.

    Returns:
        None where the price is not known.
    """
    table = _table()
    if urlsplit(base_url).hostname != table["host"]:
        return None
    prices = table["models"].get(model) or table["models"].get(_DATED.sub("", model))
    if prices is None:
        return None
    return float(prices[0] * prompt_tokens + prices[1] * completion_tokens) / 1e6


@cache
def _table() -> dict:
    return json.loads(_FILE.read_text(encoding="utf-8"))
