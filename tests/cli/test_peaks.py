"""`mlindex peaks` in this process: tables, JSON, lists that `index powder` reads, a sentence for what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlindex.cli.peaks import lines_of_cell
from mlindex.config import PowderSettings, read_campaign
from mlindex.formats import peaks
from mlindex.powder.stage import PowderStage
from mlindex.records import InputError
from tests.formats.test_crystfel import stream_of
from tests.formats.test_spots import write_cxi
from tests.powder.pattern.scans import lines_of, scan
from tests.powder.patterns import CELLS, q2_from_tth, reflections
from tests.powder.stills import serial
from tests.powder.stills.test_lines import GEOM, images

FLAT = ("--distance", serial.DISTANCE * 1e3, "--beam", "1000,1010", "--pixel", 75, "--wavelength", serial.WAVELENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scans, a CXI and a stream of the same spots, a geometry, and a file that is none of these."""
    path = tmp_path_factory.mktemp("peaks")
    tth, area = lines_of("tP")
    for name, seed in (("one", 1), ("two", 2)):
        x, y = scan(tth, area, doublet=True, seed=seed)
        (path / f"{name}.xy").write_text("".join(f"{a:.2f} {b:.0f}\n" for a, b in zip(x, y, strict=True)))
    place, _ = serial.spots_of("tP", 6000)
    write_cxi(path / "run.cxi", images(place))
    radius = np.hypot(*((place - np.array(serial.CENTRE)) * serial.PIXEL).T)
    q = 2 * np.sin(np.arctan(radius / serial.DISTANCE) / 2) / serial.WAVELENGTH
    rows = [(x, y, v, 5.0, "p") for (x, y), v in zip(place, q, strict=True)]
    (path / "run.stream").write_text(stream_of([rows], GEOM))
    (path / "d.geom").write_text(GEOM)
    (path / "words.txt").write_text("these are words\nand no numbers\n")
    return path


def test_patterns(run, folder, tmp_path):
    answer = run(
        "peaks", folder / "one.xy", folder / "words.txt", folder / "two.xy", "--anode", "Cu", "-o", tmp_path / "l"
    )
    assert answer.code == 1
    assert "one" in answer.out and "2θ" in answer.out and "words" in answer.err and "not numbers" in answer.err
    tth, area = lines_of("tP")
    for name in ("one", "two"):
        found = peaks.read(tmp_path / "l" / f"{name}.txt")
        assert found.wavelength == pytest.approx(1.5405929)
        strong = q2_from_tth(tth[area > 1000])
        assert np.abs(found.q2[None, :] - strong[:, None]).min(axis=1).max() < 1e-3
    (item,) = PowderStage(PowderSettings()).read(str(tmp_path / "l" / "one.txt"))
    assert len(item.arrays["q2"]) == len(peaks.read(tmp_path / "l" / "one.txt").q2)


def test_json_one_object_a_list(run, folder):
    answer = run("peaks", "--json", folder / "one.xy", folder / "words.txt", "--wavelength", "CuKa")
    one, words = (json.loads(line) for line in answer.out.splitlines())
    assert answer.code == 1
    assert one["status"] == "found" and one["kind"] == "pattern" and one["radiation"].startswith("Cu")
    assert set(one["lines"][0]) >= {"two_theta", "q2", "q2_esd", "d", "intensity", "fwhm_2theta", "significance"}
    assert words["status"] == "failed" and "not numbers" in words["reason"]


def test_all_stills_give_one_list_or_one_each(run, folder, tmp_path):
    both = (folder / "run.cxi", folder / "run.stream", "--geometry", folder / "d.geom", "--json", "-o", tmp_path)
    answer = run("peaks", *both)
    assert answer.code == 0, answer.err
    (record,) = map(json.loads, answer.out.splitlines())
    assert record["id"] == "stills" and len(record["sources"]) == 2 and record["spots"] == 2 * 7200
    assert len(peaks.read(tmp_path / "stills.txt").q2) == len(record["lines"])
    apart = [json.loads(line) for line in run("peaks", *both, "--each").out.splitlines()]
    assert len(apart) == 2 and {r["spots"] for r in apart} == {7200}
    table = run("peaks", folder / "run.cxi", *FLAT, "--cell", "P 4/m m m:7.421,7.421,9.836,90,90,90")
    assert table.code == 0 and "7200 spots" in table.out and "lines on those of the cell" in table.out


def test_the_stage_takes_a_stream_with_its_geometry(folder):
    (item,) = PowderStage(PowderSettings()).read(str(folder / "run.stream"))
    assert item.attrs["wavelength"] is None and len(item.arrays["q2"]) > 10
    with pytest.raises(InputError, match="--geometry"):
        PowderStage(PowderSettings()).read(str(folder / "run.cxi"))


def test_a_campaign_names_the_geometry_of_its_stills(run, folder):
    text = '[campaign]\nstage = "powder"\ninputs = ["run.cxi"]\noutput = "o"\n[powder]\ngeometry = "{}"\n'
    (folder / "campaign.toml").write_text(text.format("d.geom"))
    stage = PowderStage(read_campaign(folder / "campaign.toml").powder)
    (by_geometry,) = stage.read(str(folder / "run.cxi"))
    (of_stream,) = PowderStage(PowderSettings()).read(str(folder / "run.stream"))
    np.testing.assert_allclose(by_geometry.arrays["q2"], of_stream.arrays["q2"], rtol=1e-3)
    answer = run("index", "powder", folder / "run.cxi", "--geometry", folder / "d.geom", "--json")
    (solution, *_) = json.loads(answer.out)["solutions"]
    assert answer.code == 0 and solution["bravais"] == "tP"
    np.testing.assert_allclose(solution["cell"], CELLS["tP"][0], rtol=2e-3)
    (folder / "campaign.toml").write_text(text.format("none.geom"))
    with pytest.raises(InputError, match=r"none.geom: cannot be read"):
        PowderStage(read_campaign(folder / "campaign.toml").powder)


def test_index_powder_names_an_option_that_it_has(run, folder):
    answer = run("index", "powder", folder / "one.xy")
    assert answer.code == 1 and "--wavelength" in answer.err and "--anode" not in answer.err


def test_lines_of_a_cell():
    cell, group = CELLS["tI"]
    true = np.unique(np.sqrt(reflections(cell, group, 0.25)[1]).round(8))
    text = group + ":" + ",".join(map(str, cell))
    np.testing.assert_allclose(lines_of_cell(text, 0.5), true, atol=1e-7)
    assert len(lines_of_cell(",".join(map(str, cell)), 0.5)) > len(true)
    silicon = lines_of_cell("F d -3 m:5.4310", 0.65)
    np.testing.assert_allclose(silicon[:3], np.sqrt(np.array([3, 8, 11])) / 5.431)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--anode", "Zn"), "--anode"),
        (("--wavelength", "blue"), "--wavelength"),
        (("--anode", "Cu", "--wavelength", "1.54"), "give one of them"),
        (("--distance", "100"), "belong together"),
        (("--distance", "100", "--beam", "x", "--pixel", "75"), "--beam"),
        (("--weight", "all"), "--weight"),
        (("--cell", "1,2,3"), "--cell"),
        (("--refine-distance",), "--cell"),
        (("--geometry", "none.geom"), r"none.geom"),
    ],
)
def test_bad_usage(run, folder, arguments, what):
    answer = run("peaks", folder / "one.xy", *arguments)
    assert answer.code == 2 and what in answer.err and answer.out == ""
    assert answer.err.count("\n") == 1


def test_an_output_that_is_no_folder(run, folder):
    answer = run("peaks", folder / "one.xy", "--anode", "Cu", "-o", folder / "words.txt")
    assert answer.code == 2 and "no folder" in answer.err
