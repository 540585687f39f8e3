"""What options of several commands share; nothing here imports what a command needs."""

from __future__ import annotations

import math

import typer


def finite(value: float | None) -> float | None:
    """Callback of an option that is a number: neither infinite nor nan, which no limit keeps out."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value
