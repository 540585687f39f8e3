"""Distributed indexing of diffraction data on JAX and MPI.

Importing this package starts no JAX backend and no MPI: a rank must still be able to choose its device.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Item": "mlindex.records",
    "PeakList": "mlindex.records",
    "Result": "mlindex.records",
    "Status": "mlindex.records",
    "PowderSettings": "mlindex.config",
    "index_powder": "mlindex.powder",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mlindex' has no attribute {name!r}")
