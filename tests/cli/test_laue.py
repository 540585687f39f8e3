"""`mlindex simulate laue`, `index laue`, `export` and `report` of it: what goes where, with which exit status."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest

import mlindex
from mlindex.crystal.rotation import misorientation
from mlindex.crystal.strain import u_from_ub
from mlindex.formats import lauetools
from mlindex.laue import stage as laue
from mlindex.laue.materials import material
from mlindex.runtime.shards import read_results
from tests.cli.test_startup import HEAVY

SLURM = Path(mlindex.__file__).parents[1] / "slurm"


@pytest.fixture
def frames(run, tmp_path) -> Path:
    """Two frames of one grain of copper and one of silicon."""
    options = ("--material", "Cu", "--material", "Si", "--grains", "2", "--frames", "2", "--seed", "3")
    answer = run("simulate", "laue", *options, "-o", tmp_path / "sim")
    assert answer.code == 0 and answer.out == f"2 frames and truth.json in {tmp_path / 'sim'}\n" and not answer.err
    return tmp_path / "sim"


@pytest.mark.parametrize("option", ["noise", "dropped", "spurious", "strain"])
@pytest.mark.parametrize("value", ["inf", "nan", "-0.1"])
def test_numbers_that_no_frame_can_have_are_refused(run, tmp_path, option, value):
    answer = run("simulate", "laue", "--material", "Cu", f"--{option}={value}", "-o", tmp_path / "sim")
    assert answer.code == 2 and f"--{option}" in answer.err and not (tmp_path / "sim").exists()


def test_simulated_frames_are_those_of_the_truth(frames, run):
    truth = json.loads((frames / "truth.json").read_text())
    assert sorted(p.name for p in frames.iterdir()) == ["frame_0000.cor", "frame_0001.cor", "truth.json"]
    for told in truth["frames"]:
        read = lauetools.read_cor(frames / f"{told['id']}.cor")
        assert len(read.x) == len(told["spots"]) and [g["material"] for g in told["grains"]] == ["Cu", "Si"]
        mine = np.array([s["grain"] >= 0 for s in told["spots"]])
        away = np.hypot(*(getattr(read, k) - [s[k] for s in told["spots"]] for k in "xy"))
        assert np.sqrt(np.mean(away[mine] ** 2) / 2) == pytest.approx(0.2, rel=0.25) and away[~mine].max() < 1e-3
    again = frames.parent / "again"
    run(
        "simulate",
        "laue",
        "--material",
        "Cu",
        "--material",
        "Si",
        "--grains",
        "2",
        "--frames",
        "1",
        "--seed",
        "3",
        "-o",
        again,
    )
    assert (again / "frame_0000.cor").read_bytes() == (frames / "frame_0000.cor").read_bytes()


def test_simulated_image(run, tmp_path):
    small = tmp_path / "small.det"
    small.write_text("30.0, 130.0, 120.0, 0.37, 0.447, 0.2, 256, 260\n")
    options = ("--detector", small, "--image", "--noise", "0", "--spurious", "0", "--strain", "0.001")
    assert run("simulate", "laue", "--material", "Cu", *options, "-o", tmp_path / "sim").code == 0
    image = fabio.open(str(tmp_path / "sim" / "frame_0000.tif")).data
    read = lauetools.read_cor(tmp_path / "sim" / "frame_0000.cor")
    assert image.shape == (256, 260) == read.calibration.shape and image.dtype == np.uint16
    j, i = round(read.x[0]) - 1, round(read.y[0]) - 1
    assert image[i - 1 : i + 2, j - 1 : j + 2].max() == image.max() > 10_000
    (grain,) = json.loads((tmp_path / "sim" / "truth.json").read_text())["frames"][0]["grains"]
    assert 1e-4 < np.linalg.norm(grain["strain"]) < 1e-2 and np.trace(grain["strain"]) == pytest.approx(0, abs=1e-12)


def test_index_finds_both_grains(frames, run):
    """The real search: a table, JSON, HDF5, a campaign and all exports of what is found."""
    files = (frames / "frame_0000.cor", frames / "frame_0001.cor")
    results = frames.parent / "results.h5"
    wanted = ("--material", "Cu", "--material", "Si")
    answer = run("index", "laue", "--json", "-o", results, *wanted, *files)
    assert answer.code == 0, answer.err
    truth = json.loads((frames / "truth.json").read_text())["frames"]
    records = [json.loads(line) for line in answer.out.splitlines()]
    for record, told in zip(records, truth, strict=True):
        assert record["id"] == told["id"] and record["status"] == "solved"
        assert sorted(g["material"] for g in record["grains"]) == ["Cu", "Si"]
        for grain in told["grains"]:
            (found,) = (g for g in record["grains"] if g["material"] == grain["material"])
            crystal = material(grain["material"])
            assert misorientation(np.array(found["u"]), np.array(grain["u"]), crystal.rotations) < 0.02
    assert f"results in {results}" in answer.err and "2 frames: 2 solved; 4 grains" in answer.err

    exported = run("export", results, "--to", "json")
    assert [json.loads(line)["grains"] for line in exported.out.splitlines()] == [r["grains"] for r in records]
    rows = list(csv.DictReader(io.StringIO(run("export", results, "--to", "csv").out)))
    assert [(r["id"], r["grain"]) for r in rows] == [(r["id"], str(k)) for r in records for k in range(2)]
    assert float(rows[0]["ub_23"]) == pytest.approx(records[0]["grains"][0]["ub"][1][2])

    (frames / "c.toml").write_text('[campaign]\ninputs = ["*.cor"]\nstage = "laue"\n[laue]\nmaterials = ["Cu", "Si"]\n')
    ran = run("run", frames / "c.toml")
    assert ran.code == 0 and "2 of 2 done (2 solved, 0 unsolved, 0 failed)" in ran.out, ran.err
    again = read_results(frames / "run" / "results.h5")
    for one, record in zip(again, records, strict=True):
        np.testing.assert_allclose(one.tables["grains"]["ub"], [g["ub"] for g in record["grains"]], atol=1e-9)


@pytest.fixture
def nothing(monkeypatch):
    """A search that finds no grain, at no cost."""
    monkeypatch.setattr(laue, "index_frame", lambda *a, **k: [])


def test_the_demo_campaign(run, tmp_path):
    """The frames that are shipped, as they are shipped: one grain of germanium in each, as Lauetools found."""
    shutil.copytree(SLURM / "demo_laue", tmp_path / "demo_laue", ignore=shutil.ignore_patterns("run"))
    shutil.copy(SLURM / "demo_laue.toml", tmp_path)
    assert "2 of 2 done (2 solved, 0 unsolved, 0 failed)" in run("run", tmp_path / "demo_laue.toml").out
    first, second = read_results(tmp_path / "demo_laue" / "run" / "results.h5")
    germanium = material("Ge")
    # Lauetools 3.2.19 finds this one in the second frame, from the same spots
    known = np.array([[0.57652, -0.49558, -0.64975], [0.65961, 0.75144, 0.01203], [0.48238, -0.43541, 0.76008]])
    assert len(first.tables["grains"]["u"]) == len(second.tables["grains"]["u"]) == 1
    assert misorientation(second.tables["grains"]["u"][0], u_from_ub(known @ germanium.b), germanium.rotations) < 0.02
    assert first.tables["frames"]["n_indexed"] >= 95 and second.tables["frames"]["n_indexed"] >= 135


def test_a_campaign_over_a_stack(run, tmp_path):
    """Each image of an HDF5 file is an item: one with a crystal, an empty one, and both report and page know them."""
    sim = tmp_path / "sim"
    run("simulate", "laue", "--material", "Cu", "--image", "--dropped", "0", "--seed", "1", "-o", sim)
    image = fabio.open(str(sim / "frame_0000.tif")).data
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset(
            "entry/data/data", data=np.stack([image, np.full_like(image, 50)]), chunks=(1, *image.shape)
        )
    laue_settings = 'materials = ["Cu"]\ndetector = "sim/frame_0000.cor"\n'
    (tmp_path / "c.toml").write_text(f'[campaign]\ninputs = ["scan.h5"]\nstage = "laue"\n[laue]\n{laue_settings}')
    assert "2 of 2 done (1 solved, 1 unsolved, 0 failed)" in run("run", tmp_path / "c.toml").out
    first, second = read_results(tmp_path / "run" / "results.h5")
    assert (first.id, second.id) == ("scan:0", "scan:1") and second.reason == "0 spots are too few, a grain needs 6"
    truth = json.loads((sim / "truth.json").read_text())["frames"][0]["grains"][0]
    rotations = material("Cu").rotations
    assert misorientation(first.tables["grains"]["u"][0], np.array(truth["u"]), rotations) < 0.02
    assert run("export", tmp_path / "run", "--to", "fit", "-o", tmp_path / "fits").out.endswith("scan_0.fit\n")


@pytest.mark.parametrize("arguments", [["index", "laue"], ["simulate", "laue"], ["train", "laue"]])
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys, json\nfrom mlindex.cli.main import main\n"
        f"try:\n    main({[*arguments, '--help']!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(answer.stderr)) and "--material" in answer.stdout


def test_a_table_says_why_there_is_no_grain(frames, run, nothing):
    answer = run("index", "laue", "--material", "Cu", frames / "frame_0000.cor")
    assert answer.code == 0 and answer.err == ""
    assert answer.out.startswith("frame_0000  unsolved: no crystal of Cu explains the")


def test_a_file_of_no_use_does_not_stop_the_others(frames, run, nothing):
    (frames / "empty.cor").write_text("")
    answer = run("index", "laue", "--json", "--material", "Cu", frames / "empty.cor", frames / "frame_0001.cor")
    assert answer.code == 1
    failed, unsolved = (json.loads(line) for line in answer.out.splitlines())
    assert failed["status"] == "failed" and "empty.cor: is empty" in failed["reason"] and failed["grains"] == []
    assert unsolved["status"] == "unsolved" and len(unsolved["spots"]) > 20
    assert "failed: empty: " in answer.err and "2 frames: 1 unsolved, 1 failed; 0 grains" in answer.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--material", "Cuu"], "unknown material 'Cuu'; it is one of Ag, Al"),
        (["--material", "Cu", "--energy", "5"], "--energy 5: is no band of energies; give the lowest and the highest"),
        (["--material", "Cu", "--energy", "23,5"], "--energy 23,5: is no band"),
        (["--material", "Cu", "--grains", "0"], "grains: Input should be greater than or equal to 1"),
        (["--material", "Cu", "--detector", "no.det"], "no.det: the calibration cannot be read"),
        (["--material", "Cu", "-o", "/nowhere/r.h5"], "/nowhere/r.h5: cannot be written"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(frames, run, arguments, says):
    answer = run("index", "laue", *arguments, frames / "frame_0000.cor")
    assert answer.code == 2 and answer.out == ""
    assert says in answer.err and answer.err.count("\n") == 1 and answer.err.startswith("mlindex: ")


def test_bad_usage_of_simulate(run, tmp_path):
    (tmp_path / "file").write_text("")
    answer = run("simulate", "laue", "--material", "Cu", "-o", tmp_path / "file" / "sim")
    assert answer.code == 2 and "cannot be written to" in answer.err and answer.err.count("\n") == 1
    assert run("simulate", "laue", "--material", "Cuu", "-o", tmp_path / "sim").code == 2


def test_train_saves_where_index_looks(run, tmp_path, monkeypatch):
    """The training itself has its own tests: here its arguments and where its network goes."""
    from mlindex.laue import recognise, train

    asked, kept = [], []

    def trained(one, detector, energy, *, seed, minutes, progress):
        asked.append((one.name, energy, seed, minutes))
        card = {"classes": 7, "seconds": 3.0, "validation": {"1 grains": {"right": 0.9, "all_right": 0.5}}}
        return type("Made", (), {"card": card})()

    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(recognise, "save", lambda made, path: kept.append(path))
    answer = run("train", "laue", "--material", "Cu", "--energy", "5,22", "--minutes", "0.5", "-o", tmp_path)
    assert answer.code == 0 and asked == [("Cu", (5.0, 22.0), 0, 0.5)] and kept[0].parent == tmp_path
    assert answer.out.splitlines() == [f"Cu: {kept[0]} (7 classes, 3 s)", "  1 grains: right 0.9, all right 0.5"]
