"""Patterns that are made on the device against those of `simulate`, and a small training from beginning to end."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlindex.crystal.rotation import misorientation, random_rotations
from mlindex.laue.classes import class_of_hkl
from mlindex.laue.geometry import Detector, Plane, direction_from_pixel, q_from_kf
from mlindex.laue.materials import material, rays
from mlindex.laue.recognise import cached, candidates, network_path, recognise, save
from mlindex.laue.simulate import random_grains, simulate_frame, spots_of
from mlindex.laue.train import (
    Scene,
    Settings,
    Shape,
    _rows_of,
    _weights,
    accuracy,
    drawn,
    intensities_of,
    scene_of,
    seen_of,
    train,
)
from mlindex.records import InputError

DETECTOR = Detector(79.5, 977.0, 932.0, 0.4, 0.4)
ENERGY = (5.0, 23.0)
SMALL = Settings(steps=150, rows=256, hidden=64, means=15, classes=60)
STILL = Settings(noise=0.0, strain=0.0, dropped=0.0, spurious=0.0, weak=0.0, volume=0.0, jitter=0.0)


def scene(name, settings=SMALL):
    return scene_of(material(name), DETECTOR, ENERGY, np.random.default_rng(0), settings)


@pytest.fixture(scope="module")
def copper():
    return train(material("Cu"), DETECTOR, ENERGY, seed=3, settings=SMALL)


@pytest.mark.parametrize("name", ["Cu", "ZrO2"])
def test_intensities_are_those_of_the_simulation(name):
    crystal = material(name)
    table = rays(crystal, 23.0, DETECTOR)
    made, _, _ = scene(name)
    ub = random_rotations(np.random.default_rng(1), 1)[0] @ crystal.b
    spots = spots_of(ub, table, DETECTOR, ENERGY)
    row = {tuple(hkl): i for i, hkl in enumerate(table.hkl)}
    at = np.array([row.get(tuple(hkl), row.get(tuple(-hkl))) for hkl in spots.hkl])
    q = jnp.asarray(spots.hkl @ ub.T, jnp.float32)
    found = np.asarray(intensities_of(q, made.rays.strength[at], made))
    np.testing.assert_allclose(found / found.max(), spots.intensity / spots.intensity.max(), rtol=0.03, atol=1e-4)


def test_how_often_rays_are_seen():
    crystal = material("Cu")
    table = rays(crystal, 23.0, DETECTOR)
    seen = seen_of(crystal, table, DETECTOR, ENERGY, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    counts = [len(spots_of(u @ crystal.b, table, DETECTOR, ENERGY).x) for u in random_rotations(rng, 100)]
    assert seen.sum() == pytest.approx(np.mean(counts), rel=0.05)
    assert 0 <= seen.min() <= seen.max() <= 1


def test_patterns_without_disturbance_make_the_angles_of_their_classes():
    """The angle between two spots of a grain is one between members of their classes (in float64, on the host)."""
    made, shape, classes = scene("Cu")
    slot = jax.jit(partial(drawn, shape=shape, settings=STILL, alone=True))(jax.random.key(0), made)
    q, frame, label, valid = (np.asarray(a) for a in (slot.q, slot.frame, slot.label, slot.valid))
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1, atol=1e-5)
    assert set(frame[valid]) == set(range(shape.grains))
    directions = classes.hkl / np.linalg.norm(classes.hkl, axis=1, keepdims=True)  # cubic
    rows = np.flatnonzero(valid & (frame == 2) & (label < shape.classes))
    assert len(rows) > 10
    for i in rows[:8]:
        for j in rows[:8]:
            cosines = directions[classes.of == label[i]] @ directions[classes.of == label[j]].T
            away = np.abs(np.degrees(np.arccos(np.clip(cosines, -1, 1)) - np.arccos(np.clip(q[i] @ q[j], -1, 1))))
            assert away.min() < 0.05


def test_ranks_frames_and_disturbances():
    """Ranks rise by equal steps within a frame, from 0 to 1; a quarter is dropped, and `weakest` to all of the rest is
    left, evenly over magnitudes."""
    made, shape, _ = scene("Cu")
    rough = Settings(spurious=0.4, dropped=0.5, weak=1.0)
    draw = jax.jit(partial(drawn, shape=shape, settings=rough, alone=False))
    spots, frames = [], []
    for i in range(16):
        slot = draw(jax.random.fold_in(jax.random.key(7), i), made)
        valid, frame, rank = (np.asarray(a) for a in (slot.valid, slot.frame, slot.rank))
        frames.append(len(np.unique(frame[valid])))
        spots.append(valid.sum())
        for f in np.unique(frame[valid]):
            own = rank[valid & (frame == f)]
            assert own[0] == 0
            assert own[-1] < 1
            if len(own) > 2:
                np.testing.assert_allclose(np.diff(own), own[1], atol=1e-5)
    assert min(frames) <= 3  # frames of many grains
    assert max(frames) >= 18  # and of one or two
    table = rays(material("Cu"), ENERGY[1], DETECTOR)
    whole = seen_of(material("Cu"), table, DETECTOR, ENERGY, np.random.default_rng(1)).sum()
    left = (1 - rough.weakest) / -np.log(rough.weakest)
    assert np.mean(spots) / (shape.grains * whole) == pytest.approx(0.75 * left, abs=0.1)


@pytest.mark.parametrize("name", ["Cu", "ZrO2"])
def test_rows_stand_for_all_spots(name):
    """Of Cu nearly all spots are in a class, of ZrO2 few: both kinds are learnt from, and weigh what they are."""
    made, shape, _ = scene(name)
    settings = Settings(rows=256)
    slot = jax.jit(partial(drawn, shape=shape, settings=settings, alone=False))(jax.random.key(5), made)
    drawn_rows = _rows_of(jax.random.key(6), slot, settings.rows, shape.classes)
    weight, rows = np.asarray(_weights(slot, drawn_rows, shape.classes)), np.asarray(drawn_rows)
    assert len(np.unique(rows)) == settings.rows
    valid, none = np.asarray(slot.valid), np.asarray(slot.label) >= shape.classes
    assert np.all(weight[~valid[rows]] == 0)
    for kind in (none, ~none):
        assert (valid[rows] & kind[rows]).sum() >= min(60, (valid & kind).sum())
        assert weight[kind[rows]].sum() == pytest.approx((valid & kind).sum(), rel=1e-4)


def test_a_small_training_learns(copper):
    """Well over nine of ten spots of frames that the training did not make: one, three and five grains."""
    crystal = material("Cu")
    for grains, least in ((1, 0.97), (3, 0.97), (5, 0.95)):
        found = accuracy(copper, crystal, grains=grains, frames=4, seed=11)
        assert found.right > least
        assert found.sure_right > 0.93
        assert found.in_class > 0.85
    assert copper.card["steps"] == SMALL.steps
    assert not copper.card["cut"]
    assert copper.card["settings"]["hidden"] == 64
    assert copper.card["validation"]["5 grains"]["right"] > 0.95


def test_accuracy_counts_as_it_says(copper):
    """Against a count made here, spot by spot."""
    crystal = material("Cu")
    found = accuracy(copper, crystal, grains=4, frames=1, seed=21, spurious=0.3)
    rng = np.random.default_rng(21)
    frame = simulate_frame(rng, random_grains(rng, [crystal] * 4), DETECTOR, ENERGY, spurious=0.3)
    said = recognise(copper, q_from_kf(direction_from_pixel(frame.x, frame.y, DETECTOR)), frame.intensity)
    right = strict = every = known = 0
    for i, hkl in enumerate(frame.hkl):
        truth = int(class_of_hkl(copper.classes, hkl[None])[0]) if frame.grain[i] >= 0 else -1
        answer = -1 if said.none[i] > said.probability[i] else int(said.label[i])
        known += truth >= 0
        right += truth >= 0 and said.label[i] == truth
        strict += truth >= 0 and answer == truth
        every += answer == truth
    n = len(frame.x)
    assert (found.spots, found.frames) == (n, 1)
    np.testing.assert_allclose(found[:4], [right / known, strict / known, every / n, known / n])


def test_recognised_spots_lead_to_every_grain(copper):
    crystal = material("Cu")
    for seed in range(4):
        rng = np.random.default_rng(seed)
        frame = simulate_frame(rng, random_grains(rng, [crystal] * 3, 5e-4), DETECTOR, ENERGY)
        q = q_from_kf(direction_from_pixel(frame.x, frame.y, DETECTOR))
        found = candidates(copper, recognise(copper, q, frame.intensity), q)
        for grain in frame.grains:
            assert misorientation(found.u, grain.u, crystal.rotations).min() < 0.1


def test_a_trained_network_is_kept_and_found(copper, tmp_path):
    crystal = material("Cu")
    save(copper, network_path(crystal, DETECTOR, ENERGY, tmp_path))
    back = cached(crystal, DETECTOR, ENERGY, tmp_path)
    assert back is not None
    assert back.card == copper.card
    options = {"grains": 2, "frames": 1, "seed": 5}
    assert accuracy(back, crystal, **options) == accuracy(copper, crystal, **options)


def test_time_ends_a_training_and_its_card_says_so():
    short = train(material("Cu"), DETECTOR, ENERGY, minutes=1e-3, settings=dataclasses.replace(SMALL, means=1))
    assert short.card["cut"]
    assert short.card["steps"] < SMALL.steps


def test_bad_input():
    crystal = material("Cu")
    with pytest.raises(InputError, match="lowest, highest in keV, got 23, 5"):
        train(crystal, DETECTOR, (23.0, 5.0))
    with pytest.raises(InputError, match="needs time, got 0 minutes"):
        train(crystal, DETECTOR, ENERGY, minutes=0.0)
    with pytest.raises(InputError, match="Cu has no reflection in this energy band"):
        train(crystal, DETECTOR, (0.5, 1.0))


def test_a_scene_is_of_one_precision_and_has_the_labels_of_its_rays():
    made, shape, classes = scene("Ti")
    assert isinstance(made, Scene)
    assert isinstance(made.plane, Plane)
    assert isinstance(shape, Shape)
    assert {a.dtype for a in jax.tree.leaves(made)} == {np.dtype("float32"), np.dtype("int32")}
    label = np.asarray(made.label)
    assert label.max() == shape.classes == classes.number
    assert set(label) == set(range(classes.number + 1))
