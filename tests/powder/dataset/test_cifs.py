"""Entries from CIFs: line intensities against gemmi's structure factors, bad files, families."""

from __future__ import annotations

import itertools
from pathlib import Path

import gemmi
import numpy as np
import pytest

from mlindex.crystal.metric import q2_from_hkl
from mlindex.crystal.reflections import hkl_within
from mlindex.crystal.scattering import crystal_from_cif
from mlindex.powder.dataset import from_cifs
from mlindex.powder.dataset.observable import line_intensities, observable_lines, q2_from_tth, tth_from_q2
from mlindex.powder.dataset.standard import bravais_of, standard_axes
from mlindex.records import InputError
from tests.powder.dataset.crystals import STRUCTURES, cif_text

BRAVAIS_OF = {
    "halite": "cF",
    "pyrite": "cP",
    "rutile": "tP",
    "calcite": "hR",
    "wurtzite": "hP",
    "baddeleyite": "mP",
    "aragonite": "oP",
    "gypsum": "mC",
    "kyanite-like": "aP",
}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / f"{name}.cif").write_text(cif_text(name))
    return folder


def gemmi_lines(path: Path, q2_max: float) -> tuple[np.ndarray, np.ndarray]:
    """q2 and the sum of |F|^2 of each line, by gemmi over the whole sphere in the setting of the file."""
    small = gemmi.read_small_structure(str(path))
    small.change_occupancies_to_crystallographic()  # atoms on special positions count once
    top = [int(np.sqrt(q2_max) * edge) + 1 for edge in small.cell.parameters[:3]]
    hkl = [h for h in itertools.product(*(range(-n, n + 1) for n in top)) if any(h)]
    q2 = small.cell.calculate_1_d2_array(np.array(hkl, np.int32))
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    inside = np.flatnonzero(q2 <= q2_max)
    squared = np.array([abs(calculator.calculate_sf_from_small_structure(small, hkl[i])) ** 2 for i in inside])
    order = np.argsort(q2[inside])
    ordered = q2[inside][order]
    first = np.append(True, np.diff(ordered) > 1e-7)
    return ordered[first], np.bincount(np.cumsum(first) - 1, squared[order])


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_line_intensities_are_those_of_gemmi(tmp_path: Path, name: str):
    path = write(tmp_path, name) / f"{name}.cif"
    crystal = crystal_from_cif(path)
    bravais = bravais_of(crystal.group)
    assert bravais == BRAVAIS_OF[name]
    g, p = standard_axes(crystal.cell, crystal.group, bravais)
    limit = 0.3
    hkl = hkl_within(g, bravais, limit)
    ours = line_intensities(hkl, bravais, p, crystal.structure, crystal.cell)
    q2, squared = gemmi_lines(path, limit)
    place = np.argmin(np.abs(q2[:, None] - q2_from_hkl(g, hkl)[None, :]), axis=0)
    np.testing.assert_allclose(q2[place], q2_from_hkl(g, hkl), rtol=1e-6)
    # distinct lines of one position (accidental) are summed in gemmi's; so are ours
    summed = np.bincount(place, ours, minlength=len(q2))
    np.testing.assert_allclose(summed, squared, atol=1e-5 * squared.max())


def test_entries_of_a_folder(tmp_path: Path):
    told: list[str] = []
    entries = from_cifs(write(tmp_path, *STRUCTURES), report=told.append)
    assert told == []
    assert entries.rejected == {}
    assert dict(zip(entries.uid, entries.bravais, strict=True)) == BRAVAIS_OF
    assert len(set(entries.family)) == len(entries)
    halite = list(entries.uid).index("halite")
    hkl, observable = entries.lines(halite)
    seen = {tuple(sorted(np.abs(row).tolist(), reverse=True)) for row in hkl[observable]}
    # the lines of ICDD card 5-628 up to 60 degrees
    assert seen == {(1, 1, 1), (2, 0, 0), (2, 2, 0), (3, 1, 1), (2, 2, 2)}
    assert entries.extinction[list(entries.uid).index("calcite")] in ("R 3 c", "R -3 c")


def test_isotypes_share_a_family(tmp_path: Path):
    write(tmp_path, "halite")
    text = cif_text("halite").replace("5.6402", "4.2112").replace("Na", "Mg").replace("Cl", "O")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "periclase.CIF").write_text(text)
    entries = from_cifs(tmp_path)
    assert list(entries.uid) == ["halite", "sub/periclase"]
    assert entries.family[0] == entries.family[1]
    assert entries.set[0] == entries.set[1]


def test_a_bad_file_is_one_sentence_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "rutile")
    (tmp_path / "broken.cif").write_text("data_x\nloop_\n_a\n")
    (tmp_path / "empty.cif").write_text("data_x\n_cell_length_a 5\n")
    (tmp_path / "bare.cif").write_text(cif_text("pyrite").split("loop_")[0])
    pseudo = cif_text("aragonite").replace("_cell_length_b 7.9641", "_cell_length_b 4.9598")
    (tmp_path / "pseudo.cif").write_text(pseudo)
    entries = from_cifs(tmp_path)
    assert list(entries.uid) == ["rutile"]
    assert entries.rejected == {"file that cannot be used": 4}
    lines = capsys.readouterr().err.splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["bare.cif", "broken.cif", "empty.cif", "pseudo.cif"]
    assert "it has no atoms" in lines[0]
    assert "cannot be told from tP" in lines[3]
    (tmp_path / "rutile.cif").unlink()
    with pytest.raises(InputError, match="none of its 4 CIFs can be used"):
        from_cifs(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"there is no \.cif file"):
        from_cifs(tmp_path / "none")


def test_files_that_a_filter_leaves_out_are_named_and_many_are_counted(tmp_path: Path):
    write(tmp_path, "halite")
    (tmp_path / "twin.cif").write_text(cif_text("halite"))
    (tmp_path / "vast.cif").write_text(cif_text("halite").replace("5.6402", "25.6402"))
    told: list[str] = []
    entries = from_cifs(tmp_path, report=told.append)
    assert list(entries.uid) == ["halite"] and entries.rejected == {"duplicate": 1, "volume an atom": 1}
    assert [line.split(": ")[0] for line in told] == [str(tmp_path / f"{name}.cif") for name in ("twin", "vast")]
    assert "a duplicate" in told[0] and "volume an atom" in told[1]
    for i in range(12):
        (tmp_path / f"bad{i:02d}.cif").write_text("data_x\n")
    told.clear()
    assert from_cifs(tmp_path, report=told.append).rejected["file that cannot be used"] == 12
    assert len(told) == 11 and told[-1] == f"{tmp_path}: 4 more of its CIFs are not used"


def test_observable_lines_obey_each_rule():
    tth = np.array([20.0, 20.05, 30.0, 40.0, 40.3, 50.0])
    squared = np.array([100.0, 60.0, 0.01, 100.0, 50.0, 0.0])
    # the weaker of two within 0.067 degrees, the one below 0.005 of the pattern and the absent one are not seen
    assert observable_lines(tth, squared, 60.0).tolist() == [0, 3, 4]
    assert observable_lines(np.linspace(10, 59, 90), np.ones(90), 60.0).tolist() == list(range(60))
    assert observable_lines(tth, np.zeros(6), 60.0).tolist() == []
    np.testing.assert_allclose(tth_from_q2(q2_from_tth(tth)), tth)
