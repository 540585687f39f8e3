"""Entries against the stored line positions, and their complete lists against gemmi in the given setting."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import q2_from_hkl, volume_from_reciprocal_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from mlindex.powder.dataset import from_parquet, load, save
from mlindex.powder.dataset.entries import conventional_cells, free_parameters, reduced_metrics
from mlindex.records import InputError
from tests.powder.dataset.crystals import records, stored_entries, symbol_of, write_tables

CELL = ("a", "b", "c", "alpha", "beta", "gamma")


def distinct(q2: np.ndarray) -> np.ndarray:
    """Ascending, those that agree within rounding once."""
    ordered = np.sort(q2)
    return ordered[np.append(True, np.diff(ordered) > 1e-7 * ordered[1:])]


def gemmi_lines(row: dict, q2_max: float) -> np.ndarray:
    """All distinct q2 up to a limit that the space group of a row allows, in the setting that the row is given in."""
    unit = gemmi.UnitCell(*(row[k] for k in CELL))
    top = [int(np.sqrt(q2_max) * edge) + 1 for edge in (unit.a, unit.b, unit.c)]
    hkl = np.array(list(itertools.product(*(range(-n, n + 1) for n in top))), np.int32)
    group = gemmi.find_spacegroup_by_name(symbol_of(row), unit.alpha, unit.gamma)
    hkl = hkl[~group.operations().systematic_absences(hkl) & np.any(hkl != 0, axis=1)]
    q2 = unit.calculate_1_d2_array(hkl)
    return distinct(q2[q2 <= q2_max])


def test_every_stored_crystal_of_its_own_metric_is_an_entry():
    entries = stored_entries()
    own = [uid for uid, row in records().items() if row["bravais"] == row["metric_bravais"]]
    assert sorted(entries.uid) == sorted(own)
    assert entries.rejected == {"metric of higher symmetry": len(records()) - len(own)}
    assert set(entries.bravais) == set(BRAVAIS)


def test_observable_lines_are_at_the_stored_angles():
    entries = stored_entries()
    for i, uid in enumerate(entries.uid):
        hkl, observable = entries.lines(i)
        q2 = q2_from_hkl(entries.g[i], hkl)
        assert np.all(np.diff(q2) > -1e-9)
        tth = np.degrees(2 * np.arcsin(np.sqrt(q2[observable]) * 1.5406 / 2))
        np.testing.assert_allclose(tth, np.sort(records()[uid]["tth"]), atol=2e-5, err_msg=uid)


def test_lists_are_all_lines_that_gemmi_allows():
    entries = stored_entries()
    for i, uid in enumerate(entries.uid):
        q2 = q2_from_hkl(entries.g[i], entries.lines(i)[0])
        limit = float(np.sort(q2)[min(len(q2), 120) - 1]) * (1 + 1e-9)
        assert limit <= entries.complete[i] * (1 + 1e-6)
        np.testing.assert_allclose(
            distinct(q2[q2 <= limit]), gemmi_lines(records()[uid], limit), rtol=3e-6, err_msg=uid
        )


def test_three_representations_are_one_lattice():
    entries = stored_entries()
    cells, reduced = conventional_cells(entries), reduced_metrics(entries)
    for i, uid in enumerate(entries.uid):
        row = records()[uid]
        lattice = BRAVAIS[entries.bravais[i]]
        assert lattice_distance(primitive_metric(cells[i], lattice.centring), reduced[i]) < 1e-6
        given = tuple(row[k] for k in CELL)
        letter = gemmi.find_spacegroup_by_name(symbol_of(row), given[3], given[5]).centring_type()
        assert lattice_distance(primitive_metric(given, letter), reduced[i]) < 1e-4, uid
        assert volume_from_reciprocal_metric(reduced[i]) * lattice.multiplicity == pytest.approx(
            volume_from_reciprocal_metric(entries.g[i])
        )
    for name, lattice in BRAVAIS.items():
        assert free_parameters(entries, name).shape == (int((entries.bravais == name).sum()), lattice.n_free)


def test_axes_are_in_the_standard_order():
    entries = stored_entries()
    for (a, b, c, alpha, beta, gamma), name in zip(conventional_cells(entries), entries.bravais, strict=True):
        if name in ("oP", "oI", "oF"):
            assert a <= b <= c
        if name[0] == "m":
            assert (alpha, gamma) == (90, 90)
            assert beta >= 90
        if name == "hR":
            assert gamma == pytest.approx(120)


def test_saved_entries_come_back(tmp_path: Path):
    entries = stored_entries()
    digest = save(entries, tmp_path / "a.npz")
    assert save(entries, tmp_path / "b.npz") == digest
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = load(tmp_path / "a.npz")
    assert back.sha256() == digest
    assert back.rejected == entries.rejected
    some = back.take(np.array([3, 0]))
    np.testing.assert_array_equal(some.lines(0)[0], entries.lines(3)[0])
    np.testing.assert_array_equal(some.lines(1)[1], entries.lines(0)[1])
    assert some.sha256() != digest


def test_changed_and_foreign_files_are_refused(tmp_path: Path):
    entries = stored_entries()
    save(entries, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays["g"] = arrays["g"] * 1.01
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(InputError, match=r"changed\.npz: its content does not match its SHA-256"):
        load(tmp_path / "changed.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(InputError, match=f"{name}: not a file of training entries"):
            load(tmp_path / name)
    with pytest.raises(InputError, match="there is no such file"):
        load(tmp_path / "none.npz")


def one(bravais: str) -> dict:
    """A stored row with a lattice of its own."""
    return next(dict(r) for r in records().values() if r["bravais"] == r["metric_bravais"] == bravais)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"formula": ""}, "no formula"),
        ({"hm": "P 9 9 9"}, "unknown space group"),
        ({"hm": "P 4/m m m"}, "cell not of its crystal system"),
        ({"alpha": 170.0, "beta": 100.0, "gamma": 100.0}, "impossible cell"),
        ({"volume": 10.0}, "volume not that of the cell"),
        ({"n_atoms": 1e5}, "volume an atom"),
        ({"hkl": [], "tth": [], "n": 0}, "no observable line"),
        ({"hm": "P n n n:1"}, "observable line that is absent"),
        ({"metric_bravais": "tP"}, "metric of higher symmetry"),
    ],
)
def test_each_filter_is_counted_by_its_reason(tmp_path: Path, change: dict, reason: str):
    entries = from_parquet(write_tables(tmp_path, [one("cF"), one("oP") | change]))
    assert entries.rejected == {reason: 1}
    assert list(entries.bravais) == ["cF"]


def test_one_crystal_twice_is_a_duplicate(tmp_path: Path):
    row = one("mP")
    near = row | {"uid": "near", **{k: row[k] * 1.0003 for k in "abc"}, "volume": row["volume"] * 1.0009}
    other = row | {"uid": "other", "formula": "other", "family": -1}
    entries = from_parquet(write_tables(tmp_path, [row, near, other]))
    assert list(entries.uid) == [row["uid"], "other"]
    assert entries.rejected == {"duplicate": 1}


def test_missing_tables_and_missing_pandas_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"it has no cells\.parquet"):
        from_parquet(tmp_path)
    (tmp_path / "cells.parquet").write_text("no table")
    shutil.copy(tmp_path / "cells.parquet", tmp_path / "peaklists_calc.parquet")
    with pytest.raises(InputError, match=r"cells\.parquet: it cannot be read"):
        from_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"mlindex-hpc\[train\]"):
        from_parquet(tmp_path)
