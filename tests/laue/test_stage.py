"""The Laue stage: what it reads, what it refuses, and that its tables say what the frame holds."""

from __future__ import annotations

import re
from pathlib import Path

import gemmi
import h5py
import numpy as np
import pytest
from fabio.tifimage import TifImage
from scipy.spatial.transform import Rotation

from mlindex import stage as stages
from mlindex.config import LaueSettings, read_campaign
from mlindex.crystal.rotation import misorientation
from mlindex.crystal.scattering import intensities
from mlindex.formats import lauetools
from mlindex.laue import frame as frames
from mlindex.laue import search
from mlindex.laue import stage as laue
from mlindex.laue.frame import Spots
from mlindex.laue.geometry import kf_from_q, pixel_from_direction
from mlindex.laue.materials import material
from mlindex.laue.record import laue_record, strain_norm
from mlindex.laue.simulate import render_image
from mlindex.laue.spots import Spots as FoundSpots
from mlindex.laue.votes import agreed
from mlindex.records import InputError, Item, Status
from tests.laue.frames import BAND, DETECTOR, SMALL, frame_of, true_grains, write_frame

REFERENCE = Path(__file__).parents[1] / "reference" / "lauetools"


def stage(*names: str, **settings) -> laue.LaueStage:
    return laue.LaueStage(LaueSettings(materials=names or ("Cu",), **settings))


@pytest.fixture
def known(monkeypatch):
    """known(frame): the search finds what the frame holds, at no cost; the calls it gets are returned."""
    calls: list[dict] = []

    def use(frame):
        def found(x, y, intensity, detector, materials, **rest):
            calls.append({"n": len(x), "detector": detector, "materials": materials, **rest})
            return true_grains(frame)

        monkeypatch.setattr(laue, "index_frame", found)
        return calls

    return use


def sentence(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text and text[-1] not in ".\n"
    return text


def test_a_spot_list_brings_its_calibration(tmp_path):
    frame = frame_of("Cu")
    (item,) = stage().read(str(write_frame(tmp_path / "a.cor", frame)))
    np.testing.assert_allclose(item.arrays["x"], frame.x, atol=1e-6)
    (ready,) = stage().prepare([item])
    assert ready.detector == DETECTOR


@pytest.mark.parametrize("name", ["Ge0001.dat", "Ge0001.cor", "Ge0001.fit"])
def test_lists_of_lauetools(name):
    """The same frame in three formats; the .fit has the spots that were indexed."""
    detector = str(REFERENCE / "Ge0001calib.det")
    (item,) = stage("Ge", detector=detector).read(str(REFERENCE / name))
    assert len(item.arrays["x"]) == {"Ge0001.fit": 83}.get(name, len(lauetools.read_dat(REFERENCE / "Ge0001.dat").x))
    (ready,) = stage("Ge", detector=detector).prepare([item])
    first = (REFERENCE / "Ge0001calib.det").read_text().splitlines()[0]
    np.testing.assert_allclose(ready.detector.parameters, [float(v) for v in first.split(",")[:5]])


def test_the_named_detector_comes_before_that_of_the_footer(tmp_path):
    other = write_frame(tmp_path / "other.cor", frame_of("Cu", detector=DETECTOR.with_parameters((80, 970, 930, 0, 0))))
    path = write_frame(tmp_path / "a.cor", frame_of("Cu"))
    (ready,) = stage(detector=str(other)).prepare(stage(detector=str(other)).read(str(path)))
    np.testing.assert_allclose(ready.detector.parameters, [80, 970, 930, 0, 0])


def test_without_a_calibration(tmp_path):
    path = write_frame(tmp_path / "a.cor", frame_of("Cu"), footer=False)
    with pytest.raises(InputError, match=r"a\.cor: has no calibration; give one with --detector") as caught:
        stage().read(str(path))
    assert sentence(caught)
    with pytest.raises(InputError, match=r"a\.cor: has no calibration below its spots"):
        stage(detector=str(path))
    with pytest.raises(InputError, match=r"nothing\.det: the calibration cannot be read"):
        stage(detector=str(tmp_path / "nothing.det"))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "no material to look for"),
        (("Cuu",), "unknown material 'Cuu'; it is one of Ag, .* the path of a CIF, or NAME:SPACEGROUP:a,b,c"),
        (("Cu", "Cu"), "two materials are called Cu"),
        (("X:Fm-3m:3,3,3,90,90",), "a cell has six numbers"),
        (("nothing.cif",), "nothing.cif: there is no such file"),
    ],
)
def test_materials_that_cannot_be(names, says):
    with pytest.raises(InputError, match=says) as caught:
        laue.LaueStage(LaueSettings(materials=names))
    sentence(caught)


def test_paths_in_a_campaign_count_from_its_file(tmp_path):
    write_frame(tmp_path / "calib.cor", frame_of("Cu"))
    text = '[campaign]\ninputs = ["*.tif"]\nstage = "laue"\n[laue]\nmaterials = ["Cu"]\ndetector = "calib.cor"\n'
    (tmp_path / "c.toml").write_text(text)
    made = stages.load("laue", read_campaign(tmp_path / "c.toml").stage_settings())
    assert made.calibration is not None and made.calibration.shape == DETECTOR.shape


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("energy = [23, 5]", "laue.energy: give the lowest and the highest energy in keV"),
        ("grain = 3", "unknown key 'laue.grain'; the valid keys are materials, detector, energy, grains"),
        ("grains = 0", "laue.grains: Input should be greater than or equal to 1"),
    ],
)
def test_bad_settings_in_a_campaign(tmp_path, line, says):
    (tmp_path / "c.toml").write_text(f'[campaign]\ninputs = ["*"]\nstage = "laue"\n[laue]\n{line}\n')
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_campaign(tmp_path / "c.toml")
    sentence(caught)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A frame on a small detector: as TIFF, three times in an HDF5 file, and its calibration."""
    folder = tmp_path_factory.mktemp("images")
    frame = frame_of("Si", detector=SMALL, dropped=0.0, spurious=0.0, noise=0.0)
    image = render_image(np.random.default_rng(1), frame)
    TifImage(data=image).write(str(folder / "one.tif"))
    with h5py.File(folder / "three.h5", "w") as file:
        file["entry/data/data"] = np.stack([image, image[::-1], np.full_like(image, 7)])
        file["other"] = image[None, :200]
    write_frame(folder / "calib.cor", frame)
    return folder, frame


def test_spots_of_an_image(images, known):
    folder, frame = images
    calls = known(frame_of())
    made = stage("Si", detector=str(folder / "calib.cor"), threshold=8.0, grains=2, energy=(6, 20))
    result = stages.solve(made, made.read(str(folder / "one.tif")))[0]
    found = result.tables["spots"]
    assert calls == [
        {
            "n": len(found["x"]),
            "detector": SMALL,
            "materials": made.materials,
            "energy": (6, 20),
            "grains": 2,
            "guesses": (),
        }
    ]
    bright = frame.intensity > 1e-2 * frame.intensity.max()
    distance = np.hypot(found["x"][:, None] - frame.x, found["y"][:, None] - frame.y)
    assert np.mean(distance.min(0)[bright] < 0.3) > 0.9


def test_a_stack_is_one_item_a_frame_and_read_when_it_is_worked_on(images, monkeypatch):
    folder, _ = images
    read: list[str] = []
    original = laue.read_image
    monkeypatch.setattr(laue, "read_image", lambda name: read.append(name) or original(name))
    made = stage("Si", detector=str(folder / "calib.cor"))
    items = made.read(str(folder / "three.h5"))
    assert [item.id for item in items] == ["three:0", "three:1", "three:2"]
    assert not read and all(not item.arrays for item in items)
    (ready,) = made.prepare(items[1:2])
    assert len(read) == 1 and read[0].endswith("three.h5::#1")
    with h5py.File(folder / "three.h5") as file:
        np.testing.assert_array_equal(ready.image, file["entry/data/data"][1])
    empty = stages.solve(made, items[2:])[0]
    assert empty.status is Status.UNSOLVED and empty.reason == "0 spots are too few, a grain needs 6"
    assert not len(empty.tables["grains"]["ub"]) and empty.tables["frames"]["n_grains"] == [0]


def test_an_image_of_another_size(images):
    folder, _ = images
    made = stage("Si", detector=str(folder / "calib.cor"), dataset="/other")
    with pytest.raises(InputError, match="it is for images of 256 x 260 pixels, and this one has 200 x 260") as caught:
        made.read(str(folder / "three.h5"))
    assert "three.h5" in sentence(caught) and "calib.cor" in str(caught.value)
    with pytest.raises(InputError, match=r"one\.tif: has no calibration"):
        stage("Si").read(str(folder / "one.tif"))


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (None, "cannot be read"), (b"II*\0rubbish", "image")])
def test_files_of_no_use(images, tmp_path, content, says):
    path = tmp_path / "bad.tif"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        stage("Si", detector=str(images[0] / "calib.cor")).read(str(path))
    assert "bad.tif" in sentence(caught)


@pytest.mark.parametrize("name", ["Cu", "Ti", "ZrO2"])
def test_energies_are_those_of_the_lowest_order_that_gemmi_allows(name, known):
    frame = frame_of(name, seed=3)
    (grain,) = true_grains(frame)
    hkl, energy = laue.energies_of(grain, DETECTOR, BAND)
    np.testing.assert_array_equal(hkl, frame.hkl[grain.spots])
    q = hkl @ grain.ub.T
    first = 12.398419843 * np.sum(q**2, 1) / (-2 * q[:, 0])
    operations = gemmi.SpaceGroup({"Cu": "F m -3 m", "Ti": "P 63/m m c", "ZrO2": "P 1 21/c 1"}[name]).operations()
    structure_forbids = 0
    for index, one, value in zip(hkl.tolist(), first, energy, strict=True):
        order = round(value / one)
        assert value == pytest.approx(order * one, rel=1e-9) and BAND[0] <= value <= BAND[1]
        assert not operations.is_systematically_absent([order * i for i in index])
        lower = [n for n in range(1, order) if n * one >= BAND[0]]
        structure_forbids += any(not operations.is_systematically_absent([n * i for i in index]) for n in lower)
    assert structure_forbids <= 0.1 * len(hkl), "of Ti the hexagonal close packing extinguishes some more"


@pytest.mark.parametrize(
    ("name", "hkl", "order", "energy"),
    [
        # the order asked for at an energy (keV), and the one that is told
        ("Si", (1, 0, 0), (4, 23.2), 4),  # 100 at 5.8 is in the band and extinct, 400 is just beyond
        ("C_diamond", (1, 1, 1), (2, 14.0), 1),  # 222 alone is in the band of 12 to 15, and extinct by its atoms
        ("Si", (1, 1, 1), (1, 4.9), 3),  # 333 is in the band
        ("Cu", (1, 1, 0), (2, 23.1), 2),
    ],
)
def test_a_spot_beyond_the_band_has_an_order_that_is_not_extinct(name, hkl, order, energy):
    one = material(name)
    number, kev = order
    band = (12.0, 15.0) if name == "C_diamond" else BAND
    q = np.array(hkl) @ one.b.T * number
    length = np.linalg.norm(q)
    along = 12.398419843 * length**2 / (2 * kev)  # -q_x at this energy
    target = np.array([-along, 0.0, np.sqrt(length**2 - along**2)]) / length
    turn = Rotation.align_vectors([target], [q / length])[0].as_matrix()
    (grain,) = true_grains(frame_of(name))
    grain = search.Grain(**{**grain.__dict__, "ub": turn @ one.b, "hkl": np.array([hkl]), "spots": np.array([0])})
    (index,), (found,) = laue.energies_of(grain, DETECTOR, band)
    assert index.tolist() == list(hkl) and found == pytest.approx(kev * energy / number, rel=1e-6)
    squared = intensities(one.structure, one.cell, np.array([hkl]) * energy)
    assert squared[0] > 0 and not one.group.absent(np.array([hkl]) * energy)[0]


def test_the_sign_of_hkl_is_that_which_diffracts(known):
    frame = frame_of("Cu", seed=3)
    (grain,) = true_grains(frame)
    turned = search.Grain(**{**grain.__dict__, "hkl": -grain.hkl})
    for one in (grain, turned):
        np.testing.assert_array_equal(laue.energies_of(one, DETECTOR, BAND)[0], frame.hkl[grain.spots])


def test_tables_and_record_say_what_the_frame_holds(tmp_path, known):
    frame = frame_of("Si", "GaN", seed=5, strain=1e-3)
    known(frame)
    made = stage("Si", "GaN")
    result = stages.solve(made, made.read(str(write_frame(tmp_path / "f.cor", frame))))[0]
    assert result.status is Status.SOLVED and not result.reason
    record = made.record(result)
    assert list(record) == ["id", "source", "status", "seconds", "grains", "spots"]
    assert [g["material"] for g in record["grains"]] == ["Si", "GaN"]
    assert {"material", "ub", "u", "strain", "n_matched", "match_rate", "score"} <= set(record["grains"][0])
    assert [s["grain"] for s in record["spots"]] == frame.grain.tolist()
    for spot in record["spots"]:
        if spot["grain"] < 0:
            assert spot["hkl"] is None and spot["energy"] is None
            continue
        q = np.array(record["grains"][spot["grain"]]["ub"]) @ spot["hkl"]
        x, y, on = pixel_from_direction(kf_from_q(q), DETECTOR)
        assert on and np.hypot(x - spot["x"], y - spot["y"]) < 1.5 and q[0] < 0
        order = spot["energy"] / (12.398419843 * (q @ q) / (-2 * q[0]))
        assert order == pytest.approx(round(order), abs=1e-4) and round(order) >= 1
    row = {name: values[0] for name, values in result.tables["frames"].items()}
    assert (row["n_spots"], row["n_grains"]) == (len(frame.x), 2) and row["n_indexed"] == np.sum(frame.grain >= 0)
    assert row["strain_norm"] == pytest.approx(np.linalg.norm(frame.grains[0].strain))


def test_the_uncertainty_of_the_norm_of_a_strain():
    """Against the spread of the norms of strains that are drawn."""
    rng = np.random.default_rng(0)
    strain = np.array([[1.0, 0.5, -0.2], [0.5, -0.4, 0.3], [-0.2, 0.3, -0.6]]) * 1e-3
    esd = np.array([[3.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 3.0]]) * 1e-6
    draw = np.triu(rng.normal(size=(20_000, 3, 3)) * esd)
    draw = strain + draw + np.swapaxes(np.triu(draw, 1), 1, 2)
    norm, spread = strain_norm(strain, esd)
    assert norm == pytest.approx(np.linalg.norm(strain)) and spread == pytest.approx(
        np.linalg.norm(draw, axis=(1, 2)).std(), rel=0.03
    )
    assert strain_norm(np.zeros((3, 3)), esd)[1] > 0


@pytest.mark.parametrize("n", [0, 5])
def test_too_few_spots(tmp_path, n):
    frame = frame_of("Cu")
    path = write_frame(tmp_path / "few.cor", frame)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[1 : n + 1], *(x for x in lines if x.startswith("#"))]))
    made = stage()
    result = stages.solve(made, made.read(str(path)))[0]
    assert result.status is Status.UNSOLVED and result.reason == f"{n} spots are too few, a grain needs 6"
    assert laue_record(result)["grains"] == [] and len(laue_record(result)["spots"]) == n


def test_only_the_brightest_spots(tmp_path, known):
    frame = frame_of("Si")
    calls = known(frame_of())
    made = stage("Si", max_spots=20)
    result = stages.solve(made, made.read(str(write_frame(tmp_path / "f.cor", frame))))[0]
    assert calls[0]["n"] == 20 and result.tables["spots"]["intensity"].min() >= np.sort(frame.intensity)[-20] - 1e-6
    assert result.reason == (
        "no crystal of Si explains the 20 spots better than chance between 5 and 23 keV; "
        "only the 20 brightest spots were used (max_spots = 20)"
    )


@pytest.mark.parametrize(("most", "there"), [(9000, 20_000), (9000, 8500), (500, 600), (500, 400)])
def test_a_crowded_image(most, there, known, monkeypatch):
    """As many of its spots as were asked for, the brightest, and a sentence where these are not all."""
    bright = np.random.default_rng(0).permutation(np.arange(1.0, there + 1))

    def find(image, settings, saturation):  # as the kernel: no more than it has room for
        few = np.sort(bright)[::-1][: settings.max_spots]
        columns = np.broadcast_to(few, (10, len(few)))
        return FoundSpots(*columns[:9], np.zeros(len(few), int), overflow=there > settings.max_spots)

    monkeypatch.setattr(frames, "find_spots", find)
    known(frame_of("Si", dropped=0.5, spurious=0.0))
    made = stage("Si", max_spots=most)
    nothing, image = np.empty(0), np.zeros((64, 64), np.float32)
    (out,) = made.kernel([Spots("a.tif", SMALL, nothing, nothing, nothing, image)])
    assert np.array_equal(np.sort(out[0].intensity), np.sort(bright)[-most:])
    (result,) = made.finish([Item("a", "a.tif")], [out])
    assert result.status is Status.SOLVED
    says = f"only the {most} brightest spots were used (max_spots = {most})"
    assert result.reason == (says if there > most else "")


def test_a_frame_for_real_and_one_of_another_material(tmp_path):
    """Two grains and dirt: both are found, and their spots; and as the frame of another crystal: nothing."""
    frame = frame_of("Cu", "Cu", seed=7)
    path = str(write_frame(tmp_path / "f.cor", frame))
    made = stage("Cu")
    (result,) = stages.solve(made, made.read(path))
    assert result.status is Status.SOLVED, result.reason
    grains = result.tables["grains"]
    assert len(grains["u"]) == 2
    copper = material("Cu")
    away = [[misorientation(a, g.u, copper.rotations) for g in frame.grains] for a in grains["u"]]
    assert np.min(away, axis=1).max() < 0.02 and set(np.argmin(away, axis=1)) == {0, 1}
    order = np.argmin(away, axis=1)
    owner = result.tables["spots"]["grain"]
    assert np.mean(np.where(owner >= 0, order[owner], -1) == frame.grain) > 0.95
    other = stage("Al2O3")
    (nothing,) = stages.solve(other, other.read(path))
    assert nothing.status is Status.UNSOLVED and not len(nothing.tables["grains"]["u"])
    assert nothing.reason.startswith("no crystal of Al2O3 explains the")


def test_a_spot_beside_the_detector_names_the_file(tmp_path):
    path = write_frame(tmp_path / "f.cor", frame_of("Cu"))
    small = write_frame(tmp_path / "small.cor", frame_of("Cu", detector=SMALL))
    path.write_text("\n".join(x for x in path.read_text().splitlines() if "framedim" not in x))
    made = stage(detector=str(small))
    (result,) = stages.solve(made, made.read(str(path)))
    assert result.status is Status.FAILED and result.reason.startswith(str(path))
    assert "lie outside the 260 x 256 pixels of the detector" in result.reason


def test_a_network_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MLINDEX_CACHE", str(tmp_path / "cache"))
    made = stage(network=True)
    (result,) = stages.solve(made, made.read(str(write_frame(tmp_path / "f.cor", frame_of("Cu")))))
    assert result.status is Status.FAILED
    assert result.reason.startswith(f"{tmp_path / 'f.cor'}: no network is trained for Cu with this detector")
    assert "mlindex train laue" in result.reason


def test_what_a_network_recognises_is_tried_first(tmp_path, known, monkeypatch):
    """Candidates that agree become guesses, ub of the right material; the network is read once."""
    from mlindex.laue import recognise

    frame = frame_of("GaN", seed=4)
    calls, loaded = known(frame_of()), []
    u = np.repeat(frame.grains[0].u[None], 5, 0)
    nobody = recognise.Candidates(np.empty((0, 3, 3)), np.empty(0, int), np.empty(0, int), np.empty(0))
    sure = recognise.Candidates(u, np.arange(5), np.arange(5) + 1, np.full(5, 0.9))
    monkeypatch.setattr(recognise, "cached", lambda one, *rest: loaded.append(one.name) or one.name)
    monkeypatch.setattr(recognise, "recognise", lambda network, q, intensity: q)
    monkeypatch.setattr(recognise, "candidates", lambda network, said, q: sure if network == "GaN" else nobody)
    made = stage("Si", "GaN", network=True)
    items = made.read(str(write_frame(tmp_path / "f.cor", frame)))
    for _ in range(2):
        assert stages.solve(made, items)[0].status is Status.UNSOLVED
        ((which, ub),) = calls[-1]["guesses"]
        assert which == 1
        np.testing.assert_allclose(ub, frame.grains[0].ub, atol=1e-12)
    assert loaded == ["Si", "GaN"]


def test_votes():
    """Of candidates, two bundles and a hundred strays, the bundles are left, whichever equivalent each was in."""
    from mlindex.crystal.rotation import random_rotations

    rng = np.random.default_rng(2)
    rotations = material("Cu").rotations
    centres = random_rotations(rng, 2)
    bundle = [centres[i % 2] @ rotations[rng.integers(24)] for i in range(12)]
    u = np.concatenate([bundle, random_rotations(rng, 100)])
    found = agreed(u, rng.random(len(u)), rotations, votes=4)
    assert len(found) == 2
    assert sorted(int(np.argmin([misorientation(f, c, rotations) for c in centres])) for f in found) == [0, 1]
    assert max(min(misorientation(f, c, rotations) for c in centres) for f in found) < 1e-5
    assert agreed(np.empty((0, 3, 3)), np.empty(0), rotations).shape == (0, 3, 3)
