"""Lauetools' files: the real ones are read, what is written comes back, and bad ones are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mlindex.crystal.metric import b_matrix_from_cell
from mlindex.crystal.rotation import random_rotations
from mlindex.crystal.strain import cell_from_ub, deviatoric_strain, direct_matrix_from_cell, u_from_ub
from mlindex.formats import ctf, lauetools
from mlindex.laue.geometry import (
    angles_from_kf,
    detector_from_calibration,
    kf_from_q,
    pixel_from_direction,
    sample_from_lab,
)
from mlindex.records import InputError

REFERENCE = Path(__file__).parents[1] / "reference" / "lauetools"


def test_cor_of_old_and_new_versions():
    old = lauetools.read_cor(REFERENCE / "Ge0001.cor")
    assert len(old.x) == 83 and old.calibration.shape is None and old.calibration.pixel == 0.079142
    assert old.calibration.dd == 67.96408151242893
    new = lauetools.read_cor(REFERENCE / "img_Ge_sCMOS_0000_181peaks.cor")
    assert len(new.x) == 181 and len(new.columns) == 15
    assert (new.x[0], new.y[0], new.intensity[0]) == (1294.65, 1880.57, 44329.41)
    assert detector_from_calibration(new.calibration).shape == (2018, 2016)
    assert detector_from_calibration(old.calibration).shape == (2048, 2048)


def test_dat_and_cor_hold_the_same_spots():
    dat, cor = lauetools.read_dat(REFERENCE / "Ge0001.dat"), lauetools.read_cor(REFERENCE / "Ge0001.cor")
    for a, b in ((dat.x, cor.x), (dat.y, cor.y), (dat.intensity, cor.intensity)):
        np.testing.assert_array_equal(a, b)
    assert dat.two_theta is None and dat.calibration is None and "peak_bkg" in dat.columns


def test_det():
    found = lauetools.read_det(REFERENCE / "Ge0001calib.det")
    assert found.material == "Si" and found.calibration.label == "MARCCD165"
    assert found.calibration.shape == (2048, 2048) and found.calibration.pixel == 0.08057
    np.testing.assert_allclose(found.ub_rotation @ found.ub_rotation.T, np.eye(3), atol=1e-4)
    assert detector_from_calibration(found.calibration).distance == 69.193


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("Ge0001.fit", 0.02),
        ("SiCustrain5_Cu20spots.fit", 0.01),
        ("testZrO2_0_g0_first40.fit", 1.3),
        ("SiCustrain0.fit", 0.6),
    ],
)
def test_every_layout_of_fit_is_read_and_its_ub_predicts_its_spots(name, tolerance):
    """The median distance (px) between the pixel that ub gives for hkl and the one that the file lists.

    The spots of testZrO2 come from a source that was displaced along the beam, and all lie 1.2 px off.
    """
    for grain in lauetools.read_fit(REFERENCE / name):
        detector = detector_from_calibration(grain.calibration)
        x, y, _ = pixel_from_direction(kf_from_q(grain.hkl @ grain.ub.T), detector)
        listed = np.hypot(x - grain.x, y - grain.y)
        if name == "Ge0001.fit":
            np.testing.assert_allclose(listed, grain.deviation, atol=1.2)  # that column is of an earlier step
        else:
            assert np.median(listed) < tolerance
        q2 = ((grain.hkl @ grain.ub.T) ** 2).sum(1)
        energy = 12.398419843 * q2 / (-2 * (grain.hkl @ grain.ub.T)[:, 0])
        np.testing.assert_allclose(grain.energy, energy, rtol=5e-3)


def test_what_a_fit_holds():
    silicon, copper = lauetools.read_fit(REFERENCE / "SiCustrain0.fit")
    assert (silicon.material, copper.material) == ("Si", "Cu")
    assert (len(silicon.x), len(copper.x)) == (155, 55)
    assert copper.hkl[0].tolist() == [-1, 1, 1] and copper.x[0] == 583.792603 and copper.spot[1] == 3
    germanium = lauetools.read_fit(REFERENCE / "Ge0001.fit")[0]
    assert germanium.mean_deviation == 0.609 and germanium.strain is None and germanium.intensity[0] == 70931.27


@pytest.mark.parametrize("name", ["SiCustrain5_Cu20spots.fit", "testZrO2_0_g0_first40.fit"])
def test_cells_and_rotations_of_strained_crystals(name):
    """ub gives the lattice parameters that Lauetools lists, and its rotation; the listed strain is near ours.

    Lauetools' listed strain differs from that of its own lattice parameters by up to 1.5e-4.
    """
    grain = lauetools.read_fit(REFERENCE / name)[0]
    reference = cell_from_ub(grain.b0)
    cell = cell_from_ub(grain.ub)
    np.testing.assert_allclose(cell[:3] * reference[0] / cell[0], grain.cell[:3], rtol=1e-6)
    np.testing.assert_allclose(cell[3:], grain.cell[3:], atol=1e-4)
    found = deviatoric_strain(grain.ub, reference)
    t = direct_matrix_from_cell(grain.cell) @ np.linalg.inv(direct_matrix_from_cell(reference))
    expected = 3 * (t + t.T) / 2 / np.trace(t) - np.eye(3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found, grain.strain, atol=1.5e-4)
    # From crystal to sample axes: direct axes in the laboratory, then the tilt of 40 degrees
    turn = sample_from_lab() @ np.linalg.inv(grain.ub).T @ np.linalg.inv(direct_matrix_from_cell(cell))
    np.testing.assert_allclose(turn @ found @ turn.T, grain.strain_sample, atol=1.6e-4)
    if name.startswith("SiCu"):
        listed = [[0.097535345, 0.217925982, -0.97107936], [-0.959543089, -0.238361846, -0.149868911]]
        np.testing.assert_allclose(u_from_ub(grain.ub)[:2], listed, atol=2e-8)


@given(st.integers(0, 1000), st.integers(0, 30))
def test_cor_round_trip(tmp_path_factory, seed, n):
    rng = np.random.default_rng(seed)
    columns = rng.uniform(1, 2000, (5, n)).round(6)
    calibration = lauetools.Calibration(
        *rng.uniform(1, 1000, 5), float(rng.uniform(0.05, 0.1)), (2018, 2016), "X>0", "sCMOS"
    )
    spots = lauetools.SpotList("a", *columns[:3], columns[3], columns[4], calibration)
    path = tmp_path_factory.mktemp("cor") / "a.cor"
    lauetools.write_cor(path, spots)
    found = lauetools.read_cor(path)
    assert found.calibration == calibration
    for name in ("x", "y", "intensity", "two_theta", "chi"):
        np.testing.assert_allclose(getattr(found, name), getattr(spots, name), atol=1e-6)


@pytest.mark.parametrize("name", ["SiCustrain0.fit", "testZrO2_0_g0_first40.fit", "Ge0001.fit"])
def test_fit_round_trip(tmp_path, name):
    grains = lauetools.read_fit(REFERENCE / name)
    path = tmp_path / "again.fit"
    lauetools.write_fit(path, grains, "frame.cor")
    found = lauetools.read_fit(path)
    assert len(found) == len(grains)
    for a, b in zip(found, grains, strict=True):
        assert (a.material, a.mean_deviation, a.calibration) == (b.material, b.mean_deviation, b.calibration)
        for field in ("x", "y", "hkl", "spot", "energy", "two_theta", "chi", "deviation", "ub", "b0", "strain", "cell"):
            if getattr(b, field) is not None:
                np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=2e-6, err_msg=field)


@given(st.integers(0, 1000))
def test_bunge_angles_against_scipy(seed):
    u = random_rotations(np.random.default_rng(seed), 4)
    expected = Rotation.from_matrix(u).as_euler("ZXZ", degrees=True)
    found = ctf.bunge_angles(u)
    np.testing.assert_allclose(Rotation.from_euler("ZXZ", found, degrees=True).as_matrix(), u, atol=1e-9)
    np.testing.assert_allclose(found, expected % 360, atol=1e-6)


def test_straight_bunge_angles():
    for angle, flip in ((0.0, False), (33.0, False), (200.0, False), (33.0, True)):
        u = Rotation.from_euler("ZXZ", [angle, 180.0 if flip else 0.0, 0.0], degrees=True).as_matrix()
        found = ctf.bunge_angles(u)
        np.testing.assert_allclose(found, [angle, 180.0 if flip else 0.0, 0.0], atol=1e-6)


def test_ctf(tmp_path):
    path = tmp_path / "map.ctf"
    u = random_rotations(np.random.default_rng(0), 6)
    phases = [ctf.Phase("Zirconia", np.array([5.15, 5.21, 5.32, 90, 99.2, 90]), "2/m", 14)]
    x, y = (v.ravel() for v in np.meshgrid([0.0, 2.0, 4.0], [0.0, 3.0]))
    phase = np.array([1, 1, 0, 1, 1, 1])
    lauetools.write_ctf(path, phases, phase, u, x, y, matched=np.arange(6), deviation=np.full(6, 0.2))
    lines = path.read_text().splitlines()
    assert lines[0] == "Channel Text File" and "XCells\t3" in lines and "YStep\t3" in lines
    start = next(i for i, line in enumerate(lines) if line.startswith("Phases"))
    assert lines[start + 1].split("\t")[:4] == ["5.15;5.21;5.32", "90;99.2;90", "Zirconia", "2"]
    table = np.array([[float(v) for v in line.split("\t")] for line in lines[start + 3 :]])
    assert table.shape == (6, 11)
    np.testing.assert_allclose(
        Rotation.from_euler("ZXZ", table[:, 5:8], degrees=True).as_matrix()[phase > 0], u[phase > 0], atol=1e-5
    )
    with pytest.raises(ValueError, match="Laue class"):
        ctf.write_ctf(path, [replace(phases[0], laue_group="432")], phase, u, x, y, matched=phase, deviation=x)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not a spot list"),
        ("1 2 3 4 5\n", "names no columns"),
        ("2theta chi X Y I\n1 2 3 4\n", "has 4 numbers"),
        ("2theta chi X Y I\n1 2 3 4 a\n", "not all numbers"),
        ("2theta chi X Y I\n1 2 3 4 nan\n", "not finite"),
        ("2theta chi X I\n1 2 3 4\n", "no column y"),
        ("2theta chi X Y I\n1 2 3 4 5\n# dd : 1\n# xcen : 1\n# ycen : 1\n# xbet : q\n# xgam : 0\n", "no number"),
    ],
)
def test_bad_spot_lists(tmp_path, text, word):
    path = tmp_path / "bad.cor"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"bad\.cor: .*{word}"):
        lauetools.read_cor(path)


def test_other_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.cor: the file cannot be read"):
        lauetools.read_cor(tmp_path / "none.cor")
    path = tmp_path / "bad.det"
    path.write_text("70.1, 1000, 990\n")
    with pytest.raises(InputError, match=r"bad\.det: its first line"):
        lauetools.read_det(path)
    path = tmp_path / "bad.fit"
    for text, word in (("nothing\n", "not a .fit"), ("#Number of indexed spots: 3\n1 2 3\n", "names its columns")):
        path.write_text(text)
        with pytest.raises(InputError, match=word):
            lauetools.read_fit(path)
    path.write_text("#Number of indexed spots: 1\n##spot_index intensity Xexp Yexp\n1 2 3 4\n")
    with pytest.raises(InputError, match="no columns h k l"):
        lauetools.read_fit(path)


def test_calibrations_that_do_not_fit():
    bare = lauetools.Calibration(70.0, 1000.0, 1000.0, 0.0, 0.0)
    with pytest.raises(InputError, match="pixel size"):
        detector_from_calibration(bare)
    with pytest.raises(InputError, match="size of the image"):
        detector_from_calibration(replace(bare, pixel=0.05))
    with pytest.raises(InputError, match=r"frame\.tif: .*2018 x 2016.*1000 x 900"):
        detector_from_calibration(replace(bare, pixel=0.0734, shape=(2018, 2016)), (1000, 900), origin="frame.tif")
    with pytest.raises(InputError, match="positive"):
        detector_from_calibration(replace(bare, dd=-1.0, pixel=0.0734))
    assert detector_from_calibration(replace(bare, pixel=0.05), (1000, 900)).shape == (1000, 900)


def test_angles_of_a_spot_follow_from_a_calibration():
    found = lauetools.read_fit(REFERENCE / "SiCustrain5_Cu20spots.fit")[0]
    two_theta, chi = angles_from_kf(kf_from_q(found.hkl @ found.ub.T))
    np.testing.assert_allclose(two_theta, found.two_theta, atol=1e-3)
    np.testing.assert_allclose(chi, found.chi, atol=1e-3)
    np.testing.assert_allclose(found.b0, b_matrix_from_cell((3.6, 3.6, 3.6, 90, 90, 90)), atol=1e-8)
