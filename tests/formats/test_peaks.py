"""Peak lists: against gemmi's d-spacings and Bragg's law, and round trips through every format."""

from __future__ import annotations

import json
import logging

import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.formats import peaks
from mlindex.formats.wavelength import wavelength_from_text
from mlindex.records import PeakList

CU = 1.5405929


def corundum() -> tuple[np.ndarray, np.ndarray]:
    """d (gemmi) and 2theta (Bragg's law, written out) of some reflections of corundum, descending in d."""
    cell = gemmi.UnitCell(4.7589, 4.7589, 12.992, 90, 90, 120)
    hkl = [(0, 1, 2), (1, 0, 4), (1, 1, 0), (0, 0, 6), (1, 1, 3), (0, 2, 4), (1, 1, 6), (2, 1, 1), (0, 1, 8), (2, 1, 4)]
    d = np.sort([cell.calculate_d(h) for h in hkl])[::-1]
    return d, np.degrees(2 * np.arcsin(CU / (2 * d)))


D, TTH = corundum()
VALUES = {"q2": D**-2, "q": 1 / D, "d": D, "tth": TTH}


def write(tmp_path, text, name="list.txt", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def column(values, extra="") -> str:
    return "".join(f"{x!r}{extra}\n" for x in np.asarray(values).tolist())


@pytest.mark.parametrize("quantity", ["q2", "q", "d", "tth"])
def test_each_quantity_gives_the_q2_of_gemmi(tmp_path, quantity):
    found = peaks.read(write(tmp_path, column(VALUES[quantity])), quantity=quantity, wavelength=CU)
    np.testing.assert_allclose(found.q2, D**-2, rtol=1e-12)
    assert found.wavelength == CU and found.intensity is None and found.id == "list"


@pytest.mark.parametrize(
    ("header", "quantity"),
    [
        ("# q2", "q2"),
        ("#q^2", "q2"),
        ("# 1/d^2 (1/A^2)", "q2"),
        ("# q", "q"),
        ("! q in 1/A", "q"),
        ("# d", "d"),
        ("# d(A)", "d"),
        ("% d-spacing [Å]", "d"),
        ("d_spacing", "d"),
        ("# tth", "tth"),
        ("# 2theta", "tth"),
        ("# two_theta (deg)", "tth"),
        ("2θ", "tth"),
        ("Pos. [°2Th.]", "tth"),
        ("# quantity: q2", "q2"),
    ],
)
def test_header_names_the_quantity(tmp_path, header, quantity):
    text = f"# a title of three words\n{header}\n# wavelength {CU}\n" + column(VALUES[quantity])
    np.testing.assert_allclose(peaks.read(write(tmp_path, text)).q2, D**-2, rtol=1e-12)


@pytest.mark.parametrize(
    ("line", "angstrom"),
    [
        ("# wavelength 1.5405929", CU),
        ("# Wavelength (A): 1.5405929 A", CU),
        ("# lambda = 1.5405929", CU),
        ("# wavelength CuKa1", CU),
        ("# wavelength: Cu K-alpha 1", CU),
        ("# wavelength Cu", 1.54187),
        ("# wavelength MoKa1", 0.709317),
        ("wavelength,1.5405929", CU),
    ],
)
def test_header_gives_the_wavelength(tmp_path, line, angstrom):
    found = peaks.read(write(tmp_path, f"# tth\n{line}\n" + column(TTH)))
    assert found.wavelength == pytest.approx(angstrom, rel=1e-6)


@pytest.mark.parametrize("text", ["", "unknown", "2 theta", "Cute", "K", "nan"])
def test_what_is_no_wavelength_gives_none(text):
    assert wavelength_from_text(text) is None


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";", " , ", "   "])
def test_separators_and_intensity(tmp_path, separator):
    text = "# d intensity\n" + "".join(f"{d!r}{separator}{i}\n" for i, d in enumerate(D.tolist()))
    found = peaks.read(write(tmp_path, text, "list.csv"))
    np.testing.assert_allclose(found.q2, D**-2, rtol=1e-12)
    np.testing.assert_array_equal(found.intensity, np.arange(len(D)))


def test_columns_by_name_and_the_choice_among_them(tmp_path):
    rows = "".join(f"{i},{t!r},{d!r},{10 * i}\n" for i, (t, d) in enumerate(zip(TTH.tolist(), D.tolist(), strict=True)))
    path = write(tmp_path, '"No","2theta","d (A)","Rel. Int. [%]"\n' + rows)
    by_d = peaks.read(path)  # no wavelength: the angles are of no use
    by_angle = peaks.read(path, wavelength=2 * CU)
    np.testing.assert_allclose(by_d.q2, D**-2, rtol=1e-12)
    np.testing.assert_allclose(by_angle.q2, D**-2 / 4, rtol=1e-12)
    np.testing.assert_allclose(peaks.read(path, wavelength=CU, quantity="d").q2, D**-2, rtol=1e-12)
    np.testing.assert_array_equal(by_d.intensity, 10 * np.arange(len(D)))


def test_names_that_mean_nothing_to_us_are_passed_over(tmp_path):
    path = write(tmp_path, "Angle,Cps\n" + column(TTH, ",7"))
    np.testing.assert_allclose(peaks.read(path, quantity="tth", wavelength=CU).q2, D**-2, rtol=1e-12)


def test_decimal_commas_of_a_european_spreadsheet(tmp_path):
    for text in ("d;I\n" + column(D, ";5"), "# d\n" + column(D)):
        np.testing.assert_allclose(peaks.read(write(tmp_path, text.replace(".", ","))).q2, D**-2, rtol=1e-12)


def test_one_line_of_numbers_and_esds_and_inline_comments(tmp_path):
    one = "# d\n" + ", ".join(repr(d) for d in D.tolist())
    np.testing.assert_allclose(peaks.read(write(tmp_path, one)).q2, D**-2, rtol=1e-12)
    esds = "# d\n" + "".join(f"{d:.5f}(3)  # a line\n" for d in D)
    np.testing.assert_allclose(peaks.read(write(tmp_path, esds)).q2, D**-2, rtol=1e-4)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings_of_windows_programs(tmp_path, encoding):
    text = "# d [Å]\r\n" + column(D).replace("\n", "\r\n")
    np.testing.assert_allclose(peaks.read(write(tmp_path, text, encoding=encoding)).q2, D**-2, rtol=1e-12)


@pytest.mark.parametrize("shape", ["n", "n1", "n2", "2n"])
def test_npy(tmp_path, shape):
    intensity = np.arange(len(D), dtype=float)
    array = {"n": D, "n1": D[:, None], "n2": np.stack([D, intensity], 1), "2n": np.stack([D, intensity])}[shape]
    path = tmp_path / "list.dat"  # the content decides, not the extension
    with path.open("wb") as file:
        np.save(file, array)
    found = peaks.read(path, quantity="d")
    np.testing.assert_allclose(found.q2, D**-2, rtol=1e-12)
    assert (found.intensity is not None) == (shape in ("n2", "2n"))


@pytest.mark.parametrize(
    "content",
    [
        {"q2": (D**-2).tolist()},
        {"q": (1 / D).tolist(), "wavelength": None},
        {"d": D.tolist(), "intensity": None, "name": "corundum"},
        {"two_theta": TTH.tolist(), "wavelength": CU},
        {"2theta": TTH.tolist(), "wavelength": "CuKa1", "intensity": [1] * len(D)},
        {"tth": TTH.tolist(), "q2": (D**-2).tolist(), "wavelength": None},
    ],
)
def test_json_objects(tmp_path, content):
    found = peaks.read(write(tmp_path, json.dumps(content, indent=1)))
    np.testing.assert_allclose(found.q2, D**-2, rtol=1e-10)


def test_json_lists(tmp_path):
    for content in (D.tolist(), [[d, 5] for d in D.tolist()]):
        found = peaks.read(write(tmp_path, json.dumps(content)), quantity="d")
        np.testing.assert_allclose(found.q2, D**-2, rtol=1e-12)


@pytest.mark.parametrize("head", ["#GSAS-II PWDR peaks list file; do not add/delete items!\n", ""])
@pytest.mark.parametrize("scalar", ["{!r}", "np.float64({!r})"])
def test_gsas2_pkslst(tmp_path, head, scalar):
    rows = "".join(
        f"[{scalar.format(t)}, True, {10.0 * i}, 1, 0.6, False, 0.1, 0]\n" for i, t in enumerate(TTH.tolist())
    )
    found = peaks.read(write(tmp_path, head + rows + "{'ncell': 20}\n", "a.pkslst"), wavelength=CU)
    np.testing.assert_allclose(found.q2, D**-2, rtol=1e-12)
    np.testing.assert_array_equal(found.intensity, 10 * np.arange(len(D)))


positions = st.lists(st.floats(1e-4, 4.0), min_size=6, max_size=40, unique_by=lambda x: round(x, 6))


@given(positions, st.sampled_from(["q2", "q", "d", "tth"]), st.booleans())
def test_write_and_read_back(tmp_path_factory, values, quantity, with_intensity):
    q2 = np.sort(np.array(values))
    made = PeakList("list", "", q2, 0.9, np.arange(len(q2), dtype=float) if with_intensity else None)
    path = tmp_path_factory.mktemp("round") / "list.txt"
    peaks.write(path, made, quantity=quantity)
    found = peaks.read(path)
    np.testing.assert_allclose(found.q2, q2, rtol=0 if quantity == "q2" else 1e-12)
    assert found.wavelength == 0.9 and (found.intensity is not None) == with_intensity
    if made.intensity is not None:
        np.testing.assert_array_equal(found.intensity, made.intensity)


@given(positions, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(tmp_path_factory, values, random):
    q2 = np.sort(np.array(values))
    shuffled = [*values, *values[:3], values[0] * (1 + 2e-16)]
    random.shuffle(shuffled)
    path = tmp_path_factory.mktemp("order") / "list.txt"
    path.write_text("# q2\n" + column(shuffled))
    found = peaks.read(path).q2
    np.testing.assert_allclose(found, q2, rtol=1e-15)
    assert np.all(np.diff(found) > 0)


@given(positions, st.sampled_from(["q", "d", "tth"]))
def test_position_and_q2_are_inverse(values, quantity):
    q2 = np.array(values)
    again = peaks.q2_from_position(peaks.position_from_q2(q2, quantity, 0.9), quantity, 0.9)
    np.testing.assert_allclose(again, q2, rtol=1e-11)


def test_the_option_overrides_the_header_and_the_contradiction_is_said(tmp_path, caplog):
    path = write(tmp_path, "# q2\n# wavelength 1.2\n" + column(D))
    with caplog.at_level(logging.WARNING):
        found = peaks.read(path, quantity="d", wavelength=CU)
    np.testing.assert_allclose(found.q2, D**-2, rtol=1e-12)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(str(path) in line for line in said)
    assert "1.2" in said[0] and "q2" in said[1] and "as d" in said[1]
    caplog.clear()
    assert peaks.read(write(tmp_path, "# d\n" + column(D)), quantity="d").wavelength is None and not caplog.records


def test_intensities_that_lines_lack_are_left_out(tmp_path):
    text = "# d intensity\n" + column(D, " 4") + "1.1\n"
    assert peaks.read(write(tmp_path, text)).intensity is None
