"""bitsandbytes as a reference for tests: imported without its import-time warnings."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest

__all__ = ["bitsandbytes"]


def bitsandbytes() -> Any:
    """The library; skips the test where it is not installed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
