"""Spots written as the programs do, read back."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.formats.crystfel import EV_ANGSTROM, geometry_from_text
from mlindex.formats.spots import holds_spots, read_spots
from mlindex.records import InputError
from tests.formats.test_crystfel import GEOMETRY, stream_of


def write_cxi(path, images, energy=None):
    """A CXI file of images, each a list of (x, y, intensity)."""
    most = max(map(len, images), default=0) + 2
    table = np.full((3, len(images), most), -9.0)
    for i, image in enumerate(images):
        for j, spot in enumerate(image):
            table[:, i, j] = spot
    with h5py.File(path, "w") as h5:
        group = h5.create_group("/entry_1/result_1")
        group["nPeaks"] = np.array([len(image) for image in images])
        for name, values in zip(("peakXPosRaw", "peakYPosRaw", "peakTotalIntensity"), table, strict=True):
            group[name] = values
        if energy is not None:
            h5["/LCLS/photon_energy_eV"] = energy
            h5["/LCLS/clen"] = np.full(len(images), 123.0)
    return path


@given(st.lists(st.lists(st.tuples(*[st.floats(0, 99, width=32)] * 3), max_size=4), min_size=1, max_size=5))
def test_cxi_round_trip(tmp_path_factory, images):
    path = write_cxi(tmp_path_factory.mktemp("cxi") / "run.cxi", images)
    flat = [(i, *spot) for i, image in enumerate(images) for spot in image]
    if not flat:
        with pytest.raises(InputError, match="no spot"):
            read_spots(path)
        return
    found = read_spots(path)
    assert found.frames == len(images)
    frame, x, y, intensity = np.array(flat).T
    np.testing.assert_array_equal(found.frame, frame)
    np.testing.assert_allclose(found.fs, x + 0.5)  # indices of pixels become places
    np.testing.assert_allclose(found.ss, y + 0.5)
    np.testing.assert_allclose(found.intensity, intensity)
    assert np.all(np.isnan(found.q)) and np.all(np.isnan(found.wavelength))


def test_cxi_with_its_energy_and_distance(tmp_path):
    path = write_cxi(tmp_path / "run.cxi", [[(1, 2, 3)], [(4, 5, 6)]], energy=np.array([9500.0, 9000.0]))
    text = GEOMETRY.replace("9500 eV", "/LCLS/photon_energy_eV").replace("clen = 0.1", "clen = /LCLS/clen")
    found = read_spots(path, geometry_from_text(text, "text"))
    np.testing.assert_allclose(found.wavelength, EV_ANGSTROM / np.array([9500.0, 9000.0]))
    np.testing.assert_allclose(found.distance, 0.123)


def test_tables_of_dials(tmp_path):
    path = tmp_path / "strong.h5"
    rlp = np.array([[0.1, 0, 0], [0, 0.3, 0.4]])
    with h5py.File(path, "w") as h5:
        group = h5.create_group("/dials/processing/group_0")
        group["rlp"], group["xyzobs.px.value"] = rlp, np.array([[10.0, 20, 0], [30, 40, 1]])
        group["intensity.sum.value"], group["id"] = np.array([5.0, 6.0]), np.array([3, 7])
    found = read_spots(path)
    np.testing.assert_allclose(found.q, [0.1, 0.5])
    np.testing.assert_allclose(found.fs, [10, 30])
    np.testing.assert_array_equal(found.frame, [0, 1])
    assert found.frames == 2


@pytest.mark.parametrize(("name", "values"), [("q", [0.1, 0.25]), ("d", [10.0, 4.0])])
def test_tables_of_positions_alone(tmp_path, name, values):
    path = tmp_path / "table.h5"
    with h5py.File(path, "w") as h5:
        h5[name] = np.array(values)
    np.testing.assert_allclose(read_spots(path).q, [0.1, 0.25])


def test_a_stream_is_known_by_its_first_words(tmp_path):
    path = tmp_path / "anything"
    path.write_text(stream_of([[(1.0, 2.0, 0.1, 3.0, "a")]]))
    assert holds_spots(path)
    assert read_spots(path).q == pytest.approx([0.1])
    (tmp_path / "text").write_text("# d\n1\n")
    assert not holds_spots(tmp_path / "text") and not holds_spots(tmp_path / "none")


def _empty(path):
    h5py.File(path, "w").close()


def _too_many(path):
    with h5py.File(path, "w") as h5:
        h5["nPeaks"], h5["peakXPosRaw"], h5["peakYPosRaw"] = [9], np.zeros((1, 2)), np.zeros((1, 2))


def _without_x(path):
    with h5py.File(path, "w") as h5:
        h5["nPeaks"] = [1]


def _flat_rlp(path):
    with h5py.File(path, "w") as h5:
        h5["rlp"] = np.zeros(4)


BAD = {
    "has neither": _empty,
    "beyond the peaks": _too_many,
    "no peakXPosRaw": _without_x,
    "has the shape": _flat_rlp,
    "no HDF5 file that can be read": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)),
    "is no file of spots": lambda path: path.write_text("1 2 3\n"),
    "no such file": lambda path: None,
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_files(tmp_path, what):
    path = tmp_path / "bad.h5"
    BAD[what](path)
    with pytest.raises(InputError, match=what) as caught:
        read_spots(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
