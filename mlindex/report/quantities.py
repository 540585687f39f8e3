"""How quantities are written in the report."""

from __future__ import annotations

import math
from datetime import datetime


def clock(seconds: int | float) -> str:
    """A time since 1970 as date and time with the zone of this machine."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def duration(seconds: int | float) -> str:
    """ "0.8 s", "45 s", "12 min 5 s", "3 h 20 min", "2 d 4 h"."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 1e-3 else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, small, size, part in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if whole < {"min": 3600, "h": 86400}.get(large, math.inf):
            first, rest = divmod(whole, size)
            second = rest // part
            return f"{first} {large} {second} {small}" if second else f"{first} {large}"
    raise AssertionError("the last unit has no end")


def stopwatch(seconds: int | float) -> str:
    """ "0:02:19", "12:35:10", "2 d 4:10:00": short enough for a headline."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02d}:{rest:02d}"


def unit_of_time(seconds: int | float) -> tuple[float, str]:
    """The unit (in s, and its symbol) that an axis of this length is best labelled in."""
    if seconds < 180:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def percent(part: int | float, whole: int | float) -> str:
    """ "12.5 %", or a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def rate(per_second: int | float) -> str:
    """Items a second, a minute or an hour, whichever gives a number that can be read."""
    for factor, unit in ((1, "s"), (60, "min"), (3600, "h")):
        if per_second * factor >= 1 or unit == "h":
            return f"{per_second * factor:.3g} / {unit}"
    raise AssertionError("the last unit always serves")


def count(number: int) -> str:
    """An integer with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def plural(number: int, one: str, many: str = "") -> str:
    """ "1 list", "3 lists"."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"
