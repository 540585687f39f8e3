"""A scan from end to end: simulated, indexed in a campaign, mapped, exported; and what cannot be done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from orix.plot import IPFColorKeyTSL
from orix.quaternion import Orientation, Rotation
from orix.quaternion.symmetry import Oh
from orix.vector import Vector3d
from scipy.linalg import polar

from mlindex.cli.main import main
from mlindex.cli.maps import report_sections, shape_from_text, step_from_text
from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import u_from_ub
from mlindex.laue.geometry import sample_from_lab
from mlindex.laue.materials import material
from mlindex.records import InputError, Item, Schema, failed
from mlindex.runtime import device
from mlindex.runtime.shards import Entry, Shard
from tests.cli.conftest import Answer

ROWS, COLUMNS, STEP = 4, 5, (2.0, 1.5)
COPPER = material("Cu")


def call(capsys, *arguments: object) -> Answer:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return Answer(int(ended.value.code or 0), said.out, said.err)


@pytest.fixture
def run(monkeypatch, capsys):
    """run("map", ...) -> exit status, standard output, standard error."""
    monkeypatch.setattr(device, "apply", lambda *a: None)
    return lambda *arguments: call(capsys, *arguments)


def simulate(folder: Path, seed: int = 5) -> list[str]:
    return [
        *("simulate", "laue", "--material", "Cu", "--scan", f"{ROWS},{COLUMNS}", "--step", f"{STEP[0]},{STEP[1]}"),
        *("--strain", "1e-3", "--seed", str(seed), "-o", str(folder)),
    ]


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> tuple[Path, dict]:
    """A scan of copper, 4 x 5, of which the eighth frame cannot be read; indexed, and its truth."""
    folder = tmp_path_factory.mktemp("scan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "apply", lambda *a: None)
        with pytest.raises(SystemExit) as ended:
            main(simulate(folder))
        assert not ended.value.code
        (folder / "frame_0007.cor").write_text("nothing\n")
        laue = f'materials = ["Cu"]\nscan = [{ROWS}, {COLUMNS}]\nstep = [{STEP[0]}, {STEP[1]}]\n'
        (folder / "c.toml").write_text(f'[campaign]\ninputs = ["*.cor"]\nstage = "laue"\n[laue]\n{laue}')
        with pytest.raises(SystemExit) as ended:
            main(["run", str(folder / "c.toml")])
        assert ended.value.code == 1, "one frame failed"
    return folder, json.loads((folder / "truth.json").read_text())


@pytest.fixture
def mapped(scan, run) -> Path:
    folder = scan[0] / "maps"
    if not folder.exists():
        answer = run("map", scan[0] / "run", "-o", folder, "--grains", "1")
        assert answer.code == 0, answer.err
        assert f"grains in 19 of 20 frames: {folder / 'maps.h5'} and " in answer.out and not answer.err
    return folder


def true_grain(truth: dict) -> np.ndarray:
    """The number of each frame's grain in the polycrystal; -1 for the frame that is spoiled."""
    number = np.array([frame["grains"][0]["grain"] for frame in truth["frames"]])
    number[7] = -1
    return number.reshape(ROWS, COLUMNS)


def true_orientations(truth: dict) -> np.ndarray:
    """The rotations (n, 3, 3) of the strained crystals, by SciPy."""
    return np.array([polar(np.array(f["grains"][0]["ub"]) @ np.linalg.inv(COPPER.b))[0] for f in truth["frames"]])


def test_the_truth_of_a_scan(scan):
    truth = scan[1]
    assert truth["scan"] == [ROWS, COLUMNS] and truth["step"] == list(STEP) and len(truth["frames"]) == 20
    assert [(f["row"], f["column"]) for f in truth["frames"][4:6]] == [(0, 4), (1, 0)]
    assert len(np.unique(true_grain(truth))) > 2


def test_every_pixel_is_in_the_right_grain(scan, mapped):
    """Two frames are of one grain of the map where they are of one of the sample; the sample's grains are convex."""
    with h5py.File(mapped / "maps.h5") as file:
        grain, state = file["maps/data/grain"][:], file["maps/data/state"][:]
        assert file["maps/data/x"][:].tolist() == [1.5 * k for k in range(5)]
        assert (file["maps/data/n_grains"][:].ravel() == [*[1] * 7, 0, *[1] * 12]).all()
    expected = true_grain(scan[1])
    assert state[1, 2] == 1 and (state.ravel() == 3).sum() == 19 and grain[1, 2] == 0
    pairs = np.unique(np.stack([grain.ravel(), expected.ravel()], 1), axis=0)
    assert len(pairs) == len(np.unique(grain)) == len(np.unique(expected))


def test_orientations_and_colours_are_true(scan, mapped):
    """Against the truth, and orix' colours of it: Euler angles are read from nothing of ours."""
    to_sample = sample_from_lab(40.0)
    u = true_orientations(scan[1])
    with h5py.File(mapped / "maps.h5") as file:
        data = {name: file[f"maps/data/{name}"][:] for name in ("orientation", "ipf_x", "ipf_y", "ipf_z")}
    seen = np.arange(20) != 7
    found = data["orientation"].reshape(-1, 3, 3)
    assert misorientation(found[seen], (to_sample @ u)[seen], COPPER.rotations).max() < 0.02
    truth = Orientation.from_matrix(np.swapaxes(to_sample @ u, 1, 2), symmetry=Oh)
    for axis, direction in (("x", (1, 0, 0)), ("y", (0, 1, 0)), ("z", (0, 0, 1))):
        expected = IPFColorKeyTSL(Oh, direction=Vector3d(direction)).orientation2color(truth)
        np.testing.assert_allclose(data[f"ipf_{axis}"].reshape(-1, 3)[seen], expected[seen], atol=0.01)


def test_strains_are_true(scan, mapped):
    """In the sample: every vector of the true lattice is that of the unstrained one, moved by 1 + e."""
    to_sample = sample_from_lab(40.0)
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    with h5py.File(mapped / "maps.h5") as file:
        found = np.stack([file[f"maps/data/strain_sample_{c}"][:].ravel() for c in names], -1)
        esd = np.stack([file[f"maps/data/strain_sample_{c}_esd"][:].ravel() for c in names], -1)
        size = file["maps/data/equivalent_strain"][:].ravel()
    seen = np.arange(20) != 7
    expected = []
    for frame in scan[1]["frames"]:
        ub = np.array(frame["grains"][0]["ub"])
        gradient = np.linalg.inv(ub).T @ np.linalg.inv(np.linalg.inv(u_from_ub(ub) @ COPPER.b).T)
        strain = (gradient + gradient.T) / 2 - np.eye(3)
        strain = to_sample @ (strain - np.eye(3) * np.trace(strain) / 3) @ to_sample.T
        expected.append([strain[0, 0], strain[1, 1], strain[2, 2], strain[1, 2], strain[0, 2], strain[0, 1]])
    error = (found - np.array(expected))[seen]
    assert np.median(np.abs(error)) < 2e-4 and np.median(np.abs(np.array(expected))) > 4e-4
    assert 0.6 < np.std(error / esd[seen]) < 1.5, "the uncertainties are what the errors say"
    assert np.nanmax(size) < 6e-3 and np.isnan(size[7])


def test_pictures_of_the_maps(mapped):
    names = {path.name for path in mapped.iterdir()}
    assert {"maps.h5", "map-grains.png", "map-ipf.png", "map-quality.png", "grain-0001.png"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in mapped.glob("*.png"))


def test_a_ctf_has_the_coordinates_of_the_scan(scan, run):
    """Read by hand, with orix' Bunge angles; the frame that failed is a point that is not indexed."""
    folder, truth = scan
    answer = run("export", folder / "run", "--to", "ctf", "-o", folder / "map.ctf")
    assert answer.code == 0 and answer.out == f"{folder / 'map.ctf'}\n"
    lines = (folder / "map.ctf").read_text().splitlines()
    assert {"XCells\t5", "YCells\t4", "XStep\t1.5", "YStep\t2"} <= set(lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("Phase\t"))
    rows = np.array([[float(v) for v in line.split("\t")] for line in lines[at + 1 :]])
    assert len(rows) == 20 and rows[7, 0] == 0 and (np.delete(rows[:, 0], 7) == 1).all()
    np.testing.assert_array_equal(rows[:, 1:3], [(1.5 * (k % 5), 2.0 * (k // 5)) for k in range(20)])
    turned = Rotation.from_euler(rows[:, 5:8], degrees=True).to_matrix()  # from the sample to the crystal
    u = true_orientations(truth)
    angle = misorientation(np.swapaxes(turned, 1, 2), sample_from_lab(40.0) @ u, COPPER.rotations)
    assert np.delete(angle, 7).max() < 0.02


def test_options_come_before_the_settings(scan, run, tmp_path):
    answer = run("map", scan[0] / "run", "-o", tmp_path, "--scan", "5,4", "--tilt", "0", "--grains", "0")
    assert answer.code == 0, answer.err
    with h5py.File(tmp_path / "maps.h5") as file:
        assert file["maps/data/grain"].shape == (5, 4) and file["maps/tilt"][()] == 0
        assert file["maps/data/grain"][1, 3] == 0, "the frame that failed is the eighth"
    assert not list(tmp_path.glob("grain-*.png"))


def test_shards_of_a_run_that_is_not_at_its_end(scan, run, tmp_path):
    """Without a master file: a shard that cannot be read is named, one of rank 0 holds a failed frame and no table."""
    shutil.copytree(scan[0] / "run" / "shards", tmp_path / "run" / "shards")
    (tmp_path / "run" / "shards" / "bad.h5").write_text("nothing")
    shard = Shard(tmp_path / "run" / "shards", "job-r0000", "laue", Schema({}), {})
    shard.commit([Entry(failed(Item("late", "late.cor"), "killed two workers"), 22, 0, 1)])
    shard.close()
    answer = run("map", tmp_path / "run", "-o", tmp_path / "maps", "--scan", "4,6", "--grains", "0")
    assert answer.code == 1 and answer.err.startswith("problem: ") and "bad.h5" in answer.err
    with h5py.File(tmp_path / "maps" / "maps.h5") as file:
        state = file["maps/data/state"][:].ravel()
    assert state.tolist() == [*[3] * 7, 1, *[3] * 12, 0, 0, 1, 0]
    for path in (tmp_path / "run" / "shards").glob("*.h5"):
        if not path.name.startswith("job-"):
            path.unlink()
    answer = run("map", tmp_path / "run", "-o", tmp_path / "maps")
    assert answer.code == 2 and "no frame has a result yet; run the campaign first" in answer.err


def test_a_shard_that_is_gone_is_named_and_the_status_is_1(scan, run, tmp_path):
    shutil.copytree(scan[0] / "run", tmp_path / "run")
    (journal,) = (tmp_path / "run" / "journal").glob("*-r0000.jsonl")
    with journal.open("a") as file:
        file.write('{"event": "commit", "shard": "gone-000.h5"}\n')
    answer = run("map", tmp_path / "run", "-o", tmp_path / "maps", "--grains", "0")
    assert answer.code == 1 and "gone-000.h5: is gone, and its items with it; resume the run" in answer.err
    assert "grains in 19 of 20 frames" in answer.out


def test_sections_for_the_report(scan, tmp_path):
    problems: list[str] = []
    (section,) = report_sections(scan[0] / "run", problems)
    assert section.title == "Maps" and not problems
    (tmp_path / "bad.h5").write_text("")
    assert report_sections(tmp_path / "bad.h5", problems) == []
    assert problems[0].startswith("no maps: ") and "bad.h5" in problems[0]


def test_a_results_file_of_single_frames_is_a_scan_where_it_is_said(scan, run, tmp_path):
    """`index laue -o` keeps the order of its files, the one that failed included."""
    files = [scan[0] / f"frame_{k:04d}.cor" for k in (5, 6, 7, 8)]
    results = tmp_path / "r.h5"
    assert run("index", "laue", "--json", "--material", "Cu", *files, "-o", results).code == 1
    answer = run("map", results, "-o", tmp_path / "maps")
    assert answer.code == 2 and "its settings do not tell of a scan; give its rows and columns" in answer.err
    assert report_sections(results, []) == []
    answer = run("map", results, "-o", tmp_path / "maps", "--scan", "2,2", "--step", "3", "--grains", "0")
    assert answer.code == 0, answer.err
    with h5py.File(tmp_path / "maps" / "maps.h5") as file:
        assert file["maps/data/state"][:].tolist() == [[3, 3], [1, 3]] and file["maps/data/y"][1] == 3
    answer = run("map", results, "-o", tmp_path / "maps", "--scan", "1,3")
    assert answer.code == 2 and "has 4 frames, and a scan of 1 x 3 has room for 3" in answer.err


def test_a_seed_makes_the_same_scan_again(scan, run, tmp_path):
    assert run(*simulate(tmp_path / "again")).code == 0
    assert (tmp_path / "again" / "truth.json").read_text() == (scan[0] / "truth.json").read_text()
    name = "frame_0011.cor"
    assert (tmp_path / "again" / name).read_text() == (scan[0] / name).read_text()
    assert run(*simulate(tmp_path / "other", seed=6)).code == 0
    assert (tmp_path / "other" / name).read_text() != (scan[0] / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "-o", "maps"], "nowhere: there is no such run or results file"),
        (["RUN", "-o", "maps", "--scan", "4"], "--scan 4: is no scan; give its rows and columns, as 20,30"),
        (["RUN", "-o", "maps", "--scan", "4,0"], "--scan 4,0: is no scan"),
        (["RUN", "-o", "maps", "--step", "1,-1"], "--step 1,-1: is no step"),
        (["RUN", "-o", "maps", "--scan", "4,4"], "has 20 frames, and a scan of 4 x 4 has room for 16"),
        (["RUN", "-o", "maps", "--tilt", "nan"], "--tilt nan: is no angle; give it in degrees"),
        (["RUN", "-o", "maps", "--limit", "inf"], "--limit inf: is no angle"),
        (["RUN", "-o", "c.toml/maps"], "c.toml/maps: cannot be written to"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(scan, run, monkeypatch, arguments, says):
    monkeypatch.chdir(scan[0])
    answer = run("map", *(str(scan[0] / "run") if a == "RUN" else a for a in arguments))
    assert answer.code == 2 and answer.out == ""
    assert says in answer.err and answer.err.count("\n") == 1 and answer.err.startswith("mlindex: ")


def test_a_scan_of_no_grains(run, tmp_path):
    answer = run("simulate", "laue", "--material", "Cu", "--scan", "2,2", "--grains", "0", "-o", tmp_path)
    assert answer.code == 2 and "--grains 0: a scan has one grain a frame at least" in answer.err


def test_a_scan_has_as_many_frames_as_it_has_places(run, tmp_path):
    answer = run("simulate", "laue", "--material", "Cu", "--scan", "1,2", "--frames", "5", "-o", tmp_path / "sim")
    assert answer.code == 2 and "--scan says how many frames there are; leave out --frames" in answer.err
    assert not (tmp_path / "sim").exists()


def test_texts_of_options():
    assert shape_from_text("20x30") == (20, 30) and step_from_text("0.5") == (0.5, 0.5)
    with pytest.raises(InputError, match="--step inf"):
        step_from_text("inf")


def test_the_report_has_the_maps(scan, run, tmp_path):
    answer = run("report", scan[0] / "run", "-o", tmp_path / "page.html")
    assert answer.code == 0, answer.err
    page = (tmp_path / "page.html").read_text()
    assert 'id="maps-section"' in page and 'id="map-ipf"' in page and "grains</b> in a scan of 4 × 5 frames" in page
    assert (tmp_path / "page" / "map-strain-sample.png").read_bytes().startswith(b"\x89PNG")
