"""What frames give each other: which grains are tried first, and that the answers stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlindex import stage as stages
from mlindex.config import LaueSettings, read_campaign
from mlindex.crystal.rotation import misorientation, random_rotations, rotation_from_vector
from mlindex.laue import search
from mlindex.laue import stage as laue
from mlindex.laue.maps.neighbours import Neighbours, Place, place_of
from mlindex.laue.maps.polycrystal import polycrystal
from mlindex.laue.maps.scan import Scan
from mlindex.laue.materials import material
from mlindex.laue.simulate import simulate_frame
from mlindex.records import InputError
from tests.laue.frames import BAND, DETECTOR, write_frame

COPPER = material("Cu")


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("scan/img_0012.tif", Place("scan/img_.tif", 12)),
        ("img7.cor", Place("img.cor", 7)),
        ("a/0003.cor", Place("a/.cor", 3)),
        ("stack_1.h5::/entry/data/data#41", Place("stack_1.h5::/entry/data/data", 41)),
        ("stack.h5::#0", Place("stack.h5::", 0)),
        ("Ge_blanc.cor", None),
        ("x#y.cor", None),
    ],
)
def test_places_from_names(source, place):
    assert place_of(source) == place


def grain(turn: float = 0.0, seed: int = 0) -> tuple[int, np.ndarray]:
    (u,) = random_rotations(np.random.default_rng(seed), 1)
    return 0, rotation_from_vector(np.radians([0.0, 0.0, turn])) @ u @ COPPER.b


def tried(near: Neighbours, source: str, known: list) -> list[int]:
    """Which of the known grains are guesses."""
    return [
        next(i for i, (_, ub) in enumerate(known) if ub is guess or (ub == guess).all())
        for _, guess in near.guesses(source)
    ]


def test_the_frame_before_and_the_one_above():
    known = [grain(seed=k) for k in range(6)]
    near = Neighbours(3, [COPPER.rotations])
    assert near.guesses("f_0.cor") == []
    for k in range(5):
        near.remember(f"f_{k}.cor", [known[k]])
    assert tried(near, "f_5.cor", known) == [4, 2], "of rows of three, the frame above the sixth is the third"
    assert tried(near, "f_4.cor", known) == [4, 1]
    assert tried(near, "g_5.cor", known) == [4], "another series"
    unnamed = Neighbours(3, [COPPER.rotations])
    for k in range(5):
        unnamed.remember("frame.cor", [known[k]])
    assert tried(unnamed, "frame.cor", known) == [4, 2], "by their sequence, where the names say nothing"


def test_what_is_alike_is_tried_once():
    one, same, other, apart = grain(), grain(0.01), grain(seed=1), grain(0.5)
    turned = (0, one[1] @ np.rint(np.linalg.inv(COPPER.b) @ COPPER.rotations[5] @ COPPER.b))
    near = Neighbours(1, [COPPER.rotations])
    near.remember("f_0.cor", [one, same, other, apart, turned])
    assert tried(near, "f_1.cor", [one, same, other, apart, turned]) == [0, 2, 3]


def test_without_a_scan_only_the_frame_before_in_the_same_stack():
    near = Neighbours(None, [COPPER.rotations])
    near.remember("s.h5::#3", [grain()])
    assert len(near.guesses("s.h5::#4")) == 1
    for other in ("s.h5::#5", "s.h5::#3", "t.h5::#4", "f_4.cor"):
        assert near.guesses(other) == []
    near.remember("f_3.cor", [grain()])
    assert near.guesses("f_4.cor") == [], "files may be anything"


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> list[Path]:
    """Twelve frames, three by four, of two layers of copper."""
    folder = tmp_path_factory.mktemp("scan")
    sample = polycrystal(np.random.default_rng(8), [COPPER], Scan(3, 4), layers=2, strain=1e-3)
    paths = []
    for number in range(12):
        rng = np.random.default_rng([8, number])
        frame = simulate_frame(rng, sample.at(number), DETECTOR, BAND, volumes=sample.volumes)
        paths.append(write_frame(folder / f"f_{number:02d}.cor", frame))
    return paths


def test_the_answer_does_not_depend_on_the_neighbours(scan, monkeypatch):
    """The grains of a scan with and without: the same, to a rounding; and the guesses are of use."""
    guesses: list[int] = []
    original = search.index_frame

    def counted(*args, **kwargs):
        guesses.append(len(kwargs["guesses"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(laue, "index_frame", counted)
    answers = {}
    for neighbours in (None, False):
        made = laue.LaueStage(LaueSettings(materials=("Cu",), scan=(3, 4), neighbours=neighbours))
        answers[neighbours] = [stages.solve(made, made.read(str(path)))[0].tables for path in scan]
    assert guesses[0] == 0 and min(guesses[1:12]) >= 1 and not any(guesses[12:])
    for one, other in zip(answers[None], answers[False], strict=True):
        assert len(one["grains"]["u"]) == len(other["grains"]["u"]) == 2
        for u, strain, score in zip(*(one["grains"][k] for k in ("u", "strain", "score")), strict=True):
            angle = misorientation(u, other["grains"]["u"], COPPER.rotations)
            same = int(np.argmin(angle))
            assert angle[same] < 1e-3
            np.testing.assert_allclose(strain, other["grains"]["strain"][same], atol=3e-5)
            assert score == pytest.approx(other["grains"]["score"][same], rel=0.02)


def test_a_frame_that_is_asked_for_again_and_one_that_is_spoiled(scan, tmp_path):
    """A frame without a crystal leaves the next with the grains above; nothing is found where nothing is."""
    bad = tmp_path / "f_04.cor"
    lines = scan[4].read_text().splitlines()
    bad.write_text("\n".join([*lines[:4], *(x for x in lines if x.startswith("#"))]))
    made = laue.LaueStage(LaueSettings(materials=("Cu",), scan=(3, 4)))
    solved = [stages.solve(made, made.read(str(p)))[0] for p in (*scan[:2], bad, scan[2])]
    assert [len(r.tables["grains"]["u"]) for r in solved] == [2, 2, 0, 2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("scan = [3, 0]", "laue.scan: give the rows and the columns of the scan, as [20, 30]"),
        ("scan = 3", "laue.scan: "),
        ("scan = [3, 4]\nstep = [1.0, -2.0]", "laue.step: give the steps between rows and between columns in micro"),
    ],
)
def test_bad_settings(tmp_path, line, says):
    (tmp_path / "c.toml").write_text(f'[campaign]\ninputs = ["*"]\nstage = "laue"\n[laue]\n{line}\n')
    with pytest.raises(InputError) as caught:
        read_campaign(tmp_path / "c.toml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_settings_without_a_scan_are_as_before():
    """A run that was made before there were scans can be resumed: no new setting appears in it."""
    told = json.loads(LaueSettings(materials=("Cu",)).model_dump_json(exclude_none=True))
    assert {"scan", "step", "neighbours"}.isdisjoint(told)
