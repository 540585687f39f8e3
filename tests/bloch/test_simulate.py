"""Simulated LARBED patterns: the three sources of structure factors, noise, and the command that writes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.bloch.beams import Geometry, geometry, shell_beams, tilt_disc, zone_beams
from mlindex.bloch.propagate import intensities
from mlindex.bloch.simulate import counted, crystal_u, given_u, random_u, simulate_pattern
from mlindex.cli.main import main
from mlindex.crystal.scattering import crystal_from_cif
from mlindex.formats.larbed import read_larbed, read_truth
from mlindex.runtime import device

CUBIC = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
AT = {"cell": CUBIC, "zone": (0, 0, 1), "voltage_kv": 120.0}
CIF = """data_SrTiO3
_cell_length_a 3.905
_cell_length_b 3.905
_cell_length_c 3.905
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Sr1 Sr 0 0 0
Ti1 Ti 0.5 0.5 0.5
O1 O 0.5 0.5 0
"""


def square(steps: int = 4) -> Geometry:
    return geometry(shell_beams(CUBIC, (0, 0, 1), 13), tilt_disc(steps, 50.0)[0], **AT)


@given(seed=st.integers(0, 10**6), largest=st.floats(0.01, 1), real=st.booleans())
def test_random_structure_factors_are_hermitian(seed, largest, real):
    dhkl = square(0).dhkl
    u = random_u(np.random.default_rng(seed), dhkl, largest, real=real)
    np.testing.assert_array_equal(u, u[::-1].conj())
    assert np.abs(u.real).max() <= largest and np.abs(u.imag).max() <= (0 if real else largest)
    assert u[~dhkl.any(1)] == 0 and len(np.unique(np.delete(u, len(u) // 2))) >= len(u) // 2


@given(seed=st.integers(0, 10**6), kept=st.integers(0, 10))
def test_given_structure_factors_are_completed(seed, kept):
    at = square(0)
    u = random_u(np.random.default_rng(seed), at.dhkl)
    half = len(u) // 2 + 1
    np.testing.assert_array_equal(given_u(at.dhkl[:half], u[:half], at.dhkl), u)
    some = given_u(at.dhkl[:kept], u[:kept], at.dhkl)
    assert np.count_nonzero(some) == 2 * kept
    order = np.random.default_rng(seed).permutation(len(u))
    np.testing.assert_array_equal(given_u(at.dhkl[order], u[order], at.dhkl), u)


def test_given_structure_factors_that_contradict_each_other():
    at = square(0)
    with pytest.raises(ValueError, match="not complex conjugates"):
        given_u(np.array([[1, 0, 0], [-1, 0, 0]]), np.array([0.1j, 0.1j]), at.dhkl)
    with pytest.raises(ValueError, match="listed twice"):
        given_u(np.array([[1, 0, 0], [1, 0, 0]]), np.array([0.1, 0.1]), at.dhkl)


def test_noise_is_that_of_counting():
    """Mean and variance: each place is a Poisson count over the counts of the brightest."""
    clean = intensities(random_u(np.random.default_rng(0), square().dhkl), square(), 300.0)
    rng = np.random.default_rng(1)
    many = np.array([counted(rng, clean, 1e4) for _ in range(400)])
    unit = clean.max() / 1e4
    bright = clean > 0.01
    np.testing.assert_allclose(many.mean(0)[bright], clean[bright], rtol=6 / np.sqrt(100 * 400))
    ratio = many.var(0)[bright] / (clean[bright] * unit)
    assert ratio.mean() == pytest.approx(1, abs=0.02) and ratio.std() == pytest.approx(np.sqrt(2 / 400), rel=0.2)
    np.testing.assert_allclose(many / unit, np.rint(many / unit), atol=1e-6)


def test_a_pattern_and_its_truth():
    at = square()
    u = random_u(np.random.default_rng(2), at.dhkl)
    pattern, truth = simulate_pattern("x", u, at, 300.0, **AT)
    np.testing.assert_array_equal(pattern.intensity, truth.intensity)
    np.testing.assert_allclose(pattern.tilt, tilt_disc(4, 50.0)[0], atol=1e-12)
    noisy, again = simulate_pattern("x", u, at, 300.0, counts=1e3, rng=np.random.default_rng(0), **AT)
    np.testing.assert_array_equal(again.intensity, truth.intensity)
    assert 0 < np.abs(noisy.intensity - truth.intensity).max() < 0.2
    for counts, rng in ((1e3, None), (0.0, np.random.default_rng(0))):
        with pytest.raises(ValueError, match="noise needs"):
            simulate_pattern("x", u, at, 300.0, counts=counts, rng=rng, **AT)


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*options) -> exit status, standard output, standard error of `mlindex simulate larbed`."""
    monkeypatch.setattr(device, "apply", lambda *a: None)

    def call(*options: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["simulate", "larbed", *map(str, options)])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


CELL = ("--cell", ",".join(map(str, CUBIC)))


def truth_again(path) -> None:
    """The intensities of the file follow from its truth and its own geometry, as anybody would read them."""
    read, truth = read_larbed(path), read_truth(path)
    assert truth is not None
    at = geometry(read.hkl, read.tilt, cell=read.cell, zone=read.zone.tolist(), voltage_kv=read.voltage_kv)
    np.testing.assert_array_equal(at.dhkl, truth.dhkl)
    np.testing.assert_allclose(intensities(truth.u, at, truth.thickness), truth.intensity, atol=1e-11)


def test_the_command_with_random_structure_factors(run, tmp_path):
    path = tmp_path / "a.h5"
    assert run("--random", 0.2, *CELL, "--thickness", 25, "-o", path) == (
        0,
        f"13 beams at 441 tilts and their truth in {path}\n",
        "",
    )
    truth_again(path)
    read, truth = read_larbed(path), read_truth(path)
    np.testing.assert_array_equal(read.intensity, truth.intensity)
    assert truth.thickness == 250.0 and np.linalg.norm(read.tilt, axis=1).max() == pytest.approx(70.0)
    run("--random", 0.2, *CELL, "--thickness", 25, "-o", tmp_path / "b.h5")
    np.testing.assert_array_equal(read_larbed(tmp_path / "b.h5").intensity, read.intensity)
    run("--random", 0.2, *CELL, "--thickness", 25, "--seed", 1, "-o", tmp_path / "b.h5")
    assert np.abs(read_larbed(tmp_path / "b.h5").intensity - read.intensity).max() > 0.01


def test_the_command_with_a_crystal_noise_absorption_and_higher_zones(run, tmp_path):
    (tmp_path / "a.cif").write_text(CIF)
    small = ("--cif", tmp_path / "a.cif", "--steps", 3, "--beams", 9)
    path = tmp_path / "a.h5"
    assert run(*small, "--counts", 1e4, "-o", path)[0] == 0
    truth_again(path)
    truth = read_truth(path)
    assert 1e-4 < np.abs(read_larbed(path).intensity - truth.intensity).max() < 0.1
    at = geometry(shell_beams(CUBIC, (0, 0, 1), 9), tilt_disc(3, 70.0)[0], **AT)
    np.testing.assert_allclose(truth.u, crystal_u(crystal_from_cif(tmp_path / "a.cif"), at, 120.0), atol=1e-15)
    assert run(*small, "--absorption", 0.1, "-o", path)[0] == 0
    truth_again(path)
    assert read_larbed(path).intensity.sum(1).max() < 0.9 and read_larbed(path).scale == 1.0
    code, out, _ = run(*small, "--zone", "1,1,0", "--higher-zones", "2.2,0.01", "-o", path)
    assert code == 0 and not out.startswith("9 beams")
    truth_again(path)
    assert np.count_nonzero(read_larbed(path).hkl @ [1, 1, 0]) > 0


def of_aluminium(a: str = "4.0496", group: str = "F m -3 m", sites: str = "Al1 Al 0 0 0") -> str:
    """A cubic CIF with one kind of atom."""
    head, _ = CIF.split("Sr1 Sr")
    return head.replace("3.905", a).replace("P m -3 m", group) + sites + "\n"


@pytest.mark.parametrize(
    ("text", "zone", "count", "kept"),
    [
        (of_aluminium(), (0, 0, 1), 13, [[0, 0, 0], [2, 0, 0], [2, 2, 0], [4, 0, 0]]),
        (
            of_aluminium("2.8665", "I m -3 m", "Fe1 Fe 0 0 0"),
            (0, 0, 1),
            13,
            [[0, 0, 0], [1, 1, 0], [2, 0, 0], [2, 2, 0]],
        ),
        # 200 of diamond is extinguished by a glide, and excited by way of others: it stays
        (of_aluminium("5.431", "F d -3 m :1", "Si1 Si 0 0 0"), (0, 1, 1), 7, [[0, 0, 0], [1, 1, -1], [2, 0, 0]]),
    ],
)
def test_beams_that_the_centring_forbids_are_left_out(run, tmp_path, text, zone, count, kept):
    """The law: among all beams those that are left out are dark, and without them the others are as they were."""
    (tmp_path / "a.cif").write_text(text)
    options = ("--cif", tmp_path / "a.cif", "--zone", ",".join(map(str, zone)), "--steps", 3)
    wanted = {tuple(sorted(map(abs, hkl))) for hkl in kept}
    crystal = crystal_from_cif(tmp_path / "a.cif")
    assert run(*options, "--beams", count, "-o", tmp_path / "a.h5")[0] == 0
    read, truth = read_larbed(tmp_path / "a.h5"), read_truth(tmp_path / "a.h5")
    assert {tuple(sorted(map(abs, hkl))) for hkl in read.hkl.tolist()} == wanted
    g_max = np.linalg.norm(read.hkl, axis=1).max() / crystal.cell[0]
    at = geometry(zone_beams(crystal.cell, zone, g_max), read.tilt, cell=read.cell, zone=zone, voltage_kv=120.0)
    every = intensities(crystal_u(crystal, at, 120.0), at, truth.thickness)
    place = {tuple(hkl): k for k, hkl in enumerate(at.hkl.tolist())}
    there = [place.pop(tuple(hkl)) for hkl in read.hkl.tolist()]
    assert len(place) >= 4 and every[:, list(place.values())].max() < 1e-20
    np.testing.assert_allclose(every[:, there], truth.intensity, atol=1e-11)


def test_no_beam_of_a_higher_zone_is_forbidden_by_the_centring(run, tmp_path):
    (tmp_path / "a.cif").write_text(of_aluminium())
    options = ("--cif", tmp_path / "a.cif", "--steps", 3, "--beams", 5, "--higher-zones", "2.5,0.01")
    assert run(*options, "-o", tmp_path / "a.h5")[0] == 0
    hkl = read_larbed(tmp_path / "a.h5").hkl
    assert len(np.unique(hkl[:, 2])) > 1 and np.all((hkl % 2 == hkl[:, :1] % 2).all(1))


def test_the_command_with_given_structure_factors(run, tmp_path):
    (tmp_path / "u").write_text("1 0 0 0.05 0.01\n0 1 0 0.04 0\n1 1 0 0.03 -0.02\n")
    assert run("--u", tmp_path / "u", *CELL, "--beams", 5, "-o", tmp_path / "a.h5")[0] == 0
    truth_again(tmp_path / "a.h5")
    truth = read_truth(tmp_path / "a.h5")
    assert truth.u[(truth.dhkl == [-1, 0, 0]).all(1)] == 0.05 - 0.01j


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give one of --cif, --u and --random"),
        (("--random", 0.2, "--u", "x", *CELL), "give one of"),
        (("--random", 0.2), "add --cell"),
        (("--random", -1, *CELL), "must be positive"),
        (("--random", 0.2, "--cell", "1,2,3"), "not 6 numbers"),
        (("--random", 0.2, *CELL, "--zone", "0,0,0"), "not all zero"),
        (("--random", 0.2, *CELL, "--beams", 12), "nearest hold 9 and 13"),
        (("--random", 0.2, *CELL, "--zone", "0.5,0.5,1"), "'0.5,0.5,1' are not three whole numbers"),
        (("--random", 0.2, *CELL, "--zone", "nan,0,1"), "are not three whole numbers"),
        (("--random", 0.2, *CELL, "--zone", "inf,0,1"), "are not three whole numbers"),
        (("--random", 0.2, *CELL, "--voltage", 0), "--voltage is 0; electrons of at least 1 kV"),
        (("--random", 0.2, *CELL, "--voltage", "nan"), "--voltage is nan; electrons of at least 1 kV"),
        (("--random", 0.2, *CELL, "--voltage", 120000), "--voltage is 120000, which looks like volts; give kV"),
        (("--random", 0.2, "--cell", "0.3905,0.3905,0.3905,90,90,90"), "look like nanometres; give them in angstrom"),
        (("--random", 0.2, *CELL, "--counts", 0), "noise needs"),
        (("--random", 0.2, *CELL, "--absorption", 0.1), "--absorption needs --cif"),
        (("--random", 0.2, *CELL, "--range", 0), "positive range"),
        (("--random", 0.2, *CELL, "--higher-zones", 3), "not 2 numbers"),
        (("--cif", "none.cif"), "none.cif: it is not a CIF"),
        (("--u", "none", *CELL), "none: cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(run, tmp_path, options, says):
    code, out, err = run(*options, "-o", tmp_path / "a.h5")
    assert code == 2 and not out and says in err and err.count("\n") == 1
