"""Words that the phrases of objectives share, numbers in words, and units.

Texts are matched in small letters and Simplified characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "NUMBERS",
    "VOCABULARY",
    "as_it_is",
    "gigabytes",
    "grams",
    "hours",
    "inverse",
    "less",
    "milliseconds",
    "points",
    "share",
]


Convert = Callable[[float, str], float]
"""From a number and its unit to the quantity's own unit."""


@dataclass(frozen=True)
class Phrases:
    """Ways to say a bound on one quantity."""

    quantity: str
    operator: Literal["<=", ">="]
    convert: Convert
    patterns: tuple[str, ...]


def points(value: float, unit: str) -> float:
    """Percentage points as a fraction; a number below 1 without a unit is one already."""
    return value / 100 if unit or value >= 1 else value


def gigabytes(value: float, unit: str) -> float:
    """GB of 1e9 bytes, from any unit of bytes."""
    if unit.startswith("byte"):
        return value / 1e9
    scale = {"k": 1, "m": 2, "兆": 2, "g": 3, "吉": 3, "t": 4}[unit[:1]]
    return value * (1024.0 if unit[1:2] == "i" else 1000.0) ** scale / 1e9


def grams(value: float, unit: str) -> float:
    """Grams, from kilograms or milligrams too."""
    if unit in {"kg", "公斤", "千克"} or unit.startswith("kilo"):
        return value * 1000
    return value / 1000 if unit in {"mg", "毫克"} else value


def hours(value: float, unit: str) -> float:
    """Hours, from days, minutes or seconds too."""
    if unit in {"天"} or unit.startswith("day"):
        return value * 24
    if unit.startswith("min") or unit == "分钟":
        return value / 60
    return value / 3600 if unit.startswith("s") or unit == "秒" else value


def milliseconds(value: float, unit: str) -> float:
    """Milliseconds, from seconds too."""
    return value if unit.startswith("m") or unit == "毫秒" else value * 1000


def inverse(value: float, _: str) -> float:
    """One over: twice as fast takes half the time."""
    return 1 / value if value else float("nan")


def less(value: float, _: str) -> float:
    """What is left of 1 when so many per cent are taken off."""
    return 1 - value / 100


def share(value: float, unit: str) -> float:
    """Per cent as a fraction."""
    return value / 100 if unit else value


def as_it_is(value: float, _: str) -> float:
    """The number itself."""
    return value


NUMBERS = {
    "half an": 0.5, "half a": 0.5, "half": 0.5, "a quarter": 0.25, "a third": 1 / 3, "an": 1, "a": 1, "one": 1,
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "半": 0.5, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9, "十": 10,
}  # fmt: skip
"""Numbers in words."""

VOCABULARY: dict[str, str] = {
    "NUMBER": (
        r"(?P<n>(?<![\d.])\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\d.])\d+(?:\.\d+)?|(?<![\d.])\.\d+|\b(?:half an?|half|an?|"
        r"one|two|three|four|five|six|seven|eight|nine|ten)\b|[半一二两三四五六七八九十])"
    ),
    "N": r"\s*(?:百分之)?\s*<NUMBER>\s*",
    "FEWER": (
        r"(?:(?:by\s+|of\s+|to\s+)?(?:(?<!no )(?<!not )less than|(?<!no )(?<!not )(?:fewer|smaller|lower) than|"
        "no (?:more|greater|larger|bigger|higher) than|not (?:more|greater|larger) than|(?:not|"
        "never) (?:to )?(?:exceed(?:ing)?|over|above)|at most|at the most|up to|a? ?max(?:imum)?(?: of)?|"
        "a? ?limit of|under|below|within|only|just|<=|<|≤)|不(?:能|得|要|应|会|可)?(?:超过|高于|大于|多于)|"
        "小于(?:等于)?|少于|低于|不(?:到|足)|最多|至多|限制?在|控制在|保持在|上限为?)"
    ),
    "LIMIT": r"(?:(?:is|are|be|stays?|remains?|of|should be|must be|kept|[:=是为要须应必在])\s*){0,4}<FEWER>",
    "MORE": (
        "(?:at least|at minimum|no less than|not less than|(?<!no )(?<!not )(?:more|better|greater|higher) than|"
        "(?<!not )(?:over|above)|a? ?min(?:imum)?(?: of)?|>=|>|≥|至少|最少|起码|不(?:能|得|要|应|会|可)?(?:低于|少于|"
        "小于)|(?<!不)(?<!不能)(?<!不得)(?:大于|高于|超过)|达到)"
    ),
    "FLOOR": r"(?:(?:is|are|be|stays?|remains?|of|should be|must be|kept|[:=是为要须应必在])\s*){0,4}<MORE>",
    "POINTS": r"(?P<u>%|percent(?:age)?(?:[- ]points?)?|pp\b|points?\b|pts?\b|个?百分点|点)",
    "ACCURACY": r"(?:task )?(?:accuracy|\bacc\b|quality|performance)",
    "CN_ACCURACY": "(?:准确(?:率|度|性)?|精(?:度|准度|确度)|正确率|质量|品质)",
    "LOSS": "(?:loss|drop|degradation|decrease|reduction|decline)",
    "CN_LOSS": "(?:的)?(?:下降|损失|降低|减少|下跌|掉|降)(?:幅度|量|了)?",
    "BYTES": r"(?P<u>[kmgt]i?b\b|bytes\b|megabytes?\b|gigabytes?\b|兆|吉)",
    "MEMORY": r"(?:memory|v?ram\b|内存|显存|记忆体|存储器)",
    "SIZE": "(?:(?:model|file|checkpoint|disk)(?:'s)? )?(?:size|footprint)",
    "CN_SIZE": "(?:模型|文件|档案)?(?:的)?(?:大小|体积|尺寸|容量)",
    "GRAMS": r"(?P<u>kg\b|kilograms?\b|mg\b|grams?\b|g\b|公斤|千克|公克|毫克|克)",
    "CO2": r"(?:(?:of )?(?:co\s?2e?q?\b|co₂e?|carbon(?: dioxide)?(?: emissions?)?|emissions?)(?: emissions?)?)",
    "CN_CO2": "(?:二氧化碳|碳排放量?|碳排量?|碳足迹|碳预算|碳|co2e?)",
    "TIME": r"(?P<u>hours?\b|hrs?\b|h\b|minutes?\b|mins?\b|days?\b|seconds?\b|secs?\b|s\b|个?小时|分钟|天|秒)",
    "TIMES": r"(?:x\b|×|times\b|-?\s?fold\b|倍)",
    "WITHIN": "(?:以内|之内|内|以下)?",
    "LATENCY": "(?:latency|response time)",
    "CN_LATENCY": "(?:延迟|时延|响应时间)",
    "THING": r"(?:\s+(?:possible|model|version|checkpoint|file|one|size|variant|compressed model|possible model))*",
}
