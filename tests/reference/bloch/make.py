"""Take a few tilts of each reference LARBED pattern for tests/bloch/test_reference.py.

    python tests/reference/bloch/make.py DIR

DIR holds CASE_thesisformula_lobato.npz (the twelve cases by the formula of the thesis), CASE_abtem.npz and
CASE_py4dstem.npz (two other programs, each in its own geometry and with its own U); see NOTICE. Kept are the tilt 0, 0,
the two of the largest x and y, and some at random. What several cases have in common, U above all, is kept once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TILTS = 12
CASES = [f"SrTiO3-{i}" for i in range(1, 11)] + ["ZnO-1", "ZnO-2"]
PEERS = ["SrTiO3-1", "SrTiO3-8", "SrTiO3-10", "ZnO-1"]


def chosen(ij: np.ndarray) -> np.ndarray:
    """The places of the tilts that are kept."""
    rng = np.random.default_rng(5)
    fixed = [int(np.flatnonzero(~ij.any(1))[0]), int(ij[:, 0].argmax()), int(ij[:, 1].argmax())]
    rest = np.setdiff1d(np.arange(len(ij)), fixed)
    return np.array([*fixed, *rng.choice(rest, TILTS - len(fixed), replace=False)])


def main() -> None:
    folder = Path(sys.argv[1])
    out: dict[str, np.ndarray] = {}
    names: dict[bytes, str] = {}

    def keep(name: str, values: np.ndarray) -> None:
        """Store an array, or the name of an equal one that is stored already."""
        key = np.ascontiguousarray(values).tobytes() + str(values.shape).encode()
        out[name] = np.array(names[key]) if key in names else values
        names.setdefault(key, name)

    for case in CASES:
        data = np.load(folder / f"{case}_thesisformula_lobato.npz")
        at = chosen(data["ij"])
        for key in ("hkl", "g", "dhkl", "U_d"):
            keep(f"{case}/{key}", data[key])
        out[f"{case}/kt"], out[f"{case}/I"] = data["kt"][at], data["I"][at]
        out[f"{case}/theta"] = data["theta"][at]
        out[f"{case}/energy_wavelength_thickness"] = np.array(
            [data["energy"], data["wavelength"], data["thickness_A"]], float
        )
    for case in PEERS:
        data = np.load(folder / f"{case}_abtem.npz")
        at = chosen(data["ij"])
        keep(f"{case}/abtem/U_d", data["U_d"])
        for key in ("I_abtem", "I_abtem_waveeq"):
            out[f"{case}/abtem/{key}"] = data[key][at]
        data = np.load(folder / f"{case}_py4dstem.npz")
        keep(f"{case}/py4dstem/U_d", data["U_d_Lobato"])
        out[f"{case}/py4dstem/I"] = data["I_Lobato"][at]
        out[f"{case}/py4dstem/wavelength"] = data["wavelength"]
    np.savez_compressed(HERE / "patterns.npz", **out)
    print(f"{len(out)} arrays, {(HERE / 'patterns.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
