"""`mlindex invert larbed`, `export` and `report` of it, and the demonstration: what goes where, with which status."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import mlindex
from mlindex.bloch import search
from mlindex.bloch.beams import geometry
from mlindex.bloch.judge import Solution, r_factor, with_origin
from mlindex.formats.larbed import read_larbed, read_truth
from mlindex.report.bloch_patterns import mosaic
from mlindex.runtime.shards import read_results
from tests.cli.test_startup import HEAVY
from tests.report.page_reader import Page

SLURM = Path(mlindex.__file__).parents[1] / "slurm"
CELL = "3.905,3.905,3.905,90,90,90"


def simulated(run, path: Path, *more: object) -> Path:
    options = ("--random", 0.1, "--cell", CELL, "--beams", 5, "--steps", 5, "--range", 60, "--thickness", 18)
    answer = run("simulate", "larbed", *options, *more, "-o", path)
    assert answer.code == 0, answer.err
    return path


@pytest.mark.parametrize("option", ["random", "range", "thickness", "voltage", "absorption", "counts"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_numbers_that_no_pattern_can_have_are_refused(run, tmp_path, option, value):
    given = {"random": "0.1", option: value}
    words = [f"--{name}={text}" for name, text in given.items()]
    answer = run("simulate", "larbed", "--cell", CELL, *words, "-o", tmp_path / "p.h5")
    assert answer.code == 2 and not (tmp_path / "p.h5").exists()


@pytest.mark.parametrize("limits", ["nan,0.01", "2.5,inf", "-2.5,0.01", "2.5,0"])
def test_limits_of_higher_zones_are_positive_numbers(run, tmp_path, limits):
    options = ("--random", 0.1, "--cell", CELL, f"--higher-zones={limits}", "-o", tmp_path / "p.h5")
    answer = run("simulate", "larbed", *options)
    assert answer.code == 2 and "--higher-zones" in answer.err and answer.err.count("\n") == 1


@pytest.fixture
def patterns(run, tmp_path) -> Path:
    """Three patterns, one of which is cut short."""
    folder = tmp_path / "patterns"
    folder.mkdir()
    for seed, name in enumerate(("alpha", "beta")):
        simulated(run, folder / f"{name}.h5", "--seed", seed)
    shutil.copy(folder / "beta.h5", folder / "broken.h5")
    with h5py.File(folder / "broken.h5", "a") as file:
        del file["larbed"].attrs["voltage_kV"]
    return folder


@pytest.fixture
def known(monkeypatch, patterns):
    """The search finds the truth of "alpha" with an alternative, and only a bad fit of "beta"."""
    truths = [(read_larbed(patterns / f"{name}.h5"), read_truth(patterns / f"{name}.h5")) for name in ("alpha", "beta")]

    def invert(intensity, at, **_options):
        which = next(k for k, (seen, _) in enumerate(truths) if np.array_equal(seen.intensity, intensity))
        truth = truths[which][1]
        model = np.roll(truth.intensity, 7, 0) if which else truth.intensity
        u = with_origin(truth.u, at)
        share = np.zeros(len(u))
        share[[0, 5, 7, 12]] = 0.4, 0.6, 0.6, 0.4
        said = {"condition": 1e-4, "weakest": share, "weakest_sigma": np.inf if which else 4e-4}
        best = Solution(
            *(u, np.full(len(u), 2e-5), 180.0, 0.02, r_factor(intensity, model), 0.001, model, which, 5),
            **(said | ({} if which else {"symmetry": "p4m", "scale": 0.98, "background": 2e-4})),
        )
        return [best, Solution(u.conj(), best.sigma, 181.0, 0.03, 0.5, 0.4, model, 0)]

    monkeypatch.setattr(search, "invert", invert)
    return truths


def test_json_has_the_structure_factors(patterns, known, run):
    answer = run("invert", "larbed", patterns, "--json")
    alpha, beta, broken = map(json.loads, answer.out.splitlines())
    assert answer.code == 1 and "failed: broken: " in answer.err and "voltage_kV" in answer.err
    pattern, truth = known[0]
    assert alpha["status"] == "solved" and alpha["thickness_nm"] == pytest.approx(18.0) and alpha["r_factor"] < 1e-9
    found = np.array([f["re"] + 1j * f["im"] for f in alpha["u"]])
    at = geometry(pattern.hkl, pattern.tilt, cell=pattern.cell, zone=pattern.zone.tolist(), voltage_kv=120.0)
    np.testing.assert_allclose(found, with_origin(truth.u, at), atol=1e-12)
    assert [f["hkl"] for f in alpha["u"]] == truth.dhkl.tolist() and alpha["u"][0]["sigma"] == pytest.approx(2e-5)
    assert [(a["thickness_nm"], a["symmetry"], a["agreement"]) for a in alpha["alternatives"]] == [(18.1, "p1", 1)]
    said = [alpha[name] for name in ("symmetry", "agreement", "fitted_scale", "background", "scale", "weakest_sigma")]
    assert said == ["p4m", 5, 0.98, 2e-4, 1.0, 4e-4] and beta["weakest_sigma"] is None
    assert alpha["weakest"] == [at.dhkl[7].tolist(), at.dhkl[12].tolist()] and len(alpha["beams"]) == 5
    assert max(b["r"] for b in alpha["beams"]) < 1e-9 < min(b["r"] for b in beta["beams"])
    assert beta["status"] == "unsolved" and beta["reason"].startswith("the best fit has R = ") and beta["u"]
    assert broken["status"] == "failed" and broken["u"] == [] and broken["r_factor"] is None
    assert list(broken) == ["id", "source", "status", "reason", *list(alpha)[3:]]


def test_the_options_are_those_of_the_search(patterns, monkeypatch, run):
    told = {}
    monkeypatch.setattr(search, "invert", lambda *_, **options: told.update(options) or 1 / 0)
    run("invert", "larbed", patterns / "alpha.h5")
    assert [told[name] for name in ("scale", "background", "poisson", "real")] == [False, False, True, False]
    assert told["symmetry"] and told["cutoff"] is None
    options = ("--no-symmetry", "--cutoff", 0.7, "--fit-scale", "--fit-background", "--weights", "uniform", "--real")
    assert run("invert", "larbed", patterns / "alpha.h5", *options).code == 1
    assert [told[name] for name in ("scale", "background", "poisson", "real")] == [True, True, False, True]
    assert not told["symmetry"] and told["cutoff"] == 0.7


def test_a_table_for_people(patterns, known, run):
    answer = run("invert", "larbed", patterns / "alpha.h5", patterns / "beta.h5")
    assert answer.code == 0 and "2 patterns: 1 solved, 1 unsolved" in answer.err
    assert "thickness 18.000(2) nm, symmetry p4m; 5 beams, 81 tilts" in answer.out
    assert "alternative 1: R = 0.5" in answer.out and "; 1 start" in answer.out
    assert "the fitted scale is 0.98" in answer.out and "background is 0.0002 of the incident beam" in answer.out
    weakest = " ".join(answer.out.split())
    assert "the least determined combination is mostly of 0 1 0, 2 0 0: uncertain by 0.0004 1/Å²" in weakest
    assert "beta: unsolved: R = " in answer.out
    assert "1 combination of these is not determined by the pattern, mostly of 0 1 0, 2 0 0" in weakest


def test_results_are_exported_and_reported(patterns, known, run, tmp_path):
    answer = run("invert", "larbed", patterns, "-o", tmp_path / "results.h5", "--json")
    printed = [json.loads(line) for line in answer.out.splitlines()]
    exported = [json.loads(line) for line in run("export", tmp_path / "results.h5", "--to", "json").out.splitlines()]
    assert exported == printed
    rows = list(csv.DictReader(io.StringIO(run("export", tmp_path / "results.h5", "--to", "csv").out)))
    assert len(rows) == 13 * 2 * 2 + 1 and rows[-1]["status"] == "failed" and rows[-1]["re"] == ""
    first = printed[0]["u"][0]
    assert [int(rows[0][i]) for i in "hkl"] == first["hkl"] and float(rows[0]["re"]) == first["re"]
    assert [(row["symmetry"], row["agreement"]) for row in (rows[0], rows[13])] == [("p4m", "5"), ("p1", "1")]
    assert {row["rank"] for row in rows[:26]} == {"1", "2"} and float(rows[13]["thickness_nm"]) == pytest.approx(18.1)
    refused = run("export", tmp_path / "results.h5", "--to", "cif")
    assert refused.code == 2 and "these are results of LARBED patterns" in refused.err

    assert run("report", tmp_path / "results.h5").code == 0
    page = Page((tmp_path / "results.html").read_text())
    assert page.texts["n-solved"] == "1" and page.texts["n-unsolved"] == "1" and page.texts["n-failed"] == "1"
    table = page.rows("patterns-table")
    assert [row["Pattern"] for row in table] == ["alpha", "beta"] and table[0]["Thickness (nm)"] == "18.0000"
    assert [row["Symmetry"] for row in table] == ["p4m", "p1"] and table[0]["Starts that agree"] == "5"
    assert table[0]["Condition"] == "0.0001"
    assert {"pattern-1", "pattern-2", "potential-1", "potential-2"} <= set(page.ids)
    html = (tmp_path / "results.html").read_text()
    assert "nm, symmetry p4m, fitted scale 0.98, background 0.0002, solved" in html
    assert "mostly of 0 1 0, 2 0 0, is uncertain by 0.0004" in html and "mostly of 0 1 0, 2 0 0, is not determ" in html
    pictures = {p.name for p in (tmp_path / "results").iterdir()}
    assert {"inversion.png", "pattern-1.png", "potential-2.png"} <= pictures


def test_the_intensities_of_a_pattern_are_at_their_places():
    """Each beam's disc is where its g is, and nothing overlaps."""
    g = np.array([[0, 0], [0.25, 0], [-0.25, 0], [0, 0.25], [0.25, 0.25]])
    axis = np.arange(-3, 4)
    tilt = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2) * 5.0
    values = np.arange(len(tilt))[:, None] + 1000.0 * np.arange(len(g))
    image = mosaic(values, tilt, g)
    assert np.isfinite(image).sum() == values.size and set(image[np.isfinite(image)]) == set(values.ravel())
    place = {beam: np.argwhere(image // 1000 == beam).mean(0) for beam in range(len(g))}
    pitch = np.linalg.norm(place[1] - place[0]) / 0.25
    for beam in place:  # rows are y, columns are x
        np.testing.assert_allclose(place[beam] - place[0], pitch * g[beam, ::-1], atol=1e-9)
    right = np.argwhere(image == values[np.flatnonzero((tilt == [15, 0]).all(1))[0], 0])[0]
    np.testing.assert_allclose(right - place[0], [0, 3])


def test_tilts_that_are_on_no_grid_have_a_picture():
    rng = np.random.default_rng(0)
    image = mosaic(
        rng.random((200, 5)), rng.normal(size=(200, 2)), np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 1.0]])
    )
    assert max(image.shape) < 100 and np.isfinite(image).any()


def test_the_demo_campaign(run, tmp_path):
    """The real search, on a simulated pattern with noise."""
    shutil.copytree(SLURM / "demo_larbed", tmp_path / "demo_larbed", ignore=shutil.ignore_patterns("run"))
    shutil.copy(SLURM / "demo_larbed.toml", tmp_path)
    answer = run("run", tmp_path / "demo_larbed.toml")
    assert "1 of 1 done (1 solved, 0 unsolved, 0 failed)" in answer.out, answer.err
    (result,) = read_results(tmp_path / "demo_larbed" / "run" / "results.h5")
    truth = read_truth(next((tmp_path / "demo_larbed").glob("*.h5")))
    assert result.tables["patterns"]["thickness"][0] == pytest.approx(truth.thickness, abs=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--thickness", "30"], "--thickness: '30' is not 2 numbers; give them as 5,100"),
        (["--thickness", "30,10"], "give the least and the greatest thickness in nanometres"),
        (["--start", "nowhere.cif"], "nowhere.cif: there is no such file to start from"),
        (["--seconds", "0"], "seconds"),
        (["--cutoff", "-1"], "cutoff"),
        (["--weights", "gauss"], "weights: Input should be 'poisson' or 'uniform'"),
        (["-o", "nowhere/results.h5"], "cannot be written"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(patterns, run, arguments, says):
    answer = run("invert", "larbed", patterns / "alpha.h5", *arguments)
    assert answer.code == 2 and says in answer.err and answer.err.count("\n") == 1 and not answer.out


def test_help_imports_nothing_heavy():
    program = (
        "import sys, json\nfrom mlindex.cli.main import main\n"
        "try:\n    main(['invert', 'larbed', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(answer.stderr))
