"""LARBED files: round trips, units and scales, and one clear sentence for each thing that is wrong."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlindex.formats.larbed import Larbed, Truth, read_larbed, read_truth, read_u, write_larbed
from mlindex.records import InputError

HKL = np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0]])
CELL = np.array([3.905, 3.905, 3.905, 90, 90, 90])


def pattern(intensity: np.ndarray, **more) -> Larbed:
    tilt = np.stack([np.linspace(-5, 5, len(intensity)), np.linspace(1, 2, len(intensity))], 1)
    good = {"hkl": HKL, "tilt": tilt, "voltage_kv": 120.0, "cell": CELL, "zone": np.array([0, 0, 1])}
    return Larbed(id="p.h5", source="p.h5", intensity=intensity, **(good | more))


def rows(m: int) -> np.ndarray:
    values = np.random.default_rng(0).random((m, 3))
    return values / values.sum(1, keepdims=True)


@settings(max_examples=20)
@given(values=arrays(float, (4, 3), elements=st.floats(0, 1e6, allow_subnormal=False)), scale=st.floats(1e-3, 1e9))
def test_round_trip(tmp_path_factory, values, scale):
    """What is written as counts is read as fractions with the scale that gives the counts back."""
    path = tmp_path_factory.mktemp("larbed") / "p.h5"
    values[:, 0] += 1.0
    given = pattern(values, scale=scale, composition="SrTiO3", cif="a.cif")
    write_larbed(path, given)
    read = read_larbed(path)
    np.testing.assert_allclose(read.intensity * read.scale, values * scale, rtol=1e-12, atol=1e-200)
    assert read.scale == 1.0 or np.median(read.intensity.sum(1)) == pytest.approx(1.0)
    for name in ("hkl", "tilt", "cell", "zone"):
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))
    assert (read.voltage_kv, read.composition, read.cif) == (120.0, "SrTiO3", "a.cif")
    assert (read.id, read.source) == ("p.h5", str(path)) and read_truth(path) is None


def test_truth(tmp_path):
    truth = Truth(np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0]]), np.array([0.1 - 0.2j, 0, 0.1 + 0.2j]), 300.0, rows(5))
    write_larbed(tmp_path / "p.h5", pattern(rows(5)), truth, "someone")
    read = read_truth(tmp_path / "p.h5")
    assert read is not None and read.thickness == 300.0
    for name in ("dhkl", "u", "intensity"):
        np.testing.assert_array_equal(getattr(read, name), getattr(truth, name))
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["creator"] == "someone" and file["larbed/tilt"].attrs["units"] == "mrad"
        assert file["truth/thickness"].attrs["units"] == "angstrom"


@pytest.fixture
def edit(tmp_path):
    """edit(change) -> a good file after `change(file)`."""

    def made(change) -> Path:
        path = tmp_path / "p.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("larbed")
            group["intensity"], group["hkl"] = rows(4), HKL
            group["tilt"] = np.ones((4, 2))
            group["tilt"].attrs["units"] = "mrad"
            group.attrs.update(voltage_kV=120.0, cell=CELL, zone_axis=[0, 0, 1])
            change(file)
        return path

    return made


def put(name: str, values) -> object:
    def change(file):
        attributes = dict(file[f"larbed/{name}"].attrs)
        del file[f"larbed/{name}"]
        file[f"larbed/{name}"] = values
        file[f"larbed/{name}"].attrs.update(attributes)

    return change


def attribute(name: str, value) -> object:
    return lambda file: file["larbed"].attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("units", "size"), [("mrad", 1), ("rad", 1e3), ("deg", 1e3 * np.pi / 180), (b"Degrees", 1e3 * np.pi / 180)]
)
def test_units_of_tilts(edit, units, size):
    def change(file):
        put("tilt", np.full((4, 2), 0.1))(file)
        file["larbed/tilt"].attrs["units"] = units

    np.testing.assert_allclose(read_larbed(edit(change)).tilt, 0.1 * size)


@pytest.mark.parametrize(
    ("factor", "scale"), [(1.0, 1.0), (1.01, 1.0), (0.8, 1.0), (0.2, 0.2), (1.3, 1.3), (54321.0, 54321.0)]
)
def test_a_scale_is_found_and_said(edit, factor, scale):
    """Fractions are left alone, also where a part of the beam was not recorded; counts are not fractions."""
    read = read_larbed(edit(put("intensity", factor * rows(4))))
    assert read.scale == pytest.approx(scale)
    np.testing.assert_allclose(read.intensity * read.scale, factor * rows(4), rtol=1e-12)


def test_what_says_that_it_is_normalised_is(edit):
    def change(file):
        put("intensity", 0.2 * rows(4))(file)
        file["larbed"].attrs["normalised"] = True

    assert read_larbed(edit(change)).scale == 1.0


def test_whole_numbers_and_single_precision_will_do(edit):
    read = read_larbed(edit(put("intensity", np.full((4, 3), 7, np.uint16))))
    assert read.scale == 21.0 and read.intensity.dtype == np.float64


NEGATIVE, UNKNOWN = rows(4), rows(4)
NEGATIVE[2, 1] = -0.1
UNKNOWN[3, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.__delitem__("larbed"), "has no group /larbed"),
        (lambda f: f["larbed"].__delitem__("intensity"), "/larbed/intensity .* is missing"),
        (lambda f: f["larbed"].__delitem__("hkl"), "/larbed/hkl .* is missing"),
        (lambda f: f["larbed"].__delitem__("tilt"), "/larbed/tilt .* is missing"),
        (put("intensity", rows(4)[0]), "must hold numbers, tilts by beams"),
        (put("intensity", np.full((4, 3), b"x")), "must hold numbers"),
        (put("intensity", rows(4).T), r"shape \(3, 4\), .* it is beams by tilts: transpose it"),
        (put("intensity", rows(5)), "there are 4 tilts and 3 beams; correct"),
        (put("intensity", np.zeros((0, 3))), "pattern is empty"),
        (put("intensity", np.zeros((4, 3))), "no intensity in any beam"),
        (put("intensity", NEGATIVE), "negative, the first at tilt 2, beam 1"),
        (put("intensity", UNKNOWN), "not finite, the first at tilt 3, beam 0"),
        (put("tilt", np.ones((5, 2))), "5 tilts and 3 beams"),
        (put("tilt", np.ones((4, 3))), "tilts by 2"),
        (put("tilt", np.full((4, 2), np.nan)), r"some tilts \(4\) are not finite"),
        (put("tilt", np.full((4, 2), 700.0)), "700 mrad is too large"),
        (lambda f: f["larbed/tilt"].attrs.__delitem__("units"), "no attribute units"),
        (lambda f: f["larbed/tilt"].attrs.__setitem__("units", "furlong"), "are in 'furlong'"),
        (put("hkl", np.array([[2, 0, 0], [1, 0, 0], [-1, 0, 0]])), "0 0 0 is missing"),
        (put("hkl", np.zeros((3, 3), int)), r"\[0, 0, 0\] is listed 3 times"),
        (put("hkl", HKL + 0.5), "no integers"),
        (put("hkl", HKL[:, :2]), "beams by 3"),
        (put("hkl", np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1]])), r"2 of the 3 beams are not in the zone \[0, 0, 1\]"),
        (lambda f: f["larbed"].attrs.__delitem__("voltage_kV"), "lacks the attribute voltage_kV"),
        (attribute("voltage_kV", 120000.0), "looks like volts"),
        (attribute("voltage_kV", 0.0), "at least 1 kV"),
        (attribute("voltage_kV", "high"), "1 finite number, not high"),
        (lambda f: f["larbed"].attrs.__delitem__("cell"), "lacks the attribute cell"),
        (attribute("cell", [3.9, 3.9, 3.9]), "cell must hold 6 finite numbers"),
        (attribute("cell", [0.3905, 0.3905, 0.3905, 90, 90, 90]), "0.3905, 0.3905, 0.3905 look like nanometres"),
        (attribute("cell", [3.9, -3.9, 3.9, 90, 90, 90]), "edges must be finite and positive"),
        (attribute("cell", [3.9, 3.9, 3.9, 10, 10, 170]), "no cell has the angles"),
        (lambda f: f["larbed"].attrs.__delitem__("zone_axis"), "lacks the attribute zone_axis"),
        (attribute("zone_axis", [0, 0, 0]), "three integers, not all zero"),
        (attribute("zone_axis", [0, 0.5, 1]), "three integers"),
    ],
)
def test_bad_files_are_one_sentence(edit, change, says):
    path = edit(change)
    with pytest.raises(InputError, match=says) as caught:
        read_larbed(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_larbed, read_truth])
def test_what_is_no_file(tmp_path, read):
    (tmp_path / "text").write_text("no HDF5")
    for name, says in (("none", "no such file"), ("text", "no HDF5 file")):
        with pytest.raises(InputError, match=says):
            read(tmp_path / name)


def test_what_cannot_be_written_or_is_half_a_truth(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_larbed(tmp_path / "none" / "p.h5", pattern(rows(4)))
    write_larbed(tmp_path / "p.h5", pattern(rows(4)))
    with h5py.File(tmp_path / "p.h5", "a") as file:
        file.create_group("truth")
    with pytest.raises(InputError, match="not complete"):
        read_truth(tmp_path / "p.h5")


def test_lists_of_structure_factors(tmp_path):
    (tmp_path / "u").write_text("# h k l re im\n0 0 0 0.1 0\n\n1, 0, 0, 0.05, -0.02 # strong\n")
    hkl, u = read_u(tmp_path / "u")
    assert hkl.tolist() == [[0, 0, 0], [1, 0, 0]] and u.tolist() == [0.1, 0.05 - 0.02j]
    for text, says in (("1 0 0 0.1\n", "line 1"), ("1 0 0.5 1 1\n", "line 1"), ("# none\n", "no structure factors")):
        (tmp_path / "u").write_text(text)
        with pytest.raises(InputError, match=says):
            read_u(tmp_path / "u")
    with pytest.raises(InputError, match="cannot be read"):
        read_u(tmp_path / "none")
