"""From files of spots to one list: the lines of the cell, and the sentences about the geometry."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from mlindex.formats.crystfel import flat_geometry, geometry_from_text
from mlindex.powder.stills.lines import StillsOptions, lines_of_stills, usable_spots
from mlindex.records import InputError
from tests.formats.test_crystfel import stream_of
from tests.formats.test_spots import write_cxi
from tests.powder.stills import serial

FLAT = flat_geometry(serial.DISTANCE, serial.CENTRE, serial.PIXEL, serial.WAVELENGTH)
GEOM = f"""clen = {serial.DISTANCE}
res = {1 / serial.PIXEL}
wavelength = {serial.WAVELENGTH} A
p/min_fs = 0
p/max_fs = 1999
p/min_ss = 0
p/max_ss = 1999
p/fs = x
p/ss = y
p/corner_x = {-serial.CENTRE[0]}
p/corner_y = {-serial.CENTRE[1]}
"""


def images(place, size=40):
    return [[(x - 0.5, y - 0.5, 100.0) for x, y in place[i : i + size]] for i in range(0, len(place), size)]


def found_in(path, **options):
    chosen = StillsOptions(**{"geometry": FLAT, **options})
    return lines_of_stills([usable_spots(path, chosen)], "x", chosen)


def assert_lines(found, lines, tolerance=5.0):
    q, esd = np.sqrt(found.q2), found.q2_esd / (2 * np.sqrt(found.q2))
    lone = serial.clear(lines, float(np.median(found.width)))
    at = np.abs(q[None, :] - lone[:, None]).argmin(axis=1)
    assert np.mean(np.abs(q[at] - lone) < tolerance * esd[at]) > 0.9


def test_cxi(tmp_path):
    place, lines = serial.spots_of("tP", 6000)
    found = found_in(write_cxi(tmp_path / "a.cxi", images(place)))
    assert found.kind == "stills" and found.beside["stills"] == 180 and found.beside["spots"] == len(place)
    assert_lines(found, lines)
    assert found.beside["beam_centre"][0]["applied"] is False
    assert any("--cell" in note for note in found.notes) and not any("centre" in note for note in found.notes)
    assert found.peak_list().wavelength is None


def test_the_centre_is_said_and_corrected(tmp_path):
    place, lines = serial.spots_of("tP", 8000, off=(1.8, -2.4))
    path = write_cxi(tmp_path / "a.cxi", images(place))
    said = found_in(path)
    assert any("(+1.8" in note and "--refine-centre" in note and "\n" not in note for note in said.notes)
    corrected = found_in(path, refine_centre=True)
    assert any(note.endswith("corrected") for note in corrected.notes)
    assert_lines(corrected, lines)
    assert np.median(corrected.width) < 0.8 * np.median(said.width)


def test_the_distance_is_said_and_corrected(tmp_path):
    place, lines = serial.spots_of("tP", 8000)
    path = write_cxi(tmp_path / "a.cxi", images(place))
    wrong = flat_geometry(serial.DISTANCE / 1.01, serial.CENTRE, serial.PIXEL, serial.WAVELENGTH)
    said = found_in(path, geometry=wrong, known=lines)
    assert said.beside["distance"]["factor"] == pytest.approx(1.01, abs=5e-4)
    assert any("--refine-distance" in note for note in said.notes)
    assert_lines(found_in(path, geometry=wrong, known=lines, refine_distance=True), lines, tolerance=8.0)


def test_a_stream_by_its_geometry_and_files_together(tmp_path, caplog):
    place, lines = serial.spots_of("tP", 6000)
    geometry = geometry_from_text(GEOM, "text")
    q = serial.lines_of("tP", 0.33)[0]
    radius = np.hypot(*((place - np.array(serial.CENTRE)) * serial.PIXEL).T)
    q = 2 * np.sin(np.arctan(radius / serial.DISTANCE) / 2) / serial.WAVELENGTH
    rows = [(x, y, v, 5.0, "p") for (x, y), v in zip(place, q, strict=True)]
    half = len(rows) // 2
    for name, part in (("a", rows[:half]), ("b", rows[half:])):
        pieces = [part[i : i + 50] for i in range(0, len(part), 50)]
        (tmp_path / f"{name}.stream").write_text(stream_of(pieces, GEOM))
    options = StillsOptions()
    spots = [usable_spots(tmp_path / f"{n}.stream", options) for n in "ab"]
    assert spots[0].geometry == geometry
    found = lines_of_stills(spots, "both", options)
    assert len(found.sources) == 2 and found.beside["spots"] == len(place)
    assert len(found.beside["beam_centre"]) == 1, "files with one geometry are checked together"
    assert_lines(found, lines)
    assert not caplog.records


def test_a_stream_whose_geometry_is_not_its_own(tmp_path, caplog):
    place, lines = serial.spots_of("cI", 6000)
    radius = np.hypot(*((place - np.array(serial.CENTRE)) * serial.PIXEL).T)
    q = 2 * np.sin(np.arctan(radius / serial.DISTANCE) / 2) / serial.WAVELENGTH
    rows = [(x, y, v, 5.0, "p") for (x, y), v in zip(place, q, strict=True)]
    wrong = GEOM.replace(f"clen = {serial.DISTANCE}", "clen = 0.3")
    (tmp_path / "a.stream").write_text(stream_of([rows], wrong))
    with caplog.at_level(logging.WARNING):
        found = found_in(tmp_path / "a.stream", geometry=None)
    assert "the column of 1/d is used" in caplog.text
    assert any("not checked" in note for note in found.notes)
    assert np.abs(np.sqrt(found.q2)[:, None] - lines).min(axis=1).max() < 6e-4


def test_by_intensity(tmp_path):
    place, lines = serial.spots_of("tP", 6000)
    found = found_in(write_cxi(tmp_path / "a.cxi", images(place)), by_intensity=True)
    assert_lines(found, lines)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"geometry": None}, "give --geometry"),
        ({"geometry": flat_geometry(0.1, (0.0, 0.0), 1e-4)}, "give --wavelength"),
        ({"geometry": geometry_from_text(GEOM.replace(f"clen = {serial.DISTANCE}", "clen = /a"), "t")}, "--distance"),
        ({"geometry": geometry_from_text(GEOM.replace("p/max_fs = 1999", "p/max_fs = 1"), "t")}, "no spot lies"),
    ],
)
def test_what_is_missing_is_said(tmp_path, options, what):
    place, _ = serial.spots_of("tP", 400)
    path = write_cxi(tmp_path / "a.cxi", images(place))
    with pytest.raises(InputError, match=what) as caught:
        found_in(path, **options)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_spots_without_intensities_cannot_be_weighed(tmp_path):
    place, _ = serial.spots_of("tP", 400)
    with_ = write_cxi(tmp_path / "a.cxi", images(place))
    none = write_cxi(tmp_path / "b.cxi", [[(x, y, 0.0) for x, y, _ in image] for image in images(place)])
    options = StillsOptions(geometry=FLAT, by_intensity=True)
    for files in ([none], [with_, none]):
        with pytest.raises(InputError, match=r"b\.cxi: its spots have no intensities .* --weight one"):
            lines_of_stills([usable_spots(path, options) for path in files], "x", options)


def test_too_few_spots(tmp_path):
    place, _ = serial.spots_of("tP", 100)
    with pytest.raises(InputError, match="too few"):
        found_in(write_cxi(tmp_path / "a.cxi", images(place)))
