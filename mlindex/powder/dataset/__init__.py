"""Training data of powder indexing: entries from tables or CIFs, their split and groups, lists sampled on the fly."""

from __future__ import annotations

from mlindex.powder.dataset.augment import CLEAN, DIRTY, SERIAL, Errors, Sample, Table, sample, table
from mlindex.powder.dataset.cifs import from_cifs
from mlindex.powder.dataset.entries import Entries, load, save
from mlindex.powder.dataset.groups import Groups, groups
from mlindex.powder.dataset.parquet import from_parquet

__all__ = [
    "CLEAN",
    "DIRTY",
    "SERIAL",
    "Entries",
    "Errors",
    "Groups",
    "Sample",
    "Table",
    "from_cifs",
    "from_parquet",
    "groups",
    "load",
    "sample",
    "save",
    "table",
]
