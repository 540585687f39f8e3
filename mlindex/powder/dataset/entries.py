"""Training entries: crystals with all their lines and which of them a diffractometer would show.

Everything is in the standard conventional setting of the Bravais lattice (`mlindex.crystal.settings`).
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from mlindex.crystal.lattice import BRAVAIS, free_from_metric
from mlindex.crystal.metric import cell_from_reciprocal_metric, inverted_metric, transform_metric
from mlindex.crystal.reduction import delone_reduce
from mlindex.records import InputError


@dataclass(frozen=True, eq=False)
class Entries:
    """One row an entry, n in all; the lines of entry i are the rows `first[i]` to `first[i + 1]` of the line arrays.

    Entries: `uid`, `family` (isotypes), `set` (train, validation, test), `bravais` (of the metric as well), `symbol`
    (space group as it was given), `extinction` (the lowest-numbered space group, in the standard setting, that makes
    lines absent as this one does): text (n,). `g` (n, 6): reciprocal metric of the standard conventional cell,
    1/angstrom^2. `known` (n,): q2 up to which `observable` was decided; `complete` (n,): q2 up to which the lines are
    all there is.

    Lines, ascending in q2: `hkl` (m, 3), one reflection for each distinct line that is not systematically absent, as
    `mlindex.crystal.reflections.hkl_within` chooses it; `observable` (m,).

    `rejected`: how many crystals were left out, by reason.
    """

    uid: NDArray
    family: NDArray
    set: NDArray
    bravais: NDArray
    symbol: NDArray
    extinction: NDArray
    g: NDArray[np.float64]
    known: NDArray[np.float64]
    complete: NDArray[np.float64]
    first: NDArray[np.int64]
    hkl: NDArray[np.int16]
    observable: NDArray[np.bool_]
    rejected: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.uid)

    def lines(self, index: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """The reflections (k, 3) of one entry and which are observable (k,)."""
        part = slice(self.first[index], self.first[index + 1])
        return self.hkl[part], self.observable[part]

    def take(self, rows: NDArray) -> Entries:
        """The entries of the given rows (indices or a mask), in that order."""
        index = np.arange(len(self))[rows]
        counts = np.diff(self.first)[index]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        line = np.repeat(self.first[index], counts) + within
        values = {name: getattr(self, name)[index] for name in _BY_ENTRY}
        first = np.concatenate([[0], np.cumsum(counts)])
        return Entries(
            **values, first=first, hkl=self.hkl[line], observable=self.observable[line], rejected=self.rejected
        )

    def sha256(self) -> str:
        """The SHA-256 of everything but `rejected`: the same entries have the same, whatever wrote them."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            array = getattr(self, name)
            text = array.dtype.kind == "U"
            data = "\n".join(array.tolist()).encode() if text else np.ascontiguousarray(array).tobytes()
            digest.update(f"{name} {array.shape}".encode() + data)
        return digest.hexdigest()


_BY_ENTRY = ("uid", "family", "set", "bravais", "symbol", "extinction", "g", "known", "complete")
_ARRAYS = tuple(f.name for f in fields(Entries) if f.name != "rejected")


def conventional_cells(entries: Entries) -> Float[np.ndarray, "n 6"]:
    """The standard conventional cells (angstrom, degrees)."""
    return cell_from_reciprocal_metric(entries.g)


def free_parameters(entries: Entries, bravais: str) -> Float[np.ndarray, "n p"]:
    """The free parameters (1/angstrom^2) of the entries of one Bravais lattice, in their order."""
    return free_from_metric(entries.g[entries.bravais == bravais], BRAVAIS[bravais].system)


def reduced_metrics(entries: Entries) -> Float[np.ndarray, "n 6"]:
    """The reciprocal metrics (1/angstrom^2) of the primitive cells, Selling reduced (a <= b <= c)."""
    primitive = np.array([BRAVAIS[name].primitive for name in entries.bravais]).reshape(-1, 3, 3)
    direct, _ = delone_reduce(inverted_metric(transform_metric(entries.g, primitive)))
    return inverted_metric(direct)


def save(entries: Entries, path: str | Path) -> str:
    """Write an .npz without pickles, the same bytes for the same entries; returns the SHA-256 that `load` checks."""
    digest = entries.sha256()
    arrays = {name: getattr(entries, name) for name in _ARRAYS}
    arrays["card"] = np.array(json.dumps({"sha256": digest, "rejected": entries.rejected}))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    return digest


def load(path: str | Path) -> Entries:
    """Read what `save` wrote. Raises `InputError` for another file or changed content."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            card = json.loads(str(archive["card"]))
            entries = Entries(**{name: archive[name] for name in _ARRAYS}, rejected=card["rejected"])
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; give the entries that `save` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a file of training entries; give one that `save` wrote") from None
    if entries.sha256() != card["sha256"]:
        raise InputError(f"{path}: its content does not match its SHA-256; write the entries again")
    return entries
