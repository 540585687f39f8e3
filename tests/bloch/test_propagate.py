"""Dynamical intensities against SciPy's exponential, the two-beam formula, and the laws that they obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from mlindex.bloch.beams import Geometry, geometry, shell_beams, tilt_disc, zone_beams
from mlindex.bloch.propagate import amplitudes, choose, intensities, phase_from_thickness, series, structure_matrix
from mlindex.bloch.simulate import random_u
from mlindex.bloch.standing import beam_pairs, spectrum_ends, standing_diagonal, standing_matrix, tilt_pairs

CUBIC = (3.905, 3.905, 3.905, 90.0, 90.0, 90.0)
METHODS = ("eigenvectors", "squaring", "chebyshev")
seeds = st.integers(0, 10**6)


def square(beams: int = 9, steps: int = 3, angle: float = 40.0) -> Geometry:
    tilt, _ = tilt_disc(steps, angle)
    return geometry(shell_beams(CUBIC, (0, 0, 1), beams), tilt, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)


def by_scipy(u: np.ndarray, at: Geometry, thickness: float) -> np.ndarray:
    """exp(2 pi i t A / (2 K)) e_0, tilt by tilt."""
    matrices = structure_matrix(u, at) + np.array([np.diag(row) for row in at.excitation])
    return np.array([expm(2j * np.pi * thickness / (2 * at.k0) * a)[:, at.origin] for a in matrices])


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20)
@given(seed=seeds, thickness=st.floats(0, 1000), real=st.booleans())
def test_amplitudes_are_those_of_the_exponential(method, seed, thickness, real):
    at = square()
    u = random_u(np.random.default_rng(seed), at.dhkl, real=real)
    u[len(u) // 2] = 0.13  # U_0, a phase of all beams
    np.testing.assert_allclose(amplitudes(u, at, thickness, method=method), by_scipy(u, at, thickness), atol=2e-11)
    single = amplitudes(u, at, thickness, method=method, single=True)
    assert single.dtype == np.complex64
    np.testing.assert_allclose(np.abs(single) ** 2, np.abs(by_scipy(u, at, thickness)) ** 2, atol=1e-3)


@pytest.mark.parametrize("method", ["squaring", "chebyshev", None])
@settings(max_examples=20)
@given(seed=seeds, thickness=st.floats(0, 500), strength=st.floats(0.0, 0.3))
def test_absorption(method, seed, thickness, strength):
    """U + i U' with a positive U' takes intensity from the beams, the more the thicker the slab."""
    at = square()
    u = random_u(np.random.default_rng(seed), at.dhkl)
    absorbing = random_u(np.random.default_rng(seed + 1), at.dhkl, 0.01)
    absorbing[len(u) // 2] = 0.1  # beyond the sum of the others in a row: positive definite
    total = u + 1j * strength * absorbing
    found = amplitudes(total, at, thickness, method=method)
    np.testing.assert_allclose(found, by_scipy(total, at, thickness), atol=1e-9)
    left = intensities(total, at, np.array([thickness, thickness + 50]), method=method).sum(-1)
    assert np.all(left <= 1 + 1e-9) and np.all(left[1] <= left[0] + 1e-9)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20)
@given(seed=seeds, thickness=st.floats(0, 1000), origin=st.integers(0, 8))
def test_beams_of_a_tilt_sum_to_one(method, seed, thickness, origin):
    """Wherever the direct beam stands in the list."""
    first = square()
    order = np.roll(np.arange(9), origin)
    at = geometry(first.hkl[order], first.kt / first.k0 * 1e3, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)
    u = random_u(np.random.default_rng(seed), at.dhkl)
    found = intensities(u, at, thickness, method=method)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-11)
    np.testing.assert_allclose(found, intensities(u, first, thickness, method=method)[:, order], atol=1e-10)
    single = intensities(u, at, thickness, method=method, single=True)
    np.testing.assert_allclose(single.sum(1), 1, atol=1e-5 if method == "chebyshev" else 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_no_thickness_is_no_diffraction(method):
    at = square()
    found = amplitudes(random_u(np.random.default_rng(0), at.dhkl), at, 0.0, method=method)
    np.testing.assert_allclose(found, np.eye(9)[[at.origin] * len(at.kt)], atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_many_thicknesses_are_each_of_them(method):
    at, depth = square(), np.array([0.0, 51.0, 300.0, 970.0])
    u = random_u(np.random.default_rng(0), at.dhkl)
    found = intensities(u, at, depth, method=method)
    assert found.shape == (4, len(at.kt), 9)
    for one, thickness in zip(found, depth, strict=True):
        np.testing.assert_allclose(one, intensities(u, at, float(thickness), method=method), atol=1e-11)


@given(u=st.complex_numbers(max_magnitude=0.2), tilt=st.floats(-30, 30), thickness=st.floats(0, 1000))
def test_two_beams_have_their_formula(u, tilt, thickness):
    """I_g = |U|^2 / (|U|^2 + (K s)^2) sin^2(pi t sqrt(|U|^2 + (K s)^2) / K), s the excitation error."""
    hkl = np.array([[0, 0, 0], [1, 0, 0]])
    at = geometry(hkl, np.array([[tilt, 3.0]]), cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)
    values = np.array([u.conjugate(), 0, u])
    half = at.excitation[0, 1] / 2
    root = np.sqrt(abs(u) ** 2 + half**2)
    wanted = abs(u) ** 2 / max(root**2, 1e-300) * np.sin(np.pi * thickness * root / at.k0) ** 2
    np.testing.assert_allclose(intensities(values, at, thickness)[0], [1 - wanted, wanted], atol=1e-10)


@given(seed=seeds, thickness=st.floats(10, 1000), shift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_the_origin_is_free(seed, thickness, shift):
    """Atoms moved by r: U_g exp(-2 pi i g.r), the same intensities."""
    at = square()
    u = random_u(np.random.default_rng(seed), at.dhkl)
    moved = u * np.exp(-2j * np.pi * at.dhkl[:, :2] @ np.array(shift))
    np.testing.assert_allclose(intensities(moved, at, thickness), intensities(u, at, thickness), atol=1e-10)


@given(seed=seeds, thickness=st.floats(10, 1000))
def test_the_inverted_crystal(seed, thickness):
    """U_-g in place of U_g: the pattern turned by 180 degrees, beam and tilt. A centrosymmetric crystal is its own."""
    at = square()
    u = random_u(np.random.default_rng(seed), at.dhkl)
    back = [int(np.flatnonzero((at.hkl == -h).all(1))[0]) for h in at.hkl]
    turned = [int(np.linalg.norm(at.kt + k, axis=1).argmin()) for k in at.kt]
    found = intensities(u[::-1], at, thickness)
    np.testing.assert_allclose(found[np.ix_(turned, back)], intensities(u, at, thickness), atol=1e-10)


@given(seed=seeds, thickness=st.floats(10, 1000))
def test_reciprocity_and_friedel(seed, thickness):
    """The direct beam does not tell the crystal from its inverse at all (reciprocity); two beams tell nothing."""
    at = square()
    u = random_u(np.random.default_rng(seed), at.dhkl)
    one, other = intensities(u, at, thickness), intensities(u.conj(), at, thickness)
    np.testing.assert_allclose(one[:, at.origin], other[:, at.origin], atol=1e-10)
    assert np.abs(one - other).max() > 1e-6  # many beams do tell, in the diffracted ones
    pair = geometry(
        np.array([[0, 0, 0], [1, 1, 0]]), np.array([[4.0, 2.0]]), cell=CUBIC, zone=(0, 0, 1), voltage_kv=80.0
    )
    v = random_u(np.random.default_rng(seed), pair.dhkl)
    np.testing.assert_allclose(intensities(v, pair, thickness), intensities(v.conj(), pair, thickness), atol=1e-12)


@given(thickness=st.floats(10, 1000))
def test_the_zone_axis_has_the_symmetry_of_the_crystal(thickness):
    """U that depends on |g| alone, as of one atom in a cubic cell: 4mm along [001], 2mm on [110], 6mm on [111]."""
    for zone, order in (((0, 0, 1), 8), ((1, 1, 0), 4), ((1, 1, 1), 12)):
        hkl = zone_beams(CUBIC, zone, 0.8)
        at = geometry(hkl, np.zeros((1, 2)), cell=CUBIC, zone=zone, voltage_kv=120.0)
        u = 0.15 * np.exp(-0.3 * np.sum(at.dhkl**2, 1)).astype(complex)
        found = intensities(u, at, thickness)[0]
        assert len(hkl) > order / 2
        length = np.sum(hkl**2, 1)
        for value in np.unique(length):
            same = length == value
            if np.ptp(np.sort(np.abs(hkl[same]), 1), axis=0).max() == 0:  # one form of faces
                np.testing.assert_allclose(found[same], found[same][0], atol=1e-12)


@given(reach=st.floats(0, 2000), x=st.floats(-1, 1))
def test_the_series_is_the_exponential(reach, x):
    from scipy.special import eval_chebyt

    c = series(np.array([reach]))[..., 0].ravel()
    terms = c * eval_chebyt(np.arange(len(c)), x)
    assert abs(terms[::2].sum() + 1j * terms[1::2].sum() - np.exp(1j * reach * x)) < 1e-11


@given(reach=st.lists(st.floats(0, 2000), min_size=1, max_size=3), most=st.floats(0, 5))
def test_the_coefficients_are_bessel_functions(reach, most):
    """SciPy's; those left out are below the tolerance, also where the polynomials grow."""
    from scipy.special import jv

    growth = most / (1 + max(reach))
    c = series(np.array(reach), 1e-12, growth)
    k = np.arange(2 * len(c))
    wanted = (2 - (k == 0))[:, None] * np.array([1, 1, -1, -1])[k % 4][:, None] * jv(k[:, None], np.array(reach))
    np.testing.assert_allclose(c.reshape(wanted.shape), wanted, rtol=0, atol=1e-11)
    rest = np.arange(len(k), len(k) + 100)
    assert np.all(np.abs(2 * jv(rest[:, None], np.array(reach))) * np.exp(rest * growth)[:, None] < 1e-11)


def of_few(which: str) -> Geometry:
    """Beams and tilts of which some have no opposite."""
    tilt, hkl = tilt_disc(3, 40.0)[0], shell_beams(CUBIC, (0, 0, 1), 9)
    if which == "tilts":
        tilt = np.vstack([tilt[::3] + 1, tilt[:9], tilt[3:6], -tilt[:2]])  # and some twice
    elif which == "beams":
        hkl = hkl[:-1]
    elif which == "higher zones":
        hkl = np.vstack([hkl, [[7, 0, 1], [-7, 0, -1]]])
    return geometry(hkl, tilt, cell=CUBIC, zone=(0, 0, 1), voltage_kv=120.0)


@pytest.mark.parametrize("which", ["all", "tilts", "beams", "higher zones"])
@pytest.mark.parametrize("real", [False, True])
def test_pairs_change_nothing(which, real):
    """The series with and without opposite beams and tilts against the eigenvectors of each tilt alone."""
    at = of_few(which)
    u = random_u(np.random.default_rng(5), at.dhkl, real=real)
    assert (beam_pairs(at) is None) == (which == "beams")
    if which != "beams":
        first, second = tilt_pairs(at, *beam_pairs(at))
        np.testing.assert_array_equal(np.unique(np.concatenate([first, second])), np.arange(len(at.kt)))
        pairs = {"all": 14, "higher zones": 0}.get(which)
        assert pairs is None or np.sum(first != second) == pairs
        assert np.all((first == second) | (np.abs(at.kt[first] + at.kt[second]).max(1) < 1e-12))
    depth = np.array([120.0, 400.0])
    for seen in (amplitudes, intensities):
        wanted = seen(u, at, depth, method="eigenvectors")
        np.testing.assert_allclose(seen(u, at, depth, method="chebyshev"), wanted, atol=1e-12)


@given(seed=seeds, real=st.booleans())
def test_standing_waves_are_another_basis(seed, real):
    """The same eigenvalues, from a matrix U that is real, and bounds around them."""
    at = square(13, 2)
    u = random_u(np.random.default_rng(seed), at.dhkl, real=real)
    matrix = structure_matrix(u, at)
    beams = beam_pairs(at)
    e, o = standing_diagonal(at.excitation, *beams, at.origin)
    own = standing_matrix(matrix.real if real else matrix, *beams, at.origin)
    h = len(beams[0]) + 1
    if real:
        both = np.zeros((2 * h, 2 * h))
        both[:h, :h], both[h:, h:] = own
        own = both
    kept = np.delete(np.arange(2 * h), h)  # there is no sine of 000
    low, high = spectrum_ends(matrix, at)
    for k in range(len(at.kt)):
        mixing = np.block([[np.diag(e[k]), 1j * np.diag(o[k])], [-1j * np.diag(o[k]), np.diag(e[k])]])
        found = np.linalg.eigvalsh((own + mixing)[np.ix_(kept, kept)])
        wanted = np.linalg.eigvalsh(matrix + np.diag(at.excitation[k]))
        np.testing.assert_allclose(found, wanted, atol=1e-12)
        assert low[k] <= wanted[0] + 1e-12 and high[k] >= wanted[-1] - 1e-12
    assert np.max(high - low) < np.ptp(at.excitation, axis=1).max() + np.ptp(np.linalg.eigvalsh(matrix))


def test_a_phase_in_radians():
    assert phase_from_thickness(300.0, 30.0) == pytest.approx(2 * np.pi * 300 / (2 * 30))


def test_the_choice():
    assert choose(97, 500.0) == choose(25, 200.0) == "chebyshev"
    assert choose(97, 500.0, paired=True) == choose(25, 200.0, real=True, paired=True) == "chebyshev"
    for paired in (False, True):  # a very thick slab: the eigenvectors do not mind
        assert choose(13, 100_000.0, paired=paired) == "eigenvectors"
    assert choose(13, 100_000.0, device="gpu") == "chebyshev"


def test_the_choice_changes_nothing():
    at = square(5, 1)
    u = random_u(np.random.default_rng(1), at.dhkl)
    depth = 3e5
    np.testing.assert_allclose(intensities(u, at, depth), intensities(u, at, depth, method="chebyshev"), atol=1e-7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"u": np.zeros(3, complex)}, "25 structure factors are needed"),
        ({"thickness": -1.0}, "not negative"),
        ({"thickness": np.array([1.0, np.inf])}, "finite"),
        ({"u": 1j * np.ones(25), "method": "eigenvectors"}, "absorb"),
    ],
)
def test_what_cannot_be_is_said(change, says):
    at = square(9)
    good = {"u": np.zeros(25, complex), "thickness": 100.0} | change
    with pytest.raises(ValueError, match=says):
        intensities(good.pop("u"), at, good.pop("thickness"), **good)
