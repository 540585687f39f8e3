"""Laue results on the page and in other programs' files, read back by their own readers."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from scipy.linalg import polar

from mlindex.cli.report import write_report
from mlindex.config import LaueSettings
from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import cell_from_ub
from mlindex.formats import lauetools
from mlindex.laue.frame import Spots
from mlindex.laue.geometry import sample_from_lab
from mlindex.laue.materials import material
from mlindex.laue.stage import LaueStage
from mlindex.records import InputError, Item, Result, failed
from mlindex.report.export import cif_text, csv_lines, json_lines, write_files
from mlindex.report.laue_export import CSV_HEADER
from mlindex.report.laue_tables import frame_table
from mlindex.report.tables import printer
from mlindex.runtime.shards import provenance, write_results
from tests.laue.frames import DETECTOR, frame_of, true_grains
from tests.report.page_reader import Page
from tests.report.results import solved

STAGE = LaueStage(LaueSettings(materials=("Cu", "GaN", "ZrO2")))


def result_of(*names: str, seed: int = 0, id: str = "") -> Result:
    """The result of a frame whose every grain is found."""
    frame = frame_of(*names, seed=seed, strain=1e-3)
    spots = Spots("frame.cor", DETECTOR, frame.x, frame.y, frame.intensity)
    item = Item(id or f"scan/frame:{seed}", "frame.cor")
    (result,) = STAGE.finish([item], [(spots, true_grains(frame))])
    return dataclasses.replace(result, seconds=0.5)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    bad = failed(Item("bad", "bad.cor"), "bad.cor: is empty")
    return [result_of("ZrO2", "Cu", seed=1), result_of(seed=2), bad, result_of("GaN", seed=3)]


def test_fit_files_read_back(results, tmp_path):
    paths = write_files("fit", results, tmp_path / "fits")
    assert [p.name for p in paths] == ["scan_frame_1.fit", "scan_frame_3.fit"]
    grains, tables = lauetools.read_fit(paths[0]), results[0].tables
    assert [g.material for g in grains] == ["ZrO2", "Cu"]
    for rank, grain in enumerate(grains):
        mine = tables["spots"]["grain"] == rank
        assert not np.cross(grain.hkl, tables["spots"]["hkl"][mine]).any(), "the same rays"
        np.testing.assert_array_equal(grain.spot, np.flatnonzero(mine))
        np.testing.assert_allclose(grain.x, tables["spots"]["x"][mine], atol=1e-5)
        np.testing.assert_allclose(grain.energy, tables["spots"]["energy"][mine], atol=1e-5)
        np.testing.assert_allclose(grain.ub, tables["grains"]["ub"][rank], atol=1e-7)
        np.testing.assert_allclose(grain.strain, tables["grains"]["strain"][rank], atol=1e-7)
        true = cell_from_ub(tables["grains"]["ub"][rank])
        np.testing.assert_allclose(grain.cell[:3] / grain.cell[0], true[:3] / true[0], rtol=1e-6)
        assert grain.deviation.mean() == pytest.approx(0.25, abs=0.05), "noise of 0.2 px in x and in y"
        np.testing.assert_allclose(
            [getattr(grain.calibration, k) for k in ("dd", "xcen", "ycen", "xbet", "xgam")], DETECTOR.parameters
        )


def test_the_hkl_of_a_fit_is_the_order_that_its_energy_is_of(tmp_path):
    """Bragg's law for every spot, with the measured angle; and no reflection that an F centring forbids."""
    (path,) = write_files("fit", [result_of("Cu", seed=4)], tmp_path)
    (grain,) = lauetools.read_fit(path)
    assert grain.two_theta is not None and grain.energy is not None and grain.ub is not None
    twice_sine = 2 * np.sin(np.radians(grain.two_theta / 2))
    bragg = 12.398419843 * np.linalg.norm(grain.hkl @ grain.ub.T, axis=1) / twice_sine
    np.testing.assert_allclose(grain.energy / bragg, 1, atol=0.01)
    assert len(grain.hkl) > 30 and len(np.unique(np.gcd.reduce(grain.hkl, axis=1))) > 1, "some are of a higher order"
    odd = (grain.hkl % 2).sum(axis=1)
    assert np.isin(odd, (0, 3)).all(), "h, k and l all odd or all even"


def test_cor_files_read_back(results, tmp_path):
    paths = write_files("cor", results, tmp_path)
    assert len(paths) == 2, "the frame without spots and the one that failed have none"
    read = lauetools.read_cor(paths[0])
    np.testing.assert_allclose(read.intensity, results[0].tables["spots"]["intensity"], atol=1e-5)
    assert read.calibration is not None and read.calibration.shape == DETECTOR.shape


def test_names_of_files_never_collide(tmp_path):
    alike = [result_of("Cu", id=name) for name in ("a:1", "a#1", "A_1", "..")]
    assert len({p.name.lower() for p in write_files("cor", alike, tmp_path)}) == 4


def test_ctf_map(results, tmp_path):
    (path,) = write_files("ctf", results, tmp_path / "map.ctf")
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Phase\t"))
    rows = [dict(zip(lines[at].split("\t"), line.split("\t"), strict=True)) for line in lines[at + 1 :]]
    assert [row["Phase"] for row in rows] == ["1", "0", "0", "2"] and [float(r["X"]) for r in rows] == [0, 1, 2, 3]
    first, middle, last = (np.radians(float(rows[3][f"Euler{k}"])) for k in (1, 2, 3))

    def about(axis: int, angle: float) -> np.ndarray:
        i, j = ((1, 2), (2, 0), (0, 1))[axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        return turn

    grain = {name: values[0] for name, values in results[3].tables["grains"].items()}
    # the rotation of the strained crystal that no choice of axes in it changes
    expected = sample_from_lab() @ polar(grain["ub"] @ np.linalg.inv(material("GaN").b))[0]
    assert misorientation(expected, sample_from_lab() @ grain["u"]) < 0.5
    np.testing.assert_allclose(about(2, first) @ about(0, middle) @ about(2, last), expected, atol=2e-6)


def test_what_cannot_be_exported(results, tmp_path):
    with pytest.raises(InputError, match="--to cif: these are results of Laue frames"):
        "".join(cif_text(results))
    with pytest.raises(InputError, match="name a folder for them with -o"):
        write_files("fit", results, None)
    with pytest.raises(InputError, match="--to ctf: writes a file; name it with -o"):
        write_files("ctf", results, None)
    with pytest.raises(InputError, match="no results of Laue frames here; use one of json, csv, cif"):
        write_files("fit", [solved()], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder that can be written to"):
        write_files("cor", results, tmp_path / "file")
    with pytest.raises(InputError, match=r"map\.ctf: cannot be written"):
        write_files("ctf", results, tmp_path / "nowhere" / "map.ctf")


def test_frames_that_all_failed_are_still_laue_frames(tmp_path):
    """The stage that the file names counts, not the tables that its results have."""
    bad = [failed(Item(name, f"{name}.cor"), "is empty") for name in ("a", "b")]
    lines = [json.loads(line) for line in json_lines(bad, "laue")]
    assert [list(line) for line in lines] == [["id", "source", "status", "reason", "seconds", "grains", "spots"]] * 2
    header, *rows = csv.reader("".join(csv_lines(bad, "laue")).splitlines())
    assert tuple(header) == CSV_HEADER and [row[2] for row in rows] == ["failed"] * 2
    with pytest.raises(InputError, match="--to cif: these are results of Laue frames"):
        "".join(cif_text(bad, "laue"))
    assert write_files("fit", bad, tmp_path, "laue") == []


def test_failed_and_unsolved_frames_have_a_line_each(results):
    assert len("".join(json_lines(results)).splitlines()) == 4
    rows = "".join(csv_lines(results)).splitlines()
    assert len(rows) == 1 + 2 + 1 + 1 + 1 and rows[4].startswith("bad,bad.cor,failed,bad.cor: is empty")


def test_table(results, capsys):
    printer().print(frame_table(results[0]))
    text = capsys.readouterr().out
    n = len(results[0].tables["spots"]["x"])
    assert f"scan/frame:1: 2 grains, {np.sum(results[0].tables['spots']['grain'] >= 0)} of {n} spots" in text
    rows = [line.split() for line in text.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["0", "ZrO2"], ["1", "Cu"]]
    matched = int(results[0].tables["grains"]["n_matched"][0])
    assert rows[0][2] == f"{matched}/{matched + 3}" and "(" in rows[0][-1]


def test_a_strain_is_shown_without_what_errors_add_or_as_what_it_is_below(results, capsys):
    grains = {name: values.copy() for name, values in results[0].tables["grains"].items()}
    grains["strain"][:] = np.diag([2e-3, -1e-3, -1e-3])
    grains["strain_esd"][:] = 4e-4
    grains["ub"][1] = grains["u"][1] @ material("Cu").b
    printer().print(frame_table(dataclasses.replace(results[0], tables={**results[0].tables, "grains": grains})))
    shown = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert shown == ["2.1(4)", "<3.2"]  # sqrt(6 - 9 0.4^2) of a norm of sqrt(6), whose uncertainty is 0.4


def test_the_table_says_what_there_is_to_say_of_a_frame(results, capsys):
    printer().print(frame_table(dataclasses.replace(results[0], reason="only the 20 brightest spots were used")))
    assert capsys.readouterr().out.splitlines()[-1].strip() == "only the 20 brightest spots were used"


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("laue") / "results.h5"
    attributes = provenance("laue", {"laue": STAGE.settings.model_dump(mode="json")})
    more = [result_of("Cu", "Cu", seed=10 + k) for k in range(20)]
    write_results(path, "laue", STAGE.schema, [*results, *more], attributes)
    return Page(write_report(path, None).read_text())


def test_the_page_counts_grains_and_materials(page):
    shares = {row["Material of the best grain"]: row["Frames"] for row in page.rows("materials")}
    assert shares == {"Cu": "20", "GaN": "1", "ZrO2": "1"}
    grains = next(row for row in page.rows("grains-numbers") if row["Frames"] == "grains in the frame")
    assert grains["Values"] == "23" and grains["Median"] == "2"


def test_a_page_of_frames_without_a_grain(tmp_path):
    path = tmp_path / "results.h5"
    write_results(path, "laue", STAGE.schema, [result_of(seed=1), result_of(seed=2)], provenance("laue", {}))
    page = Page(write_report(path, None).read_text())
    assert page.texts["n-unsolved"] == "2" and page.rows("grains-numbers")[0]["Median"] == "0"
