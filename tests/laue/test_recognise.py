"""Classes against symmetry, histograms against SciPy and under rotations, candidates against the truth, files."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from mlindex.crystal.rotation import misorientation, random_rotations
from mlindex.laue import recognise as r
from mlindex.laue.classes import alike, class_of_hkl, classes_of, orbits
from mlindex.laue.geometry import Detector, direction_from_pixel, q_from_kf
from mlindex.laue.materials import material, rays
from mlindex.laue.simulate import random_grains, simulate_frame
from mlindex.learn import checkpoint
from mlindex.learn.layers import CountClassifier
from mlindex.records import InputError

DETECTOR = Detector(79.5, 977.0, 932.0, 0.4, 0.4)
LAYOUT = r.layout_of(DETECTOR, width=0.1, tiers=(0.1, 0.3))
PYRITE = "pyrite:P a -3:5.4166,5.4166,5.4166,90,90,90"


def all_classes(text, largest=None, most=10_000):
    crystal = material(text)
    table = rays(crystal, 23.0, DETECTOR)
    return crystal, table, classes_of(crystal, table, np.ones(len(table.hkl)), most=most, rare=0.0, largest=largest)


@pytest.mark.parametrize("name", ["Cu", "Ti", "ZrO2", "CuWO4", "Al2O3", "TiO2"])
def test_classes_are_orbits_of_the_laue_group(name):
    """Every class is closed under the operations and the inversion, and classes do not overlap."""
    crystal, _, classes = all_classes(name, largest=4)
    assert len(np.unique(classes.hkl, axis=0)) == len(classes.hkl)
    images = crystal.group.orbit(classes.hkl)
    for image in (*np.moveaxis(images, 1, 0), -classes.hkl):
        np.testing.assert_array_equal(class_of_hkl(classes, image), classes.of)
    # and as many representatives as there are orbits under proper rotations alone
    proper = {tuple(sorted(map(tuple, orbit))) for orbit in images}
    assert classes.representative.sum() == len(proper)


def test_number_of_classes():
    """Distinct forms with indices up to 2 and 3, counted by hand."""
    _, _, cubic = all_classes("SrTiO3", largest=2)
    assert cubic.number == 6  # 100 110 111 210 211 221
    _, _, triclinic = all_classes("CuWO4", largest=1)
    assert triclinic.number == 13  # half of 3^3 - 1


def test_a_hidden_symmetry_merges_classes():
    """In m-3 the forms hkl and khl are different, and make the same angles with all others; not so in 2/m."""
    crystal, table, classes = all_classes(PYRITE, largest=3)
    assert class_of_hkl(classes, np.array([[1, 2, 3]])) == class_of_hkl(classes, np.array([[2, 1, 3]])) >= 0
    assert len(np.unique(orbits(crystal, np.array([[1, 2, 3], [2, 1, 3]])))) == 2
    _, _, cubic = all_classes("SrTiO3", largest=3)
    assert classes.number == cubic.number
    zirconia = material("ZrO2")
    low = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [2, 1, 1]])
    near = rays(zirconia, 10.0, DETECTOR).hkl
    np.testing.assert_array_equal(alike(zirconia, low, near), [0, 1, 0, 3])
    assert table.hkl.shape[1] == 3


def test_rare_rays_and_too_many_classes_are_left_out():
    crystal = material("Cu")
    table = rays(crystal, 23.0, DETECTOR)
    seen = np.where(np.abs(table.hkl).max(1) <= 3, 0.1, 0.0)
    often = classes_of(crystal, table, seen, most=10_000, rare=0.05)
    assert np.abs(often.hkl).max() == 3
    few = classes_of(crystal, table, np.ones(len(seen)), most=8, rare=0.0)
    assert 0 < few.number <= 8
    with pytest.raises(ValueError, match="no ray of Cu is on this detector often enough"):
        classes_of(crystal, table, np.zeros(len(seen)), most=10, rare=0.05)


def directions(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(1, 2016, (2, n))
    return q_from_kf(direction_from_pixel(x, y, DETECTOR))


def histograms(q, rank, layout=LAYOUT):
    counted = jnp.ones((len(q), len(q)), bool)
    q = jnp.asarray(q, jnp.float32)
    return np.asarray(r.angle_histograms(q, q, jnp.asarray(rank, jnp.float32), counted, layout))


def moved(a, b):
    """The share of counts that are in another bin; none may be further away than the next."""
    steps = np.cumsum(a - b, 1)
    assert np.abs(steps).max() <= 2
    return np.abs(steps).sum() / max(a.sum(), 1)


@given(st.integers(0, 10**6), st.sampled_from([5, 60]))
def test_histograms_against_scipy(seed, n):
    q = directions(seed, n)
    angle = np.degrees(np.arccos(np.clip(1 - squareform(pdist(q, "cosine")), -1, 1)))
    edges = LAYOUT.first + LAYOUT.width * np.arange(LAYOUT.bins + 1)
    expected = np.stack([np.histogram(np.delete(row, i), edges)[0] for i, row in enumerate(angle)])
    found = histograms(q, np.ones(n)).reshape(n, 3, LAYOUT.bins)
    assert found[:, :2].sum() == 0
    assert moved(found[:, 2], expected) < 0.01
    assert found.sum() == pytest.approx(expected.sum(), abs=2)


@given(st.integers(0, 10**6))
def test_rotating_all_directions_changes_nothing(seed):
    """Up to angles that lie on the edge of a bin in single precision."""
    q = directions(seed, 40)
    turn = random_rotations(np.random.default_rng(seed), 1)[0]
    rank = np.arange(40) / 40
    assert moved(histograms(q, rank), histograms(q @ turn.T, rank)) < 0.01


@given(st.integers(0, 10**6))
def test_the_order_of_the_spots_does_not_matter(seed):
    q = directions(seed, 40)
    rank = np.arange(40) / 40
    order = np.random.default_rng(seed).permutation(40)
    np.testing.assert_array_equal(histograms(q, rank)[order], histograms(q[order], rank[order]))


def test_tiers_split_a_histogram():
    q = directions(0, 50)
    rank = np.arange(50) / 50
    split = histograms(q, rank).reshape(50, 3, LAYOUT.bins)
    np.testing.assert_array_equal(split.sum(1), histograms(q, rank, LAYOUT._replace(tiers=())))
    bright = np.flatnonzero(rank < 0.1)
    alone = histograms(q[bright], np.zeros(len(bright)))[:, : LAYOUT.bins]
    np.testing.assert_array_equal(split[bright, 0], alone)


@given(st.floats(-1, 1))
def test_arc_cosine(x):
    assert abs(float(r.arccos(jnp.float32(x))) - np.arccos(np.float32(x))) < 5e-7


def test_ranks():
    np.testing.assert_allclose(r.rank_from_intensity(np.array([5.0, 9.0, 1.0, 7.0])), [0.5, 0, 0.75, 0.25])
    np.testing.assert_allclose(r.rank_from_intensity(np.ones(5)), 0.4)


def recogniser_of(text, largest=3):
    crystal, _, classes = all_classes(text, largest=largest)
    model = CountClassifier(LAYOUT.size, r.SIDE, classes.number + 1, hidden=8, rngs=nnx.Rngs(0))
    return crystal, r.Recogniser(
        crystal.name, crystal.digest, crystal.b, (5.0, 23.0), DETECTOR, classes, LAYOUT, model, {"seed": 0}
    )


@pytest.mark.parametrize("name", ["Cu", "Ti", "ZrO2", "CuWO4", "Al2O3", PYRITE])
def test_spots_that_are_recognised_give_the_orientation(name):
    """With every spot of a frame taken for what it is, each grain is among the candidates."""
    crystal, recogniser = recogniser_of(name, largest=5)
    rng = np.random.default_rng(3)
    frame = simulate_frame(rng, random_grains(rng, [crystal] * 2), DETECTOR, dropped=0.0, spurious=0.1)
    q = q_from_kf(direction_from_pixel(frame.x, frame.y, DETECTOR))
    label = class_of_hkl(recogniser.classes, frame.hkl)
    said = r.Recognition(label, np.where(label >= 0, 0.95, 0.0), np.zeros(len(q)))
    found = r.candidates(recogniser, said, q)
    np.testing.assert_allclose(np.linalg.det(found.u), 1, atol=1e-9)
    np.testing.assert_allclose(
        found.u @ np.swapaxes(found.u, 1, 2), np.broadcast_to(np.eye(3), found.u.shape), atol=1e-9
    )
    assert np.all(frame.grain[found.first] >= 0)
    for i, grain in enumerate(frame.grains):
        away = misorientation(found.u, grain.u, crystal.rotations)
        assert away.min() < 0.05
        # every pair of spots of the grain, further apart than the least angle, has led to it
        own = (frame.grain[found.first] == i) & (frame.grain[found.second] == i)
        pairs = np.unique(np.stack([found.first[own], found.second[own]]), axis=1).shape[1]
        right = own & (away < 0.5)
        assert np.unique(np.stack([found.first[right], found.second[right]]), axis=1).shape[1] >= 0.95 * pairs > 0


def test_candidates_are_the_surest_and_none_without_sure_spots():
    crystal, recogniser = recogniser_of("Cu")
    rng = np.random.default_rng(4)
    frame = simulate_frame(rng, random_grains(rng, [crystal] * 3), DETECTOR, dropped=0.0, spurious=0.0)
    q = q_from_kf(direction_from_pixel(frame.x, frame.y, DETECTOR))
    label = class_of_hkl(recogniser.classes, frame.hkl)
    chance = np.where(label >= 0, rng.uniform(0.5, 1, len(q)), 0.0)
    said = r.Recognition(label, chance, 1 - chance)
    found = r.candidates(recogniser, said, q, least=0.7, spots=10, most=20)
    assert 0 < len(found.u) <= 20
    assert np.all(np.diff(found.probability) <= 0)
    assert np.all(chance[found.first] >= np.sort(chance[label >= 0])[-10])
    np.testing.assert_allclose(found.probability, chance[found.first] * chance[found.second])
    nothing = r.candidates(recogniser, said, q, least=1.1)
    assert nothing.u.shape == (0, 3, 3)


def test_round_trip_of_a_network(tmp_path):
    crystal, recogniser = recogniser_of("Ti")
    path = r.network_path(crystal, DETECTOR, (5.0, 23.0), tmp_path)
    assert r.cached(crystal, DETECTOR, (5.0, 23.0), tmp_path) is None
    r.save(recogniser, path)
    back = r.cached(crystal, DETECTOR, (5.0, 23.0), tmp_path)
    assert back is not None
    for name in ("material", "digest", "energy", "detector", "layout", "card"):
        assert getattr(back, name) == getattr(recogniser, name)
    for ours, theirs in zip(back.classes, recogniser.classes, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(back.b, recogniser.b)
    q, intensity = directions(5, 700), np.random.default_rng(5).gamma(1.0, size=700)
    for ours, theirs in zip(r.recognise(back, q, intensity), r.recognise(recogniser, q, intensity), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_name_of_a_network_follows_material_energies_and_geometry(tmp_path):
    def name(crystal="Cu", detector=DETECTOR, energy=(5.0, 23.0)):
        return r.network_path(material(crystal), detector, energy, tmp_path).name

    other = [name("Al"), name(energy=(5.0, 22.0)), name(detector=dataclasses.replace(DETECTOR, distance=100.0))]
    other += [name(detector=dataclasses.replace(DETECTOR, **new)) for new in ({"pixel": 0.08}, {"shape": (2000, 2016)})]
    other += [name(detector=dataclasses.replace(DETECTOR, kf_direction="X>0"))]
    assert len({name(), *other}) == 1 + len(other)
    assert name(detector=dataclasses.replace(DETECTOR, xcen=977.3, xbet=0.41)) == name()


def test_where_networks_are_kept(tmp_path):
    assert r.cache_folder({"MLINDEX_CACHE": "/a/b"}).as_posix() == "/a/b/networks"
    assert r.cache_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"}).as_posix() == "/x/mlindex/networks"
    assert r.cache_folder({"HOME": "/h"}).as_posix() == "/h/.cache/mlindex/networks"


def test_the_answer_follows_the_spots_whatever_their_order_and_number():
    """The padding that keeps shapes few says nothing."""
    _, recogniser = recogniser_of("Cu")
    rng = np.random.default_rng(6)
    q, intensity = directions(6, 530), rng.gamma(1.0, size=530)
    said = r.recognise(recogniser, q, intensity)
    order = rng.permutation(530)
    turned = r.recognise(recogniser, q[order], intensity[order])
    np.testing.assert_array_equal(said.label[order], turned.label)
    np.testing.assert_allclose(said.probability[order], turned.probability, atol=1e-5)
    assert np.all(said.probability + said.none <= 1 + 1e-5)
    some = r.recognise(recogniser, q, intensity, brightest=100)
    bright = intensity >= np.sort(intensity)[-100]
    assert np.all(some.label[~bright] == -1)
    assert np.all(some.probability[~bright] == 0)
    alone = r.recognise(recogniser, q[bright], intensity[bright])
    np.testing.assert_array_equal(some.label[bright], alone.label)


def test_bad_input(tmp_path):
    _, recogniser = recogniser_of("Cu")
    with pytest.raises(InputError, match="a frame of 3 spots is too small"):
        r.recognise(recogniser, directions(0, 3), np.ones(3))
    q = directions(0, 10)
    q[3, 1] = np.nan
    with pytest.raises(InputError, match="not a number; leave them out"):
        r.recognise(recogniser, q, np.ones(10))
    path = tmp_path / "net.safetensors"
    checkpoint.save(path, {"a": np.ones(2)}, {"kind": "powder", "version": 1})
    with pytest.raises(InputError, match="'powder', version 1, where kind 'laue', version 1 is needed"):
        r.load(path)
    r.save(recogniser, path)
    arrays, card = checkpoint.load(path)
    checkpoint.save(path, {n: a for n, a in arrays.items() if n != "net.outer.bias"}, card)
    with pytest.raises(InputError, match="this network is damaged"):
        r.load(path)
