"""Sampled lists: exact without errors, and the laws of every error, of the perturbed cells and of the acceptance."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS, metric_from_free
from mlindex.crystal.metric import (
    cell_from_reciprocal_metric,
    matrix_from_metric,
    q2_from_hkl,
    reciprocal_metric_from_cell,
)
from mlindex.crystal.reflections import hkl_within, line_key
from mlindex.crystal.settings import standard_setting
from mlindex.powder.dataset import Errors, Sample, Table, sample, table
from mlindex.powder.dataset.acceptance import SEPARATION, acceptance, first_shares, fitted_acceptance, with_odds
from mlindex.powder.dataset.augment import STRANGERS, Lattice
from mlindex.powder.dataset.observable import q2_from_tth, tth_from_q2
from mlindex.powder.dataset.perturb import (
    free_from_unbounded,
    is_standard,
    perturbed,
    spread,
    unbounded_from_free,
)
from mlindex.records import InputError
from tests.powder.dataset.crystals import stored_entries

LATTICES = ("cP", "hR", "oS", "mP", "aP")
COUNT = 3000


@cache
def entries():
    """All stored entries, as if all were for training."""
    stored = stored_entries()
    return replace(stored, set=np.full(len(stored), "train"))


@cache
def table_of(bravais: str) -> Table:
    return table(entries(), bravais, "train")


def drawn(seed: int = 0, errors: Errors | None = None, *, perturb: float = 0.0, resample: bool = False) -> Sample:
    """`COUNT` lists of monoclinic crystals; one program for all tests that do not resample."""
    found = sample(
        jax.random.key(seed), table_of("mP"), errors or Errors(), count=COUNT, perturb=perturb, resample=resample
    )
    return jax.tree.map(np.asarray, found)


def positions(found: Sample, bravais: str = "mP") -> np.ndarray:
    """q2 (b, n) of the lines in the sampled cells, without errors."""
    g = metric_from_free(np.asarray(found.x, float), BRAVAIS[bravais].system)
    return np.array([q2_from_hkl(row, hkl) for row, hkl in zip(g, found.hkl, strict=True)])


@pytest.mark.parametrize("bravais", LATTICES)
def test_without_errors_a_list_is_that_of_its_entry(bravais: str):
    known = table_of(bravais)
    rows = jnp.arange(len(known.weight))
    found = sample(
        jax.random.key(0), known, Errors(), count=len(rows), lines=20, perturb=0.0, resample=False, rows=rows
    )
    np.testing.assert_array_equal(found.entry, rows)
    np.testing.assert_allclose(found.x, known.x, rtol=1e-6)
    for i, row in enumerate(np.asarray(known.row)):
        hkl, observable = entries().lines(int(row))
        hkl = hkl[observable][:20]
        n = len(hkl)
        np.testing.assert_array_equal(found.weight[i], np.arange(20) < n)
        np.testing.assert_array_equal(found.genuine[i], np.arange(20) < n)
        np.testing.assert_array_equal(np.asarray(found.hkl)[i, :n], hkl)
        np.testing.assert_allclose(found.q2[i, :n], q2_from_hkl(entries().g[row], hkl), rtol=2e-6)
        assert not np.any(np.asarray(found.q2)[i, n:])


def test_lists_of_perturbed_cells_are_ascending_and_of_the_cell():
    found = drawn(1, perturb=0.2)
    assert not np.allclose(found.x, np.asarray(table_of("mP").x)[found.entry])
    kept = found.weight > 0
    np.testing.assert_allclose(found.q2[kept], positions(found)[kept], rtol=2e-5)
    assert np.all((np.diff(found.q2, axis=1) > 0) | ~kept[:, 1:])
    assert np.mean(kept.sum(1)) > 0.9 * np.mean(drawn(1).weight.sum(1))


def test_lists_are_complete_in_perturbed_cells():
    known = table_of("aP")
    found = jax.tree.map(np.asarray, sample(jax.random.key(2), known, Errors(), count=60, perturb=0.3))
    system = BRAVAIS["aP"].system
    for x, q2, weight, entry in zip(found.x, found.q2, found.weight, found.entry, strict=True):
        last = float(q2[: int(weight.sum())].max(initial=0.0))
        lines = hkl_within(metric_from_free(x.astype(float), system), "aP", last)
        listed = np.asarray(known.hkl[entry], np.int64)[np.asarray(known.valid[entry])]
        keys = set(map(tuple, line_key(listed, system).tolist()))
        assert set(map(tuple, line_key(lines, system).tolist())) <= keys


@pytest.mark.parametrize("bravais", ["tP", "hP", "oP", "oS", "mP", "mC", "aP"])
def test_perturbed_cells_are_positive_and_in_the_standard_setting(bravais: str):
    x = table_of(bravais).x
    x = jnp.tile(x, (12, 1))
    near = perturbed(jax.random.key(3), x, jnp.asarray(spread(np.asarray(x, float))), 0.2, bravais)
    assert np.mean(np.any(np.asarray(near != x), axis=1)) > 0.6
    g = metric_from_free(np.asarray(near, float), BRAVAIS[bravais].system)
    assert np.linalg.eigvalsh(matrix_from_metric(g)).min() > 0
    np.testing.assert_allclose(g @ (SYSTEMS[BRAVAIS[bravais].system].project.T), near, rtol=1e-6)
    for cell in cell_from_reciprocal_metric(g):
        standard = reciprocal_metric_from_cell(standard_setting(cell, bravais)[0])
        np.testing.assert_allclose(
            standard, reciprocal_metric_from_cell(cell), atol=2e-4 * standard[:3].max(), err_msg=str(cell)
        )


def test_cells_in_other_settings_are_not_standard():
    cells = {
        "oP": (5.0, 4.0, 6.0, 90, 90, 90),
        "oS": (5.0, 4.0, 6.0, 90, 90, 90),
        "mP": (5.0, 6.0, 5.5, 90, 130, 90),
        "mC": (9.0, 6.0, 5.5, 90, 130, 90),  # a + 2c makes a less oblique cell; at 125 degrees it does not
        "aP": (5.0, 6.0, 7.0, 80, 85, 95),
    }
    for bravais, cell in cells.items():
        project = SYSTEMS[BRAVAIS[bravais].system].project
        for trial, expected in ((cell, False), (standard_setting(cell, bravais)[0], True)):
            x = jnp.asarray(project @ reciprocal_metric_from_cell(trial), jnp.float32)
            assert bool(is_standard(x, bravais)) is expected, (bravais, trial)


@given(st.integers(0, 10_000), st.sampled_from(["cP", "tP", "oP", "mP", "aP"]))
@settings(max_examples=20)
def test_unbounded_numbers_give_the_parameters_back(seed: int, bravais: str):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(3, BRAVAIS[bravais].n_free)) * 0.8 - 3
    y[:, 3:] = (y[:, 3:] + 3) / 2
    x = free_from_unbounded(y)
    assert np.all(x[:, : min(x.shape[1], 3)] > 0)
    np.testing.assert_allclose(unbounded_from_free(x), y, atol=1e-9)


def test_the_spread_is_that_of_the_cells():
    rng = np.random.default_rng(0)
    mixing = np.array([[0.3, 0, 0], [0.2, 0.1, 0], [-0.1, 0.05, 0.2]])
    x = np.exp(rng.normal(size=(20_000, 3)) @ mixing.T - 4)
    steps = spread(x)
    np.testing.assert_allclose(steps @ steps.T, mixing @ mixing.T, atol=3e-3)


def test_errors_of_the_angles_have_their_width():
    found = drawn(4, Errors(sigma=0.01))
    kept = found.weight > 0
    difference = (tth_from_q2(found.q2.astype(float)) - tth_from_q2(positions(found)))[kept]
    assert np.std(difference) == pytest.approx(0.01, rel=0.03)
    assert abs(np.mean(difference)) < 3e-4


def test_a_zero_shift_is_one_for_a_list_and_uniform():
    found = drawn(5, Errors(zero=0.05))
    shift = np.where(found.weight > 0, tth_from_q2(found.q2.astype(float)) - tth_from_q2(positions(found)), np.nan)
    mean = np.nanmean(shift, axis=1)
    assert np.nanmax(np.abs(shift - mean[:, None])) < 1e-4
    assert np.abs(mean).max() <= 0.0501
    assert np.std(mean) == pytest.approx(0.05 / np.sqrt(3), rel=0.05)


def test_serial_errors_grow_with_q2():
    found = drawn(6, Errors(serial=(1e-4, 6e-4)))
    kept = found.weight > 0
    true = positions(found)[kept]
    assert np.std((found.q2[kept] - true) / (1e-4 + 6e-4 * true)) == pytest.approx(1, rel=0.03)


def test_missing_lines_are_the_share():
    """A list ends with its twentieth line, which is there by choice of the end: of the lines before it the mean share
    over the lists is unbiased, that of their sum is not (J. B. S. Haldane, Biometrika 33 (1945) 222)."""
    found = drawn(7, Errors(missing=0.3))
    known = table_of("mP")
    shares = []
    for q2, weight, entry in zip(found.q2, found.weight, found.entry, strict=True):
        i = int(known.row[entry])
        hkl, observable = entries().lines(i)
        there = int((q2_from_hkl(entries().g[i], hkl[observable]) <= q2.max() * (1 + 1e-5)).sum())
        shares.append((int(weight.sum()) - 1) / (there - 1))
    # a share has a standard deviation of 0.09, their mean of 0.0016
    assert np.mean(shares) == pytest.approx(0.7, abs=0.006)


def test_impurities_have_their_number_and_are_clear_of_the_lines():
    found = drawn(8, Errors(impurities=2.0))
    kept = found.weight > 0
    strange = kept & ~found.genuine
    number = strange.sum(1)
    assert number.max() <= STRANGERS
    assert 1.75 < number.mean() <= 2.05
    assert np.mean(number == 0) == pytest.approx(np.exp(-2), abs=0.05)
    assert not np.any(found.hkl[strange])
    tth = tth_from_q2(found.q2.astype(float))
    apart = np.abs(tth[:, :, None] - tth[:, None, :])
    mixed = strange[:, :, None] & (found.genuine & kept)[:, None, :]
    assert apart[mixed].min() > 0.0695


def test_errors_may_differ_from_sample_to_sample():
    sigma = np.where(np.arange(COUNT) % 2, 0.02, 0.0)
    found = drawn(9, Errors(sigma=sigma, serial=(np.zeros(COUNT), 0.0)))
    difference = np.abs(tth_from_q2(found.q2.astype(float)) - tth_from_q2(positions(found))) * found.weight
    assert difference[::2].max() < 1e-4
    assert difference[1::2].max() > 0.02


def test_samples_depend_on_the_key_alone():
    first, again, other = (drawn(seed, perturb=0.2) for seed in (10, 10, 11))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.mean(first.q2 == other.q2) < 0.01


def test_one_program_serves_every_size_of_the_errors():
    before = sample._cache_size()
    drawn(0)
    programs = sample._cache_size()
    drawn(1, Errors(0.01, 0.05, 0.2, 2.0, (1e-4, 6e-4)), perturb=0.1)
    assert sample._cache_size() - programs <= 1  # numbers and tuples of numbers trace alike
    assert programs - before <= 1


def test_families_count_alike():
    known = table_of("mP")._replace(weight=jnp.asarray([1.0, 0.5, 0.5] + [0.0] * (len(table_of("mP").weight) - 3)))
    found = sample(jax.random.key(0), known, Errors(), count=COUNT, perturb=0.0, resample=False)
    share = np.bincount(found.entry, minlength=4) / COUNT
    np.testing.assert_allclose(share[:3], [0.5, 0.25, 0.25], atol=0.03)
    assert share[3:].sum() == 0
    doubled = entries().take(np.array([*range(len(entries())), *range(len(entries()))]))
    np.testing.assert_allclose(table(doubled, "mP", "train").weight, 0.5 / np.array([*_family_sizes()] * 2))


def _family_sizes() -> list[int]:
    family = entries().family[entries().bravais == "mP"]
    return [int((family == f).sum()) for f in family]


def test_resampled_lines_are_lines_of_the_entry_and_apart():
    found = drawn(12, resample=True)
    known = table_of("mP")
    kept = found.weight > 0
    np.testing.assert_allclose(found.q2[kept], positions(found)[kept], rtol=2e-6)
    tth = tth_from_q2(found.q2.astype(float))
    assert np.diff(tth, axis=1)[kept[:, 1:]].min() > SEPARATION - 1e-4
    truth = drawn(12)
    differs = np.any(found.q2 != truth.q2, axis=1)
    assert np.mean(differs) == pytest.approx(0.5, abs=0.06)
    listed = np.asarray(known.hkl)
    for i in range(50):
        rows = {tuple(h) for h in listed[found.entry[i]].tolist()}
        assert all(tuple(h) in rows for h in found.hkl[i][kept[i]].tolist())


@given(
    st.tuples(st.floats(-1, 2), st.floats(-5, 5), st.floats(1, 1e5)),
    st.floats(0, 1),
    st.floats(0, 2),
    st.floats(0.01, 100),
)
def test_acceptance_is_a_probability(law: tuple[float, float, float], gap: float, q2: float, factor: float):
    rho = acceptance((*law, 0.5), np.array([0.0, gap, 2 * gap]), np.full(3, q2))
    assert np.all((rho >= 0) & (rho <= 1) & (np.diff(rho, prepend=0.0) >= 0))
    moved = with_odds(rho, factor)
    assert np.all((moved >= 0) & (moved <= 1))
    inside = (rho > 0.01) & (rho < 0.99)
    np.testing.assert_allclose(moved[inside] * (1 - rho[inside]), factor * rho[inside] * (1 - moved[inside]))


def test_the_fit_finds_the_law_of_simulated_lines():
    rng = np.random.default_rng(1)
    law = (0.85, -1.2, 900.0, 0.8)
    crystal = np.repeat(np.arange(400), 60)
    gap, q2 = rng.exponential(2e-3, crystal.size), rng.uniform(0, 0.3, crystal.size)
    level = np.exp(law[3] * rng.normal(size=400))[crystal]
    seen = rng.uniform(size=crystal.size) < with_odds(acceptance(law, gap, q2), level)
    found = fitted_acceptance(gap, q2, seen, crystal)
    where = np.linspace(0, 0.3, 7)
    for d in (3e-4, 1e-3, 5e-3):
        np.testing.assert_allclose(
            acceptance(found, np.full(7, d), where), acceptance(law, np.full(7, d), where), atol=0.04
        )
    assert found[3] == pytest.approx(0.8, abs=0.12)


def test_first_positions_are_shares():
    shares = first_shares(np.array([0, 0, 1, 3, 99]))
    np.testing.assert_allclose(shares[[0, 1, 2, 3, -2, -1]], [0.4, 0.6, 0.6, 0.8, 0.8, 1.0])
    assert first_shares(np.zeros(0, np.int64))[0] == 1


def test_a_lattice_without_entries_is_told():
    with pytest.raises(InputError, match="no entry of the lattice cF is in the set test"):
        table(entries(), "cF", "test")
    assert Lattice("mP") == "mP"


def test_angles_and_q2_are_inverse():
    tth = np.linspace(1, 170, 50)
    np.testing.assert_allclose(tth_from_q2(q2_from_tth(tth)), tth, rtol=1e-9)
