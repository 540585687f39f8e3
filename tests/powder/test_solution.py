"""What is reported of a solution: a cell and indices that belong together, uncertainties, ambiguous sets."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import reciprocal_metric_from_cell, transform_metric
from mlindex.powder import judge
from mlindex.powder.lines import lines_from_q2
from mlindex.powder.ranking import judged
from mlindex.powder.search import by_posterior
from mlindex.powder.solution import ambiguous_sets, cell_uncertainty, same_positions, solutions
from tests.powder.patterns import CELLS, CU, measured, positions, q2_from_tth, tth_from_q2

FREE = {  # which of a, b, c, alpha, beta, gamma a lattice system leaves free
    "cubic": "111000",
    "tetragonal": "111000",
    "hexagonal": "111000",
    "rhombohedral": "111000",
    "orthorhombic": "111000",
    "monoclinic": "111010",
    "triclinic": "111111",
}


def metric(cell):
    return reciprocal_metric_from_cell(np.array(cell, float))


def solution_of(name, lines, g, **options):
    (found,) = solutions(judged(lines, [(name, g)], **{"fit_zero": False, **options}), lines, 1)
    return found


@pytest.mark.parametrize("fit_zero", [False, True])
@pytest.mark.parametrize("name", BRAVAIS)
def test_cell_and_indices_give_the_positions(name, fit_zero):
    lines = lines_from_q2(measured(name, 25, zero=0.03 if fit_zero else 0), CU)
    found = solution_of(name, lines, metric(CELLS[name][0]), fit_zero=fit_zero)
    unit = gemmi.UnitCell(*found.cell)
    q2 = np.array([unit.calculate_1_d2(h) for h in found.hkl.tolist()])
    np.testing.assert_allclose(q2, found.q2_calc, rtol=1e-6)
    operations = gemmi.SpaceGroup(CELLS[name][1]).operations()
    assert not any(operations.is_systematically_absent(h) for h in found.hkl.tolist())
    tth_error = (np.sqrt(lines.q2) - np.sqrt(q2)) / lines.w - (found.zero_shift if fit_zero else 0.0)
    assert np.abs(tth_error[found.indexed]).max() < 0.03 and found.indexed.sum() >= 23
    assert found.volume == pytest.approx(unit.volume, rel=1e-6)
    free = np.array([c == "1" for c in FREE[BRAVAIS[name].system]])
    assert (found.cell_esd[free] > 0).all() and (found.cell_esd[~free] == 0).all()
    np.testing.assert_allclose(
        found.cell[3:][~free[3:]],
        [120.0 if name[0] == "h" and i == 2 else 90.0 for i in np.flatnonzero(~free[3:])],
        atol=1e-6,
    )
    assert np.isnan(found.zero_shift) != fit_zero and np.isnan(found.zero_shift_esd) != fit_zero
    assert gemmi.UnitCell(*found.niggli).volume == pytest.approx(unit.volume / BRAVAIS[name].multiplicity, rel=1e-6)
    reduced = gemmi.GruberVector(unit, BRAVAIS[name].centring if name != "oS" else "C", True)
    reduced.niggli_reduce(1e-4)
    expected = sorted(reduced.cell_parameters()[:3])
    np.testing.assert_allclose(sorted(found.niggli[:3]), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["cP", "oP", "mP", "aP"])
def test_a_zero_shift_is_in_degrees_at_any_wavelength(name):
    tth = tth_from_q2(measured(name, 25), CU)
    f20 = []
    for squeezed in (1.0, 12.0):  # 1.54 and 0.128 angstrom: the same lines at angles about so many times smaller
        wavelength = CU / squeezed
        angles = tth_from_q2(q2_from_tth(tth, CU), wavelength) + 0.03 / squeezed
        lines = lines_from_q2(q2_from_tth(angles, wavelength), wavelength)
        found = solution_of(name, lines, metric(CELLS[name][0]), fit_zero=True)
        assert found.zero_shift == pytest.approx(0.03 / squeezed, abs=max(4 * found.zero_shift_esd, 1e-4 / squeezed))
        assert found.zero_shift_esd < 0.01 / squeezed
        difference = angles - found.zero_shift - tth_from_q2(found.q2_calc, wavelength)
        first = found.indexed & (np.cumsum(found.indexed) <= 20)
        f20.append(found.f20 * np.abs(difference[first]).mean())  # F20 is in degrees
    assert f20[0] == pytest.approx(f20[1], rel=0.05)


@pytest.mark.parametrize(
    ("name", "shuffled"),
    [
        ("oP", lambda a, b, c, al, be, ga: (c, a, b, 90, 90, 90)),
        ("mP", lambda a, b, c, al, be, ga: (c, b, a, 90, be, 90)),
        ("mP", lambda a, b, c, al, be, ga: (a, b, c, 90, 180 - be, 90)),
    ],
)
def test_every_description_is_reported_in_the_standard_setting(name, shuffled):
    lines = lines_from_q2(measured(name, 25), CU)
    one = solution_of(name, lines, metric(CELLS[name][0]))
    other = solution_of(name, lines, metric(shuffled(*CELLS[name][0])))
    np.testing.assert_allclose(one.cell, other.cell, rtol=1e-6)
    np.testing.assert_allclose(one.cell_esd, other.cell_esd, rtol=1e-3)
    np.testing.assert_allclose(one.q2_calc, other.q2_calc, rtol=1e-7)


@pytest.mark.parametrize(("group", "fitted"), [("P 1 21/c 1", "P 1 21/a 1"), ("P 1 21/a 1", "P 1 21/c 1")])
def test_the_space_group_is_in_the_axes_of_the_cell(group, fitted):
    """Fitted with a and c exchanged, where the glide is along another axis; no indexed hkl may be extinct (gemmi)."""
    a, b, c, _, beta, _ = cell = CELLS["mP"][0]
    lines = lines_from_q2(positions(cell, group, 30, 0.4), CU)
    (ranked,) = judged(lines, [("mP", metric((c, b, a, 90, beta, 90)))], fit_zero=False)
    assert ranked.space_group == fitted
    (found,) = solutions([ranked], lines, 1)
    operations = gemmi.find_spacegroup_by_name(found.space_group).operations()
    assert found.space_group == group and found.indexed.all()
    assert not any(operations.is_systematically_absent(h) for h in found.hkl.tolist())


@pytest.mark.parametrize("zero", [0.05, 0.1])
@pytest.mark.parametrize(("name", "n"), [("cF", 8), ("hP", 14), ("oP", 30)])
def test_a_shift_does_not_draw_the_cell_by_its_own_uncertainty(name, n, zero):
    tth = tth_from_q2(positions(*CELLS[name], n, 0.25))
    rng = np.random.default_rng(7)
    pulls = []
    for _ in range(60):
        lines = lines_from_q2(q2_from_tth(tth + zero + rng.normal(0, 0.01, n)), CU)
        found = solution_of(name, lines, metric(CELLS[name][0]), fit_zero=True, zero=zero)
        pulls.append(
            [(found.cell[0] - CELLS[name][0][0]) / found.cell_esd[0], (found.zero_shift - zero) / found.zero_shift_esd]
        )
    assert np.abs(np.mean(pulls, 0)).max() < 0.8, np.mean(pulls, 0)


def test_uncertainty_of_a_cell_by_hand():
    lines = lines_from_q2(measured("cP", 20), CU)
    fit = judge.fit_cell(lines, metric(CELLS["cP"][0]), "cP")
    # a = g^(-1/2), so da = a^3 / 2 dg
    expected = 0.5 * fit.g[0] ** -1.5 * np.sqrt(fit.covariance[0, 0])
    np.testing.assert_allclose(cell_uncertainty(fit, np.eye(3)), [expected] * 3 + [0] * 3, rtol=1e-4)
    fit = judge.fit_cell(lines_from_q2(measured("mP", 30), CU), metric(CELLS["mP"][0]), "mP")
    # changing the sign of two axes changes beta to 180 - beta, and no uncertainty
    np.testing.assert_allclose(
        cell_uncertainty(fit, np.diag([1.0, -1.0, -1.0])), cell_uncertainty(fit, np.eye(3)), rtol=1e-4
    )


def pair(lines, *described):
    fits = [judge.fit_cell(lines, metric(cell), bravais) for cell, bravais in described]
    assert all(fit is not None for fit in fits)
    return fits


# Lattices of different shape with the same positions. cI and tP: of three numbers with an even sum two have the same
# parity, so x^2 + y^2 + z^2 = 2 u^2 + 2 v^2 + 4 w^2. hP and oP: what x^2 + x y + y^2 represents, u^2 + 3 v^2 does.
# A. D. Mighell & A. Santoro, J. Appl. Cryst. 8 (1975) 372.
A, H, C = 10.467, 8.129, 6.731
AMBIGUOUS = [
    (("cI", (A, A, A, 90, 90, 90), "I m -3 m"), ("tP", (A / 2**0.5, A / 2**0.5, A / 2, 90, 90, 90), "P 4/m m m")),
    (("hP", (H, H, C, 90, 90, 120), "P 6/m m m"), ("oP", (H * 3**0.5 / 2, H / 2, C, 90, 90, 90), "P m m m")),
]


@pytest.mark.parametrize(("one", "other"), AMBIGUOUS)
def test_lattices_with_the_same_positions_are_one_set(one, other):
    np.testing.assert_allclose(positions(one[1], one[2], 25), positions(other[1], other[2], 25), rtol=1e-9)
    lines = lines_from_q2(positions(one[1], one[2], 25, 0.06), CU)
    a, b = pair(lines, (one[1], one[0]), (other[1], other[0]))
    (alone,) = pair(lines, (np.array(one[1]) * [2, 2, 2, 1, 1, 1], one[0]))  # has twice the lines
    assert same_positions(a, b, lines) and same_positions(b, a, lines)
    assert ambiguous_sets([a, b], lines) == [1, 1]
    assert ambiguous_sets([a, alone, b], lines) == [1, 0, 1]
    ranked = judged(lines, [(one[0], metric(one[1])), (other[0], metric(other[1]))], fit_zero=False)
    assert [s.ambiguity for s in solutions(ranked, lines, 2)] == [1, 1]


def test_other_lattices_stay_alone():
    lines = lines_from_q2(measured("oP", 25), CU)
    cell = np.array(CELLS["oP"][0], float)
    a, b = pair(lines, (cell, "oP"), (cell * [1, 1, 2, 1, 1, 1], "oP"))
    assert ambiguous_sets([a, b], lines) == [0, 0] and ambiguous_sets([], lines) == []


def test_probabilities_are_a_distribution_and_follow_the_rank():
    lines = lines_from_q2(measured("oP", 25), CU)
    cell = np.array(CELLS["oP"][0], float)
    described = [("oP", metric(cell)), ("mP", metric(cell)), ("oP", metric(cell * [1, 1, 2, 1, 1, 1]))]
    ranked, none = by_posterior(judged(lines, described, fit_zero=False), lines)
    found = solutions(ranked, lines, 3)
    p = np.array([s.probability for s in found])
    assert (np.diff(p) <= 0).all() and abs(p.sum() + none - 1) < 1e-9 and found[0].bravais == "oP"
    assert [s.probability for s in solutions(ranked, lines, 1)] == [p[0]]
    assert solutions([], lines, 5) == []


def test_primitive_and_centred_descriptions_agree():
    """The same fit, told in the primitive axes of a centred lattice, has the same reduced cell."""
    lines = lines_from_q2(measured("mC", 25), CU)
    centred = solution_of("mC", lines, metric(CELLS["mC"][0]))
    primitive = solution_of("aP", lines, transform_metric(metric(CELLS["mC"][0]), BRAVAIS["mC"].primitive))
    np.testing.assert_allclose(centred.niggli, primitive.niggli, rtol=3e-3)
