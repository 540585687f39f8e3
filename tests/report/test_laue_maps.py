"""Colours against orix itself, maps in HDF5 as NeXus has them, and pictures."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from diffpy.structure import Lattice, Structure
from orix.crystal_map import Phase as OrixPhase
from orix.plot import DirectionColorKeyTSL, IPFColorKeyTSL
from orix.quaternion import Orientation
from orix.quaternion.symmetry import C2h, Oh
from orix.vector import Miller, Vector3d

from mlindex.crystal.rotation import random_rotations
from mlindex.crystal.strain import direct_matrix_from_cell
from mlindex.formats.ctf import Phase
from mlindex.laue.geometry import sample_from_lab
from mlindex.laue.maps import fields
from mlindex.laue.maps.phases import reciprocal_from_direct
from mlindex.laue.maps.scan import Scan
from mlindex.laue.materials import Material, material
from mlindex.records import InputError
from mlindex.report import canvas, laue_maps_colour
from mlindex.report.laue_maps import grain_colours, grain_picture, ipf_columns, map_pictures, map_sections
from mlindex.report.laue_maps_file import write_maps

CRYSTALS = ("Cu", "Ti", "TiO2", "Al2O3", "GaN", "CuWO4", "O:Pnma:4,5,6,90,90,90", "H:P 63/m:5,5,9,90,90,120")
OTHERS = ("ZrO2", "M:P 1 1 21/b:4,5,6,90,90,100", "R:R -3 c:R:5,5,5,55,55,55", "Q:P 31 1 2:5,5,6,90,90,120")


def phase_of(crystal: Material) -> Phase:
    return Phase(crystal.name, crystal.cell, crystal.laue_group, crystal.group.number)


def along(indices: np.ndarray, crystal: Material) -> np.ndarray:
    """Directions [uvw] in the reciprocal Cartesian axes of a crystal."""
    direct = np.asarray(direct_matrix_from_cell(crystal.cell))
    return indices @ (reciprocal_from_direct(crystal.cell) @ direct).T


@pytest.mark.parametrize("text", CRYSTALS)
def test_colours_of_directions_are_those_of_orix(text):
    """orix is given the cell and indices, and does the geometry with diffpy's."""
    crystal = material(text)
    indices = np.random.default_rng(0).integers(-5, 6, (200, 3))
    indices = indices[np.abs(indices).sum(1) > 0]
    structure = Structure(lattice=Lattice(*crystal.cell))
    theirs = OrixPhase(point_group=crystal.laue_group, structure=structure)
    directions = Miller(uvw=indices, phase=theirs)
    expected = DirectionColorKeyTSL(theirs.point_group).direction2color(directions)
    found = laue_maps_colour.ipf_colours(along(indices, crystal), phase_of(crystal))
    # on a border of the sector the colour jumps by nothing, but its hue may be that of either side
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("text", [*CRYSTALS, *OTHERS])
def test_equivalent_directions_have_one_colour(text):
    crystal = material(text)
    v = np.random.default_rng(1).normal(size=(60, 3))
    phase = phase_of(crystal)
    colours = laue_maps_colour.ipf_colours(v, phase)
    for turn in crystal.rotations:
        for sign in (1, -1):
            np.testing.assert_allclose(laue_maps_colour.ipf_colours(sign * v @ turn.T, phase), colours, atol=1e-6)
    assert np.ptp(colours, axis=0).min() > 0.5


def test_a_monoclinic_crystal_is_coloured_about_b():
    """orix' 2/m has its axis along z: b here, with a along x."""
    zirconia = material("ZrO2")
    v = np.random.default_rng(1).normal(size=(60, 3))
    in_direct = v @ reciprocal_from_direct(zirconia.cell)
    expected = DirectionColorKeyTSL(C2h).direction2color(Vector3d(in_direct[:, [0, 2, 1]] * [1, -1, 1]))
    np.testing.assert_allclose(laue_maps_colour.ipf_colours(v, phase_of(zirconia)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "corners"),
    [("Cu", {"[001]", "[101]", "[111]"}), ("Ti", {"[001]", "[100]", "[210]"}), ("TiO2", {"[001]", "[100]", "[110]"})],
)
def test_the_key_of_a_phase(text, corners):
    """Its corners have indices, and it shows at them what those directions get."""
    crystal = material(text)
    key = laue_maps_colour.ipf_key(phase_of(crystal))
    assert {label for _, label in key.corners} == corners
    left, right, bottom, top = key.extent
    assert left < right and bottom < top and key.image.shape[2] == 4
    for (x, y), label in key.corners:
        expected = laue_maps_colour.ipf_colours(
            along(np.array([[int(c) for c in label[1:-1]]]), crystal), phase_of(crystal)
        )
        rows, columns = np.nonzero(key.image[..., 3])
        at_x = left + (columns + 0.5) / key.image.shape[1] * (right - left)
        at_y = bottom + (rows + 0.5) / key.image.shape[0] * (top - bottom)
        near = int(np.argmin((at_x - x) ** 2 + (at_y - y) ** 2))
        np.testing.assert_allclose(key.image[rows[near], columns[near], :3], expected[0], atol=0.08)


def test_without_orix(monkeypatch):
    laue_maps_colour.check()
    monkeypatch.setitem(__import__("sys").modules, "orix", None)
    with pytest.raises(InputError, match=r"maps need orix, .* pip install 'mlindex-hpc\[report\]'"):
        laue_maps_colour.check()


def maps_of(*names: str, rows: int = 3, columns: int = 4, holes: tuple[int, ...] = ()) -> fields.ScanMaps:
    """A scan of two grains a frame, one phase in the left half and another in the right; some frames failed."""
    rng = np.random.default_rng(0)
    scan = Scan(rows, columns, (2.0, 0.5))
    base = random_rotations(rng, 4)
    columns_of: dict[str, list] = {name: [] for name in fields.NEEDED}
    state, count = [], []
    for number in range(scan.size):
        state.append(fields.FAILED if number in holes else fields.SOLVED)
        count.append(0 if number in holes else 2)
        half = int(number % columns >= columns / 2)
        for rank in range(count[-1]):
            crystal = material(names[half % len(names)])
            strain = rng.normal(size=(3, 3)) * 1e-3
            row = {
                "material": crystal.name,
                "cell": crystal.cell,
                "laue_group": crystal.laue_group,
                "space_group": crystal.group.number,
                "ub": base[2 * half + rank] @ crystal.b,
                "strain": (strain + strain.T) / 2 - np.eye(3) * np.trace(strain) / 3,
                "strain_esd": np.full((3, 3), 1e-4),
                "match_rate": 0.9 - 0.1 * rank,
                "score": 100.0 - rank,
                "n_matched": 30 - rank,
                "rms_px": 0.2,
            }
            for name, value in row.items():
                columns_of[name].append(value)
    grains = {
        name: np.array(v, object if name in ("material", "laue_group") else None) for name, v in columns_of.items()
    }
    return fields.maps_of(scan, np.arange(scan.size), np.array(state), np.array(count), grains)


def test_the_colours_of_a_map_are_those_of_orix_for_its_orientations():
    maps = maps_of("Cu")
    colours = ipf_columns(maps)
    in_lab = sample_from_lab(40.0).T @ maps.points["orientation"]
    for axis, direction in (("x", (1, 0, 0)), ("y", (0, 1, 0)), ("z", (0, 0, 1))):
        # orix' orientations take the sample to the crystal
        orientations = Orientation.from_matrix(np.swapaxes(sample_from_lab(40.0) @ in_lab, 1, 2), symmetry=Oh)
        expected = IPFColorKeyTSL(Oh, direction=Vector3d(direction)).orientation2color(orientations)
        np.testing.assert_allclose(colours[axis], expected, atol=1e-6)


def test_maps_as_hdf5(tmp_path):
    maps = maps_of("Cu", "Ti", holes=(5,))
    assert [phase.name for phase in maps.phases] == ["Cu", "Ti"] and len(maps.pixels) == 4
    colours = ipf_columns(maps)
    write_maps(tmp_path / "maps.h5", maps, colours, origin="run", grains=2)
    assert [p.name for p in tmp_path.iterdir()] == ["maps.h5"]
    with h5py.File(tmp_path / "maps.h5") as file:
        assert file.attrs["NX_class"] == "NXroot" and file.attrs["default"] == "maps"
        entry = file["maps"]
        assert entry.attrs["NX_class"] == "NXentry" and entry["tilt"][()] == 40.0
        for name in ("data", "grain_0001", "grain_0002"):
            group = entry[name]
            assert group.attrs["NX_class"] == "NXdata" and group.attrs["signal"] in group
            assert [group[a].size for a in group.attrs["axes"]] == [3, 4]
            assert group["y"][1] == 2.0 and group["x"][1] == 0.5 and group["x"].attrs["units"] == "micrometre"
        for dataset in [*entry["data"].values(), *entry["points"].values(), *entry["grains"].values()]:
            if dataset.name.endswith("title"):
                continue
            assert dataset.attrs["long_name"] and "units" in dataset.attrs, dataset.name
        data, points = entry["data"], entry["points"]
        for column in fields.POINTS:
            assert data[column.name].shape[:2] == (3, 4), column.name
            best = points["rank"][:] == 0
            at = points["row"][:][best], points["column"][:][best]
            np.testing.assert_array_equal(data[column.name][:][at], points[column.name][:][best])
        assert data["grain"][1, 1] == 0 and np.isnan(data["strain_sample_xx"][1, 1]) and data["state"][1, 1] == 1
        assert data["ipf_z"].shape == (3, 4, 3) and "grain_0003" not in entry
        assert entry["phases/name"].asstr()[:].tolist() == ["Cu", "Ti"]
        assert entry["grains/frames"][:].tolist() == maps.pixels.tolist()
        second = entry["grain_0002/grain"][:]
        assert set(np.unique(second)) == {0, 2} and (second == 2).sum() == maps.pixels[1]
    with pytest.raises(InputError, match=r"maps\.h5: cannot be written"):
        write_maps(tmp_path / "nowhere" / "maps.h5", maps, colours, origin="run")


def test_every_picture_draws(tmp_path):
    """Also of a scan of one frame, of one row, and of one in which nothing was found."""
    maps = maps_of("Cu", "ZrO2", holes=(5, 6))
    colours = ipf_columns(maps)
    pictures = [*map_pictures(maps, colours), grain_picture(maps, 2, colours)]
    names = [picture.name for picture in pictures]
    assert len(set(names)) == len(names) and {"map-grains", "map-ipf", "map-strain-sample-esd", "grain-0002"} <= set(
        names
    )
    for picture in pictures:
        svg, png = canvas.render(picture)
        assert png.startswith(b"\x89PNG") and "</svg>" in svg
    svg = canvas.render(pictures[0])[0]
    assert "Cu" in svg and "ZrO2" in svg and "failed" in svg
    assert "[010]" in canvas.render(pictures[1])[0], "the key of a monoclinic crystal"
    none = maps_of("Cu", rows=1, columns=2, holes=(0, 1))
    for small in (maps_of("Cu", rows=1, columns=1), none):
        first, key, *_, strain, quality = map_pictures(small, ipf_columns(small))
        for picture in (first, key, strain, quality) if small is none else (key, quality):
            assert canvas.render(picture)[1].startswith(b"\x89PNG")
    assert map_sections(none) == []


def test_the_section_of_a_report():
    (section,) = map_sections(maps_of("Cu", "Ti"))
    assert section.anchor == "maps-section" and "<b>4 grains</b> in a scan of 3 × 4 frames" in section.glance[0]
    assert [p.name for p in section.parts if isinstance(p, canvas.Picture)][:2] == ["map-grains", "map-ipf"]
    assert 'id="scan-grains"' in str(section.parts[-1])


def test_grains_side_by_side_have_different_colours():
    colours = grain_colours(np.arange(1, 200))
    assert colours.min() >= 0 and colours.max() <= 1
    apart = np.linalg.norm(colours[1:] - colours[:-1], axis=1)
    assert apart.min() > 0.25 and len(np.unique(colours.round(3), axis=0)) > 190
