"""Learned proposals: laws of the representation, the mixture of Student distributions against SciPy, what ships."""

from __future__ import annotations

from functools import cache
from importlib import resources

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlindex.crystal.extinctions import extinction_groups
from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import metric_determinant, q2_from_hkl, reciprocal_metric_from_cell
from mlindex.crystal.reflections import hkl_within, reference_hkl
from mlindex.learn import checkpoint, forest, variance
from mlindex.powder import proposals, proposals_train, propose
from mlindex.powder.dataset.entries import Entries
from mlindex.powder.lines import lines_from_q2
from tests.powder.patterns import CELLS, CU, measured

GROUPS = ("cP", "oP", "oP", "mP", "aP")


@cache
def untrained():
    """A model of five groups that knows nothing, yet has a place and a width for everything."""
    rng = np.random.default_rng(0)
    count = len(GROUPS)
    networks = variance.initialised(jax.random.key(0), count, proposals.INPUTS, proposals.OUTPUTS)
    x = rng.normal(size=(60, proposals.INPUTS)).astype(np.float32)
    y = rng.normal(size=(60, proposals.OUTPUTS))
    grown = [forest.grow(x, y, trees=6, share=0.5, smallest=5, seed=n) for n in range(count)]
    arrays = variance.arrays_of(networks)
    arrays |= {f"forests.{k}": v for k, v in forest.stacked(grown, proposals.OUTPUTS)._asdict().items()}
    arrays["input_centre"] = np.zeros((count, proposals.INPUTS), np.float32)
    arrays["input_scale"] = np.ones((count, proposals.INPUTS), np.float32)
    arrays["output_centre"] = np.tile(np.array([-3, -3, -3, 0.1, 0.1, 0.1, 3.5], np.float32), (count, 1))
    arrays["output_scale"] = np.tile(np.array([0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.4], np.float32), (count, 1))
    arrays["share"] = np.array([1, 0.75, 0.25, 1, 1], np.float32)
    return proposals.model_from_arrays(arrays, {"groups": list(GROUPS)})


def matrices(g):
    return np.asarray(g, float)[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]] * (0.5 + 0.5 * np.eye(3))


@pytest.mark.parametrize("name", BRAVAIS)
def test_outputs_give_the_metric_back(name):
    g = reciprocal_metric_from_cell(np.array(CELLS[name][0], float)).astype(np.float32)
    scale, lattice = jnp.float32(0.37), BRAVAIS[name]
    u = proposals.outputs_from_metric(jnp.asarray(g), scale, lattice.multiplicity)
    unit = gemmi.UnitCell(*CELLS[name][0])
    volume = np.exp(float(u[proposals.VOLUME])) * 0.37**-1.5
    assert volume == pytest.approx(unit.volume / lattice.multiplicity, rel=1e-4)
    star = unit.reciprocal()
    cosines = np.cos(np.deg2rad([star.alpha, star.beta, star.gamma]))
    np.testing.assert_allclose(u[3:6], cosines, atol=1e-5)
    free = np.zeros(proposals.OUTPUTS, bool)
    free[[*proposals.FREE[lattice.system], proposals.VOLUME]] = True
    alone = jnp.where(free, u, 0.123)  # what is not free follows from the rest
    back = proposals.metric_from_outputs(alone, scale, jnp.asarray(proposals.spreads(name)), lattice.multiplicity)
    np.testing.assert_allclose(back, g, atol=2e-5 * g[:3].max())


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(BRAVAIS)))
def test_any_outputs_give_a_cell_of_the_lattice_at_its_volume(seed, name):
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(64, proposals.OUTPUTS)) * [2, 2, 2, 0.8, 0.8, 0.8, 1]
    u[:, 6] -= 0.5 * u[:, :3].sum(1) - 0.5
    lattice = BRAVAIS[name]
    g = np.asarray(
        proposals.metric_from_outputs(
            jnp.asarray(u, jnp.float32), jnp.full(64, 0.2, jnp.float32), jnp.asarray(proposals.spreads(name)), 2.0
        )
    )
    assert np.linalg.eigvalsh(matrices(g))[:, 0].min() > 0
    system = SYSTEMS[lattice.system]
    np.testing.assert_allclose(g @ system.project.T @ system.embed.T, g, atol=1e-5 * g[:, :3].max())
    found = -0.5 * np.log(metric_determinant(g.astype(float))) - np.log(2.0) + 1.5 * np.log(0.2)
    plain = found - u[:, 6]
    near = np.abs(plain) < 1e-3
    assert near.any() and (near | (np.abs(plain) < 8)).all()


def test_candidates_are_counted_dealt_and_seeded():
    lines = lines_from_q2(measured("oP", 20), CU)
    counts = {"oP": (40, 8), "mP": (5, 0), "aP": (0, 100), "hR": (9, 9)}
    found = proposals.propose(lines, counts, 3, untrained())
    assert {k: len(v) for k, v in found.items()} == {"oP": 48, "mP": 5, "aP": 6, "hR": 0}
    for bravais, g in found.items():
        assert g.dtype == np.float32
        if len(g):
            assert np.linalg.eigvalsh(matrices(g))[:, 0].min() > 0
            system = SYSTEMS[BRAVAIS[bravais].system]
            np.testing.assert_allclose(g @ system.project.T @ system.embed.T, g, atol=1e-5 * g[:, :3].max())
    again, other = (proposals.propose(lines, counts, seed, untrained()) for seed in (3, 4))
    assert all(np.array_equal(found[k], again[k]) for k in counts)
    assert not np.array_equal(found["oP"], other["oP"])
    assert len(np.unique(found["oP"], axis=0)) == 48


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_candidates_scale_with_the_lines(factor):
    q2 = measured("mP", 20)
    small, large = (
        proposals.propose(lines_from_q2(x, None), {"mP": (20, 4)}, 0, untrained())["mP"] for x in (q2, q2 * factor)
    )
    np.testing.assert_allclose(large, factor * small, rtol=2e-3)


def test_padding_and_lines_beyond_the_twentieth_change_nothing():
    q2 = np.sort(measured("aP", 25))
    said = [proposals.opinion(lines_from_q2(q2[:n], CU), untrained()) for n in (20, 25)]
    np.testing.assert_array_equal(said[0].location, said[1].location)
    rng = np.random.default_rng(0)
    short = np.pad(q2[:9], (0, 11)).astype(np.float32)
    garbage = np.where(np.arange(20) < 9, short, rng.uniform(0, 9, 20)).astype(np.float32)
    weight = (np.arange(20) < 9).astype(np.float32)
    first, second = (proposals.inputs_from_q2(x, weight)[0] for x in (short, garbage))
    np.testing.assert_array_equal(first, second)
    assert np.all(np.isfinite(first))
    with pytest.raises(ValueError, match="without lines"):
        proposals.opinion(lines_from_q2(np.empty(0), CU), untrained())


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_quantiles_are_those_of_the_mixture(seed):
    rng = np.random.default_rng(seed)
    share, location = rng.dirichlet(np.ones(3)), rng.normal(size=3)
    width, freedom = rng.uniform(0.1, 1, 3), rng.uniform(3, 30, 3)
    levels = np.array([0.01, 0.3, 0.5, 0.99])
    found = proposals.Mixture(share, location, width, freedom).quantiles(levels)
    below = sum(s * stats.t.cdf(found, f, x, w) for s, x, w, f in zip(share, location, width, freedom, strict=True))
    np.testing.assert_allclose(below, levels, atol=2e-3)


def test_the_density_is_the_mixture_of_students():
    lines = lines_from_q2(measured("oP", 20), CU)
    said = proposals.opinion(lines, untrained())
    g = proposals.propose(lines, {"oP": (30, 0)}, 0, untrained())["oP"]
    found = proposals.log_density(said, "oP", g, (0, 6))
    u = np.asarray(proposals.outputs_from_metric(jnp.asarray(g), jnp.full(30, said.scale, jnp.float32), 1))
    exact = np.zeros(30)
    for group, share in ((1, 0.75), (2, 0.25)):
        part = [
            stats.t.pdf(u[:, k], said.freedom[group, k], said.location[group, k], said.width[group, k]) for k in (0, 6)
        ]
        exact += share * part[0] * part[1]
    assert np.ptp(found - np.log(exact)) < 0.1  # the constants of the two groups differ a little


def test_a_narrowed_window_is_part_of_the_window():
    lines = lines_from_q2(measured("mP", 20), CU)
    said = proposals.opinion(lines, untrained())
    window = propose.volume_window(lines, "mP")
    wide, tight = (proposals.narrowed(window, said, "mP", c) for c in (0.999, 0.5))
    assert window.low <= wide.low <= tight.low and tight.high <= wide.high <= window.high


def crystals(name, count, seed=0):
    """Entries of one lattice: its cell with edges changed at random, all lines observable; two of three to learn."""
    rng = np.random.default_rng(seed)
    lattice = BRAVAIS[name]
    system = SYSTEMS[lattice.system]
    cells = np.array(CELLS[name][0]) * np.concatenate([rng.uniform(0.7, 1.4, (count, 3)), np.ones((count, 3))], 1)
    g = reciprocal_metric_from_cell(cells) @ system.project.T @ system.embed.T
    lists = [hkl_within(row, name, 8 * float(np.linalg.det(matrices(row[None])[0])) ** (1 / 3)) for row in g]
    text = np.array([f"{name}{n}" for n in range(count)])
    last = np.array([float(q2_from_hkl(row, hkl[-1:])[0]) for row, hkl in zip(g, lists, strict=True)])
    symbol = np.repeat(extinction_groups(name, reference_hkl(name, 150)).names[0], count)
    return Entries(
        uid=text,
        family=text,
        set=np.array(["train", "train", "validation"])[np.arange(count) % 3],
        bravais=np.repeat(name, count),
        symbol=symbol,
        extinction=symbol,
        g=g,
        known=last,
        complete=last,
        first=np.concatenate([[0], np.cumsum([len(hkl) for hkl in lists])]),
        hkl=np.concatenate(lists).astype(np.int16),
        observable=np.ones(sum(len(hkl) for hkl in lists), bool),
    )


def test_training_makes_a_model_that_can_be_stored(tmp_path):
    entries = crystals("hP", 60)
    arrays, card = proposals_train.train(
        entries, minutes=2.0, seed=1, cycles=1, steps=50, pool=120, trees=5, progress=lambda text: None
    )
    assert card["groups"] == ["hP"] and card["entries"] == [40] and card["steps"] == 100
    assert card["data_sha256"] == entries.sha256() and set(card["validation"]) == {"hP"}
    checkpoint.save(tmp_path / "model.safetensors", arrays, card)
    model = proposals.load(tmp_path / "model.safetensors")
    lines = lines_from_q2(measured("hP", 20), CU)
    found = proposals.propose(lines, {"hP": (16, 5)}, 0, model)["hP"]
    assert found.shape == (21, 6) and np.linalg.eigvalsh(matrices(found))[:, 0].min() > 0
    # single trees have seen a hundred lists: their volumes are near those of such crystals, not anywhere
    volume = 1 / np.sqrt(np.linalg.det(matrices(found[16:])))
    true = gemmi.UnitCell(*CELLS["hP"][0]).volume
    assert np.all(np.abs(np.log(volume / true)) < 1.5)


def test_errors_are_mixed_in_their_shares():
    errors = proposals_train.mixed_errors(200)
    assert np.sum(errors.missing > 0) == 60 and np.sum(errors.serial[1] > 0) == 40
    assert np.all((errors.sigma > 0) != (errors.serial[0] > 0))


def test_what_ships_is_small_and_says_where_it_comes_from():
    with resources.as_file(resources.files("mlindex.models") / proposals.STORED) as path:
        assert path.stat().st_size < 10 * 2**20
    card = proposals.shipped().card
    assert {"data_sha256", "seed", "set", "cpu_seconds", "validation", "command"} <= set(card)
    assert set(proposals.shipped().bravais) == set(BRAVAIS) and card["set"] == "train"
    inside = np.array([v["inside99"] for v in card["validation"].values()])
    assert inside.mean() > 0.95


def test_the_shipped_networks_know_the_volume_better_than_the_window():
    shares = []
    for name in BRAVAIS:
        lines = lines_from_q2(measured(name, 20), CU)
        said = proposals.opinion(lines)
        true = gemmi.UnitCell(*CELLS[name][0]).volume / BRAVAIS[name].multiplicity
        low, high = proposals.volume_quantiles(said, name, np.array([0.0005, 0.9995]))
        assert low < true < high, name
        window = propose.volume_window(lines, name)
        part = proposals.narrowed(window, said, name, 0.99)
        shares.append(np.log(part.high / part.low) / np.log(window.high / window.low))
    # together: lists that show all of their lines, as these do, may be unlike those of the known crystals
    assert np.mean(shares) < 0.8
