"""`mlindex calibrate laue`: what it prints and writes, with which exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from mlindex.formats import lauetools
from mlindex.laue.calibrate import PARAMETERS
from mlindex.laue.geometry import Detector, detector_from_calibration
from mlindex.laue.stage import read_calibration
from tests.cli.test_startup import HEAVY
from tests.laue.frames import DETECTOR, frame_of, write_frame

FAR = Detector(250.0, 979.0, 932.0, 0.37, 0.447)


@pytest.fixture
def frame(tmp_path):
    return write_frame(tmp_path / "ge.cor", frame_of("Ge", seed=1))


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start.det"
    path.write_text("81.5, 960, 950, 0.8, 0.1, 0.0734, 2018, 2016\n")  # 2 mm, 20 px, 0.4 degrees off
    return path


def test_a_new_calibration(frame, start, tmp_path, run):
    """A table with old and new, and a .det that the next command takes: the frame is indexed with it."""
    new = tmp_path / "new.det"
    answer = run("calibrate", "laue", frame, "--material", "Ge", "--detector", start, "-o", new)
    assert answer.code == 0 and answer.err == f"calibration in {new}\n"
    lines = answer.out.splitlines()
    assert re.fullmatch(r"Ge: \d+ of \d+ spots, 1 grain in 1 of 1 frame", lines[0])
    assert [line.split()[0] for line in lines[2:7]] == list(PARAMETERS)
    assert re.match(r"distance +81\.5000 +79\.5[45]\d\(\d\) +-1\.9\d+ +mm", lines[2])
    before, after = (float(v) for v in re.search(r"rms ([\d.]+) -> ([\d.]+) px", answer.out).groups())
    assert before > 5 and 0.15 < after < 0.25 and "wider search" in answer.out
    written = detector_from_calibration(read_calibration(str(new)))
    assert (np.abs(written.parameters - DETECTOR.parameters) < [0.03, 0.6, 0.6, 0.04, 0.04]).all()
    assert written.shape == DETECTOR.shape and lauetools.read_det(new).material == "Ge"
    record = json.loads(run("index", "laue", frame, "--material", "Ge", "--detector", new, "--json").out)
    assert record["grains"][0]["rms_px"] < 0.25


def test_json(frame, tmp_path, run):
    """One object, from the footer of the frame itself; a file of no use is said and the other one serves."""
    (tmp_path / "bad.cor").write_text("")
    answer = run("calibrate", "laue", frame, tmp_path / "bad.cor", "--material", "Ge", "--json")
    assert answer.code == 1 and answer.err.startswith("failed: ") and "bad.cor: is empty" in answer.err
    told = json.loads(answer.out)
    for i, name in enumerate(PARAMETERS):
        assert told["start"][name] == pytest.approx(DETECTOR.parameters[i])
        assert abs(told["detector"][name] - told["start"][name]) < 5 * told["esd"][name]
        assert told["determined"][name] is True and told["correlation"][i][i] == pytest.approx(1)
    assert told["detector"]["shape"] == [2018, 2016] and told["widened"] is False
    assert told["rms_after_px"] == pytest.approx(told["rms_before_px"], rel=0.1)
    (one,) = told["frames"]
    assert one["id"] == "ge" and one["grains"][0]["n_matched"] == told["n_spots"] and told["n_grains"] == 1


def test_a_file_with_spots_beside_the_detector_is_named_and_left_out(frame, tmp_path, run):
    wide = frame_of("Ge", seed=2, detector=Detector(79.553, 979.32, 932.31, 0.37, 0.447, shape=(2600, 2600)))
    other = write_frame(tmp_path / "other.cor", wide, footer=False)
    lines = [line for line in frame.read_text().splitlines(keepends=True) if line.startswith("#")]
    other.write_text(other.read_text() + "".join(lines))  # as the detector of the frame that is right
    answer = run("calibrate", "laue", frame, other, "--material", "Ge")
    assert answer.code == 1 and "1 grain in 1 of 1 frame" in answer.out
    n = int(((wide.x > 2018) | (wide.y > 2020)).sum())
    assert answer.err == (
        f"failed: {other}: {n} of {len(wide.x)} spots lie outside the 2016 x 2018 pixels of the detector; "
        "give the calibration of this detector\n"
    )


def test_what_is_not_determined_is_said(tmp_path, run):
    path = write_frame(tmp_path / "few.cor", frame_of("Cu", seed=4, detector=FAR, spurious=0.0))
    answer = run("calibrate", "laue", path, "--material", "Cu")
    assert answer.code == 0
    assert "not determined by these spots, and held at the start: xcen, ycen; the uncertainties" in answer.out
    assert re.search(r"xcen +979\.00 +979\.00 \(held\) +\+0\.00 +px", answer.out)
    assert "7 spots leave 8 degrees of freedom: the uncertainties are rough" in answer.out
    told = json.loads(run("calibrate", "laue", path, "--material", "Cu", "--json").out)
    assert told["esd"]["xcen"] is None and told["correlation"][1] == [None] * 5 and not told["determined"]["ycen"]


def test_frames_with_different_calibrations_start_from_the_first(frame, tmp_path, run):
    other = frame_of("Ge", seed=2)
    text = write_frame(tmp_path / "other.cor", other).read_text().replace("# dd     :   79.553", "# dd     :   79.6")
    (tmp_path / "other.cor").write_text(text)
    answer = run("calibrate", "laue", frame, tmp_path / "other.cor", "--material", "Ge")
    assert answer.code == 0 and "2 grains in 2 of 2 frames" in answer.out
    assert answer.err == f"the frames come with different calibrations; the start is that of {frame}\n"


def test_one_camera_at_a_time(frame, tmp_path, run):
    other = write_frame(
        tmp_path / "other.cor", frame_of("Ge", detector=Detector(60.0, 1000.0, 1000.0, 0.0, 0.0, pixel=0.1))
    )
    answer = run("calibrate", "laue", frame, other, "--material", "Ge")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert f"{other}: is of another camera than {frame}" in answer.err


def test_bad_usage_is_one_sentence_and_status_2(frame, tmp_path, run):
    empty = tmp_path / "empty.cor"
    empty.write_text("")
    bare = write_frame(tmp_path / "bare.cor", frame_of("Ge", seed=1), footer=False)
    noise = frame_of("Ge", seed=1, dropped=0.9, spurious=0.0)
    for arguments, says in (
        ([frame, "--material", "Ge", "-o", "/nowhere/new.det"], "/nowhere/new.det: cannot be written"),
        ([frame, "--material", "Gee"], "unknown material 'Gee'"),
        ([empty, "--material", "Ge"], "there is no frame to calibrate on"),
        (
            [frame, "--material", "Ge", "--energy", "1,2"],
            "mlindex: Ge has no reflection between 1 and 2 keV on this detector; check the energy band and the cell",
        ),
        ([bare, "--material", "Ge"], "there is no frame to calibrate on"),
        ([write_frame(tmp_path / "few.cor", noise), "--material", "Ge"], "no crystal of Ge explains the spots"),
    ):
        answer = run("calibrate", "laue", *arguments)
        assert answer.code == 2 and answer.out == ""
        assert says in answer.err.splitlines()[-1] and answer.err.splitlines()[-1].startswith("mlindex: ")


def test_help_imports_nothing_heavy():
    program = (
        "import sys, json\nfrom mlindex.cli.main import main\n"
        "try:\n    main(['calibrate', 'laue', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(answer.stderr)) and "--material" in answer.stdout
