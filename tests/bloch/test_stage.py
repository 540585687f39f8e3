"""The stage: patterns in, structure factors out; what counts as solved; where it starts; what it cannot use."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from mlindex.bloch import judge, noise, potential, search
from mlindex.bloch.beams import Geometry, geometry, shell_beams, tilt_disc, zone_beams
from mlindex.bloch.judge import Solution, with_origin
from mlindex.bloch.propagate import intensities
from mlindex.bloch.simulate import counted, crystal_u, random_u, simulate_pattern
from mlindex.bloch.stage import BlochStage, start_from_file
from mlindex.config import BlochSettings, read_campaign
from mlindex.crystal.electrons import gamma
from mlindex.crystal.scattering import crystal_from_cif
from mlindex.formats.larbed import Larbed, Truth, read_larbed, write_larbed
from mlindex.records import InputError, Item, Status, items_from_buffer, items_to_buffer
from mlindex.stage import solve
from tests.bloch.test_simulate import CIF, CUBIC

AT = {"cell": CUBIC, "zone": (0, 0, 1), "voltage_kv": 120.0}


OF_A_SOLUTION = (
    *("r_factor", "thickness_nm", "thickness_sigma_nm", "symmetry", "agreement", "fitted_scale", "background"),
    *("undetermined", "condition", "weakest", "weakest_sigma", "u"),
)
OF_A_PATTERN = ("alternatives", "scale", "noise_r", "beams")


def square(steps: int = 6) -> Geometry:
    return geometry(shell_beams(CUBIC, (0, 0, 1), 5), tilt_disc(steps, 60.0)[0], **AT)


def made(name: str = "made", counts: float | None = None, thickness: float = 180.0) -> tuple[Larbed, Truth]:
    rng = np.random.default_rng(5)
    at = square()
    return simulate_pattern(name, random_u(rng, at.dhkl, 0.1), at, thickness, counts=counts, rng=rng, **AT)


def solution(truth: Truth, at: Geometry, error: float = 0.0, seed: int = 0) -> Solution:
    """The truth, its intensities off by so much in R."""
    rng = np.random.default_rng(seed)
    off = rng.normal(size=truth.intensity.shape) * truth.intensity
    model = truth.intensity + off * error * truth.intensity.sum() / np.abs(off).sum()
    r = judge.r_factor(truth.intensity, model)
    u = with_origin(truth.u, at)
    return Solution(u, np.full(len(u), 1e-5), truth.thickness, 0.02, r, r / 2, model, 0)


@pytest.fixture
def cif(tmp_path) -> Path:
    (tmp_path / "crystal.cif").write_text(CIF)
    return tmp_path / "crystal.cif"


@pytest.fixture
def file(tmp_path) -> Path:
    write_larbed(tmp_path / "made.h5", *made())
    return tmp_path / "made.h5"


def test_a_pattern_is_inverted_to_its_truth(file):
    """From the file to the JSON, with the search itself."""
    stage = BlochStage(BlochSettings(thickness_nm=(10, 30)))
    items = stage.read(str(file))
    (again,) = items_from_buffer(items_to_buffer(items))
    (result,) = solve(stage, [again])
    truth, at = made()[1], square()
    assert result.status is Status.SOLVED and not result.reason
    record = json.loads(json.dumps(stage.record(result), allow_nan=False))
    assert list(record) == ["id", "source", "status", "seconds", *OF_A_SOLUTION, *OF_A_PATTERN]
    assert record["r_factor"] < 1e-5 and record["thickness_nm"] == pytest.approx(18.0, abs=1e-3)
    assert [f["hkl"] for f in record["u"]] == at.dhkl.tolist()
    found = np.array([f["re"] + 1j * f["im"] for f in record["u"]])
    np.testing.assert_allclose(found, with_origin(truth.u, at), atol=1e-4)
    assert record["seconds"] > 0 and record["source"] == str(file)


def finished(pattern: Larbed, ranked: list[Solution], **settings):
    stage = BlochStage(BlochSettings(**settings))
    arrays = {n: getattr(pattern, n) for n in ("intensity", "hkl", "tilt", "cell", "zone")}
    item = Item("one", "one.h5", arrays, {"voltage_kv": pattern.voltage_kv, "scale": pattern.scale, "cif": ""})
    (result,) = stage.finish([item], [ranked])
    return stage.record(result), result


@pytest.mark.parametrize(
    ("error", "status"), [(0.0, "solved"), (0.015, "solved"), (0.05, "unsolved"), (0.4, "unsolved")]
)
def test_without_noise_only_a_small_r_is_a_solution(error, status):
    pattern, truth = made()
    record, result = finished(pattern, [solution(truth, square(), error)])
    assert record["status"] == status and record["r_factor"] == pytest.approx(error)
    assert ("no noise is seen" in record.get("reason", "")) == (status == "unsolved")
    assert record["u"] and record["thickness_nm"] == pytest.approx(18.0), "the best fit is there all the same"
    assert result.tables["patterns"]["noise_r"][0] == 0


@pytest.mark.parametrize("counts", [1e4, 300.0])
def test_noise_explains_a_larger_r(counts):
    pattern, truth = made(counts=counts)
    right = solution(truth, square())
    reached = judge.r_factor(pattern.intensity, truth.intensity)
    record, result = finished(pattern, [dataclasses.replace(right, r_factor=reached)])
    assert record["status"] == "solved"
    assert result.tables["patterns"]["noise_r"][0] == pytest.approx(reached, rel=0.25)
    wrong, _ = finished(pattern, [dataclasses.replace(right, r_factor=2 * reached + 0.1)])
    assert wrong["status"] == "unsolved" and "noise explains" in wrong["reason"]


def test_alternatives_are_as_many_as_asked_for():
    pattern, truth = made()
    ranked = [solution(truth, square(), 0.001 * k) for k in range(5)]
    record, result = finished(pattern, ranked, alternatives=2)
    assert [a["r_factor"] for a in record["alternatives"]] == pytest.approx([0.001, 0.002])
    assert all(tuple(a) == OF_A_SOLUTION and len(a["u"]) == 13 for a in record["alternatives"])
    assert result.tables["patterns"]["n_solutions"][0] == 3


@given(mean=st.floats(0.05, 2000), seed=st.integers(0, 2**31))
def test_the_r_of_poisson_noise(mean, seed):
    """Against the mean deviation of the distribution, and the quantum against the noise it is found in."""
    k = np.arange(0, int(mean + 12 * np.sqrt(mean) + 20))
    exact = float((poisson.pmf(k, mean) * np.abs(k - mean)).sum() / mean)
    assert noise.r_of_noise(np.full((3, 4), mean), 1.0) == pytest.approx(exact, rel=0.15)
    clean = np.full((600, 5), 0.2)
    seen = counted(np.random.default_rng(seed), clean, mean + 20)
    assert noise.quantum(seen) == pytest.approx(0.2 / (mean + 20), rel=0.5)


@given(counts=st.floats(1e3, 1e6), seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_the_noise_of_tilts_divided_by_their_own_sums(counts, seed):
    """The direct beam at opposite tilts tells it, against the noise that was put in; without noise there is none.

    A median of some 150 pairs, in which few counts are no normal distribution: within a factor of 2.5.
    """
    rng = np.random.default_rng(seed)
    at = square(10)
    clean = intensities(random_u(rng, at.dhkl, 0.1), at, 180.0)
    seen = counted(rng, clean, counts)
    one = clean.max() / counts
    assert one / 2.5 < noise.quantum(seen, at) < 2.5 * one
    seen /= seen.sum(1, keepdims=True)
    assert noise.quantum(seen) == 0 and one / 2.5 < noise.quantum(seen, at) < 2.5 * one
    assert noise.quantum(clean, at) == 0


def test_absorption_is_no_noise_where_tilts_have_opposites():
    """It varies the sums over the beams, and leaves the direct beam at opposite tilts alike."""
    at = square()
    u = random_u(np.random.default_rng(3), at.dhkl, 0.1)
    absorbed = u + 0.1j * random_u(np.random.default_rng(4), at.dhkl, 0.1)
    absorbed[len(u) // 2] += 0.03j
    clean = intensities(absorbed, at, 180.0)
    assert noise.quantum(clean) > 1e-6 and noise.quantum(clean, at) == 0
    half = at.kt[:, 0] > 0
    assert noise.quantum(clean[half], at.part(half)) == noise.quantum(clean[half]) > 0
    lopsided = dataclasses.replace(at, hkl=at.hkl + np.eye(3, dtype=int)[2])
    assert noise.quantum(clean, lopsided) == noise.quantum(clean)


def test_what_is_not_fractions_and_does_not_fit_is_told_to_fit_the_scale():
    pattern, truth = made()
    counts = dataclasses.replace(pattern, scale=5e4)
    bad = solution(truth, square(), 0.4)
    assert "fit their scale (fit_scale)" in finished(counts, [bad])[0]["reason"]
    assert "fit_scale" not in finished(counts, [bad], fit_scale=True)[0]["reason"]
    assert "fit_scale" not in finished(pattern, [bad])[0]["reason"]
    lost = dataclasses.replace(pattern, intensity=0.9 * pattern.intensity)
    assert "fit their scale (fit_scale)" in finished(lost, [bad])[0]["reason"]


def test_what_is_said_of_a_solution():
    """Symmetry, scale, background, what is least determined, and the R of each beam, in tables and record."""
    pattern, truth = made()
    at = square()
    share = np.zeros(13)
    share[[4, 8]], share[[0, 12]], share[[3, 9]] = 0.7, 0.25, 0.05
    model = truth.intensity * [1.0, 1.1, 1.0, 0.8, 1.0]
    best = dataclasses.replace(
        solution(truth, at), intensity=model, symmetry="p4m", scale=0.97, background=1e-3, undetermined=0, agreement=4
    )
    best = dataclasses.replace(best, condition=2e-5, weakest=share, weakest_sigma=3e-4)
    other = dataclasses.replace(solution(truth, at, 0.01), undetermined=1, weakest_sigma=np.inf, weakest=share)
    record, result = finished(dataclasses.replace(pattern, scale=5e4), [best, other])
    assert (record["symmetry"], record["fitted_scale"], record["background"], record["agreement"]) == (
        *("p4m", 0.97, 1e-3, 4),
    )
    assert record["scale"] == 5e4 and record["condition"] == 2e-5 and record["weakest_sigma"] == 3e-4
    assert record["weakest"] == [at.dhkl[8].tolist(), at.dhkl[12].tolist()]
    (alternative,) = record["alternatives"]
    assert (alternative["symmetry"], alternative["undetermined"], alternative["weakest_sigma"]) == ("p1", 1, None)
    assert [b["hkl"] for b in record["beams"]] == pattern.hkl.tolist()
    assert [b["r"] for b in record["beams"]] == pytest.approx([0, 0.1, 0, 0.2, 0], abs=1e-12)
    assert result.tables["patterns"]["symmetry"].tolist() == ["p4m"]
    assert result.tables["solutions"]["symmetry"].tolist() == ["p4m", "p1"]
    told = finished(pattern, [solution(truth, at)])[0]
    assert told["condition"] is None and told["weakest"] == [] and told["fitted_scale"] == 1 and told["scale"] == 1


def test_settings_reach_the_search(file, monkeypatch):
    told = {}

    def invert(intensity, at, **options):
        told.update(options, shape=intensity.shape)
        return [solution(made()[1], at)]

    monkeypatch.setattr(search, "invert", invert)
    chosen = BlochSettings(
        thickness_nm=(8, 40),
        seed=7,
        seconds=2.5,
        real=True,
        fit_scale=True,
        fit_background=True,
        weights="uniform",
        symmetry=False,
        cutoff=0.7,
    )
    stage = BlochStage(chosen)
    (result,) = solve(stage, stage.read(str(file)))
    assert result.status is Status.SOLVED
    assert told == {
        **{"start": None, "thickness": (80.0, 400.0), "seed": 7, "seconds": 2.5, "real": True},
        **{"scale": True, "background": True, "poisson": False, "symmetry": False, "cutoff": 0.7},
        "shape": square().shape,
    }


def test_where_it_starts(file, cif, tmp_path):
    """From a CIF, from a list, from the CIF that the pattern names beside it, or from nothing."""
    pattern, at = read_larbed(file), square()
    expected = crystal_u(crystal_from_cif(cif), at, 120.0)
    np.testing.assert_allclose(start_from_file(str(cif), pattern, at), expected)
    lines = [f"{h} {k} {n} {u.real!r} {u.imag!r}" for (h, k, n), u in zip(at.dhkl, expected.tolist(), strict=True)]
    (tmp_path / "u.txt").write_text("# h k l re im\n" + "\n".join(lines))
    np.testing.assert_allclose(start_from_file(str(tmp_path / "u.txt"), pattern, at), expected)
    write_larbed(tmp_path / "named.h5", dataclasses.replace(pattern, cif="crystal.cif"))
    for chosen, blind in ((BlochSettings(), False), (BlochSettings(start="blind"), True)):
        stage = BlochStage(chosen)
        (prepared,) = stage.prepare(stage.read(str(tmp_path / "named.h5")))
        assert (prepared.start is None) == blind
        if prepared.start is not None:
            np.testing.assert_allclose(prepared.start, expected)


def test_a_start_is_found_beside_the_campaign_file(cif, tmp_path):
    text = '[campaign]\nstage = "bloch"\ninputs = ["*.h5"]\n[bloch]\nstart = "crystal.cif"\nthickness_nm = [5, 50]\n'
    (tmp_path / "campaign.toml").write_text(text)
    settings = read_campaign(tmp_path / "campaign.toml").stage_settings()
    assert isinstance(settings, BlochSettings) and settings.thickness_nm == (5, 50)
    assert settings.located("crystal.cif") == str(cif) and BlochStage(settings).settings.start == "crystal.cif"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.cif", CIF.replace("3.905", "4.2"), "its cell 4.2 4.2 4.2 90 90 90 is not that of"),
        ("a.cif", "data_x\n_cell_length_a 3\n", "none of its data blocks has a unit cell"),
        ("u.txt", "1 0 0 0.1 0.0\n-1 0 0 0.1 0.2\n", "not complex conjugates"),
        ("u.txt", "7 7 7 0.1 0.0\n", "has no structure factor of a difference of beams"),
        ("u.txt", "hello\n", "h k l re im"),
        ("u.txt", None, "the start cannot be read"),
    ],
)
def test_a_bad_start_is_one_sentence(file, tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        start_from_file(str(tmp_path / name), read_larbed(file), square())
    assert says in str(caught.value) and str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_start_that_is_not_there_is_told_before_any_work():
    with pytest.raises(InputError, match=r"nowhere\.cif: there is no such file to start from"):
        BlochStage(BlochSettings(start="nowhere.cif"))


def test_patterns_that_tell_too_little(tmp_path):
    pattern, _ = made()
    alone = dataclasses.replace(pattern, hkl=pattern.hkl[:1], intensity=np.ones((len(pattern.tilt), 1)))
    few = dataclasses.replace(pattern, tilt=pattern.tilt[:2], intensity=pattern.intensity[:2])
    for bad, says in ((alone, "has the direct beam alone"), (few, "are 10 intensities, too few for 13 unknowns")):
        write_larbed(tmp_path / "bad.h5", bad)
        stage = BlochStage()
        with pytest.raises(InputError, match=says):
            stage.prepare(stage.read(str(tmp_path / "bad.h5")))


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ([[1, 0, 0]], r"a beam is missing among those that are farther out, as \[1, 0, 0\]"),
        ([[1, 1, 0], [-1, -1, 0]], r"2 beams are missing .*, as \[-1, -1, 0\]; beams must fill their shells"),
        ([[2, 0, 0]], ""),
    ],
)
def test_beams_that_are_no_shell(left, says):
    """A hole is told; gaps in the last shell are not, nor beams that a smaller cell would not have."""
    hkl = shell_beams(CUBIC, (0, 0, 1), 13)
    hkl = hkl[[h.tolist() not in left for h in hkl]]
    tilt = tilt_disc(6, 60.0)[0]
    arrays = {"hkl": hkl, "tilt": tilt, "cell": np.array(CUBIC), "zone": np.array([0, 0, 1])}
    stage = BlochStage()
    for name, beams in (("good" if not says else "bad", hkl), ("centred", hkl @ [[1, 1, 0], [-1, 1, 0], [0, 0, 1]])):
        item = Item(
            name,
            f"{name}.h5",
            arrays | {"hkl": beams, "intensity": np.ones((len(tilt), len(hkl)))},
            {"voltage_kv": 120},
        )
        if not says:
            assert stage.prepare([item])[0].geometry.shape == (len(tilt), len(hkl))
            continue
        with pytest.raises(InputError, match=says if name == "bad" else "missing among those") as caught:
            stage.prepare([item])
        assert str(caught.value).startswith(f"{name}.h5: ") and "\n" not in str(caught.value)


def test_the_potential_of_strontium_titanate(cif):
    """Against the law: the Fourier sum over one cell gives each coefficient back, and atoms attract electrons."""
    at = geometry(shell_beams(CUBIC, (0, 0, 1), 25), np.zeros((1, 2)), **AT)
    u = crystal_u(crystal_from_cif(cif), at, 120.0)
    edges = potential.projected_cell(at.dhkl, CUBIC, (0, 0, 1))
    assert edges is not None
    np.testing.assert_allclose(np.sort(np.linalg.norm(edges, axis=1)), [3.905, 3.905])
    n = 32
    s = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1) / n
    volts = potential.projected_potential(u, at.dhkl, s @ edges, **AT)
    g = at.dhkl[:, :2] / 3.905  # x along a*
    back = np.tensordot(np.exp(-2j * np.pi * (s @ edges @ g.T)), volts, axes=([0, 1], [0, 1])) / n**2
    np.testing.assert_allclose(back * gamma(120.0) / 150.412, u, atol=1e-7)
    columns = volts[0, 0], volts[n // 2, n // 2]  # strontium, and titanium with oxygen
    assert volts.max() == pytest.approx(max(columns)) and min(columns) > 2 * volts[n // 2, 0] > 2 * volts[n // 4, 0]


def test_the_potential_of_a_row_of_beams_has_no_cell():
    assert potential.projected_cell(np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0]]), CUBIC, (0, 0, 1)) is None


@given(hexagonal=st.booleans(), zone=st.sampled_from([(0, 0, 1), (1, 1, 0), (1, 1, 1), (2, 1, 0)]))
def test_the_projected_cell_is_dual_to_the_beams(hexagonal, zone):
    """Each g of the zone has integer products with the edges, and the cell has the area volume / repeat."""
    cell = (3.2, 3.2, 5.2, 90.0, 90.0, 120.0) if hexagonal else (3.9, 4.2, 5.1, 90.0, 90.0, 90.0)
    at = geometry(zone_beams(cell, zone, 1.2), np.zeros((1, 2)), cell=cell, zone=zone, voltage_kv=120.0)
    edges = potential.projected_cell(at.dhkl, cell, zone)
    assert edges is not None
    products = at.g[:, :2] @ edges.T
    np.testing.assert_allclose(products, np.rint(products), atol=1e-9)
    a, b, c = cell[:3]
    angle = np.radians(cell[5])
    direct = np.array([[a, 0, 0], [b * np.cos(angle), b * np.sin(angle), 0], [0, 0, c]])
    repeat = np.linalg.norm(np.array(zone) @ direct)
    assert abs(np.linalg.det(edges)) == pytest.approx(abs(np.linalg.det(direct)) / repeat)
