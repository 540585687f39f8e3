"""Templates: solvable, allowed by the centring, and among them those of known cells."""

from __future__ import annotations

import itertools
import json
from importlib import resources

import gemmi
import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import transform_metric
from mlindex.crystal.reduction import lattice_distance, primitive_metric
from mlindex.powder import templates, templates_train
from tests.powder.patterns import CELLS, positions, reflections

STORED = [name for name, lattice in BRAVAIS.items() if lattice.n_free > 2]


def archive():
    with resources.as_file(resources.files("mlindex.models") / templates.STORED) as path, np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("name", BRAVAIS)
def test_every_template_is_an_invertible_integer_system(name):
    inverse = templates.solved_templates(name, 10**6).astype(np.float64)
    p = BRAVAIS[name].n_free
    assert inverse.shape[1:] == (p, p) and len(inverse) >= 12 and np.isfinite(inverse).all()
    system = np.linalg.inv(inverse)
    np.testing.assert_allclose(system, np.rint(system), atol=2e-3)
    assert (np.abs(np.linalg.det(np.rint(system))) > 0.5).all()


@pytest.mark.parametrize("name", BRAVAIS)
def test_fewer_templates_are_a_prefix(name):
    few, many = templates.solved_templates(name, 30), templates.solved_templates(name, 90)
    assert (few == many[: len(few)]).all()
    assert name not in STORED or len(many) > len(few)


@pytest.mark.parametrize("name", STORED)
def test_stored_templates_are_reflections_of_the_lattice(name):
    hkl = archive()[name].astype(int)
    operations = gemmi.SpaceGroup(CELLS[name][1]).operations()
    for h in {tuple(map(int, h)) for h in hkl.reshape(-1, 3)}:
        assert any(h) and not operations.is_systematically_absent(h)
    system = SYSTEMS[BRAVAIS[name].system]
    h, k, m = (hkl[..., i].astype(float) for i in range(3))
    rows = np.stack([h * h, k * k, m * m, k * m, h * m, h * k], -1) @ system.embed
    assert (np.abs(np.linalg.det(rows)) > 0.5).all()
    assert len({template.tobytes() for template in hkl}) == len(hkl)


def test_archive_says_how_it_was_made():
    stored = archive()
    card = json.loads(str(stored["card"]))
    assert card["command"].startswith("mlindex train powder") and len(card["data_sha256"]) == 64
    assert set(stored) - {"card"} == set(STORED)


@pytest.mark.parametrize("name", BRAVAIS)
def test_a_known_cell_is_solved_from_its_own_lines(name):
    lattice = BRAVAIS[name]
    system = SYSTEMS[lattice.system]
    q2 = positions(*CELLS[name], 12)
    subsets = np.array(list(itertools.combinations(range(12), lattice.n_free)))
    truth = primitive_metric(np.array(CELLS[name][0], float), lattice.centring)
    free = np.einsum("tij,sj->tsi", templates.solved_templates(name, 500).astype(float), q2[subsets])
    g = (free @ system.embed.T).reshape(-1, 6)
    volume = gemmi.UnitCell(*CELLS[name][0]).volume
    matrix = g[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]] * (0.5 + 0.5 * np.eye(3))
    g = g[np.abs(np.linalg.det(matrix) * volume**2 - 1) < 1e-4]
    g = g[(g[:, :3] > 0).all(1)]
    g = g[np.linalg.eigvalsh(g[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]] * (0.5 + 0.5 * np.eye(3)))[:, 0] > 0]
    assert len(g)
    assert lattice_distance(transform_metric(g[:20000], lattice.primitive), truth).min() < 1e-4


def pattern(cell, count=8):
    """The indices of the first distinct lines of an orthorhombic cell."""
    hkl, q2 = reflections(cell, "P m m m", 0.35)
    hkl, first = np.abs(hkl), np.append(True, np.diff(q2) > 1e-9)
    return hkl[first][:count]


def test_build_takes_what_most_patterns_share_first():
    often, rare = pattern((5, 7, 11, 90, 90, 90)), np.array([[3, 1, 0], [0, 3, 2], [1, 0, 4]])
    taken = templates_train.build([often, often, often, rare], "oP", 40, first=6)
    occurs = [set(map(tuple, often[:6].tolist())), set(map(tuple, rare.tolist()))]
    assert {tuple(map(int, h)) for h in taken[0]} <= occurs[0]
    assert all({tuple(map(int, h)) for h in template} <= occurs[0] | occurs[1] for template in taken)
    assert any({tuple(map(int, h)) for h in template} == occurs[1] for template in taken)


def test_build_gives_prefixes_and_leaves_out_what_cannot_be_solved():
    patterns = [pattern(cell) for cell in ((5, 7, 11, 90, 90, 90), (6, 6.5, 9, 90, 90, 90), (4, 9, 13, 90, 90, 90))]
    many = templates_train.build(patterns, "oP", 50, first=7)
    few = templates_train.build(patterns, "oP", 8, first=7)
    assert (few == many[:8]).all() and len(many) > 8
    assert (np.abs(np.linalg.det(many.astype(float) ** 2)) > 0.5).all()
    # 100, 200 and 010 say nothing of the third axis
    plane = np.array([[1, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert {tuple(sorted(map(tuple, t))) for t in templates_train.build([plane], "oP", 10, first=4).tolist()} == {
        ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
        ((0, 0, 1), (0, 1, 0), (2, 0, 0)),
    }


def test_build_counts_equivalent_descriptions_once():
    one = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    renamed = one[:, [2, 0, 1]]
    assert len(templates_train.build([one, renamed], "oP", 50, first=4)) == len(
        templates_train.build([one], "oP", 50, first=4)
    )
    sheared = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
    moved = sheared @ np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    assert len(templates_train.build([sheared, moved], "mP", 50, first=4)) == 1
