"""`mlindex train powder` from a folder of CIFs: every part in miniature, and what it says of input it cannot use."""

from __future__ import annotations

import json
from functools import partial

import gemmi
import numpy as np
import pytest

from mlindex.crystal.lattice import BRAVAIS
from mlindex.crystal.metric import cell_from_reciprocal_metric, q2_from_hkl, reciprocal_metric_from_cell
from mlindex.crystal.reflections import reference_hkl
from mlindex.learn import checkpoint
from mlindex.powder import assign_network, posterior, posterior_train, proposals, search, templates_train, train
from mlindex.powder.assign_train import Settings
from mlindex.powder.lines import lines_from_q2

PARTS = {
    "templates": "powder_templates.npz",
    "assign": "powder_assign.safetensors",
    "proposals": "powder_proposals.safetensors",
    "posterior": "powder_posterior.safetensors",
}
# orthorhombic, each crystal of a family of its own
CELLS = ((5.0, 7.1, 9.3), (6.2, 7.0, 8.9), (4.1, 8.0, 11.0), (5.5, 6.6, 12.1), (4.5, 7.7, 8.4), (6.6, 7.4, 10.3))
MINIATURE = train.Plan(assign=Settings(steps=3, lists=6), proposals={"cycles": 1, "steps": 50, "pool": 60, "trees": 3})


def cif(edges: tuple[float, ...], seed: int) -> str:
    """A crystal in P222 with an atom in 18 cubic angstrom, anywhere."""
    rng = np.random.default_rng(seed)
    sites = rng.random((round(float(np.prod(edges)) / 4 / 18), 3))
    cell = [f"_cell_length_{name} {value}" for name, value in zip("abc", edges, strict=True)]
    cell += [f"_cell_angle_{name} 90" for name in ("alpha", "beta", "gamma")]
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z")
    head = ["_symmetry_space_group_name_H-M 'P 2 2 2'", "loop_", *(f"_atom_site_{c}" for c in columns)]
    rows = [f"A{n} {'Si' if n else 'O'} {x:.4f} {y:.4f} {z:.4f}" for n, (x, y, z) in enumerate(sites)]
    return "\n".join(["data_made", *cell, *head, *rows, ""])


@pytest.fixture(scope="module")
def crystals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifs")
    for number, edges in enumerate(CELLS):
        (folder / f"crystal_{number}.cif").write_text(cif(edges, number))
    (folder / "broken.cif").write_text("data_broken\n")
    return folder


def test_everything_is_trained_from_a_folder_of_cifs(run, crystals, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "PLAN", MINIATURE)
    # a real search, in one lattice
    monkeypatch.setattr(posterior_train, "states", partial(search.states, effort="quick", lattices=("oP",)))
    answer = run("train", "powder", crystals, "--out", tmp_path / "made", "--lists", 3, "--seed", 3)
    assert answer.code == 0
    assert f"{crystals / 'broken.cif'}: " in answer.err and "6 crystals: 2 train, 2 validation, 2 test" in answer.err
    assert all(part in answer.out and name in answer.out for part, name in PARTS.items())

    cards = {}
    with np.load(tmp_path / "made" / PARTS["templates"]) as archive:
        cards["templates"] = json.loads(str(archive["card"]))
        assert set(archive.files) == {"card", *templates_train.COUNTS}
        made = archive["oP"].astype(float)
    # squares of the indices are the system that is solved for the cell
    assert made.shape[1:] == (3, 3) and np.linalg.det(made**2).all()
    assert cards["templates"]["kept"] == ["oS", "oI", "oF", "mP", "mC", "aP"]
    for name in ("assign", "proposals", "posterior"):
        cards[name] = checkpoint.load(tmp_path / "made" / PARTS[name])[1]
    for name, card in cards.items():
        assert {"data_sha256", "crystals", "seed", "seconds", "device", "version"} <= set(card)
        assert card["command"].startswith(f"mlindex train powder DATA --only {name} ") and card["seed"] == 3
        assert card["crystals"] == 2

    weights, card = checkpoint.load(tmp_path / "made" / PARTS["assign"])
    assert set(card["kept"]) == set(BRAVAIS) - {"oP"}
    for name, lattice in BRAVAIS.items():
        network = assign_network.from_arrays(weights, name)
        rows = len(reference_hkl(name, assign_network.REFERENCE[lattice.n_free]))
        assert network.prior.shape == (len(assign_network.LEVELS), rows) and np.isfinite(network.prior).all()
    np.testing.assert_array_equal(assign_network.from_arrays(weights, "mC").prior, assign_network.shipped("mC").prior)

    model = proposals.load(tmp_path / "made" / PARTS["proposals"])
    cell = gemmi.UnitCell(5.0, 7.1, 9.3, 90, 90, 90)
    q2 = q2_from_hkl(reciprocal_metric_from_cell(np.array(cell.parameters)), reference_hkl("oP", 20))
    found = proposals.propose(lines_from_q2(q2, None), {"oP": (6, 3)}, 0, model)["oP"]
    assert found.shape == (9, 6) and np.all(cell_from_reciprocal_metric(found.astype(float))[:, :3] > 0)

    told = posterior.weights(tmp_path / "made" / PARTS["posterior"])
    assert set(told) == set(posterior.weights()) and cards["posterior"]["lists"] > 3
    assert all(np.isfinite(values).all() for values in told.values())


def test_what_cannot_be_used_is_said_in_one_sentence(run, crystals, tmp_path, monkeypatch):
    def refused(*arguments: object) -> str:
        answer = run("train", "powder", *arguments)
        assert answer.code == 2 and answer.out == ""
        return answer.err.splitlines()[-1]

    assert "--only: weights cannot be trained; the parts are templates," in refused(crystals, "--only", "weights")
    assert f"{tmp_path / 'none'}: there is no such folder" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "there is no .cif file in it" in refused(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    where = ("--only", "templates", "-o", tmp_path / "file" / "deep")
    assert "cannot be written to (Not a directory); give another folder" in refused(crystals, *where)

    monkeypatch.setattr(posterior_train, "collect", lambda lists, seed: iter(()))
    options = ("--only", "posterior", "--lists", 1, "-o", tmp_path / "made")
    assert "the posterior cannot be trained on the 0 searches" in refused(crystals, *options)


def test_parts_are_chosen_and_trained_in_their_order(run, crystals, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "train", lambda data, folder, parts, plan, say: asked.append((parts, plan)) or [])
    run(
        "train", "powder", crystals, "--only", "posterior,assign", "--only", "templates", "-o", tmp_path, "--minutes", 5
    )
    ((parts, plan),) = asked
    assert parts == ["templates", "assign", "posterior"] and (plan.minutes, plan.lists, plan.seed) == (5.0, 45, 0)
    run("train", "powder", crystals, "-o", tmp_path)
    assert asked[1][0] == list(train.PARTS)
