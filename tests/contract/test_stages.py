"""Every stage in the table keeps the protocol: bad input is an `InputError`, results have the columns of the schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlindex import stage as stages
from mlindex.bloch.beams import geometry, shell_beams, tilt_disc
from mlindex.bloch.simulate import random_u, simulate_pattern
from mlindex.config import Campaign, CampaignSettings
from mlindex.formats.larbed import write_larbed
from mlindex.records import Column, InputError, Item, Result, Schema, Status, failed, items_from_buffer, items_to_buffer

A = 4.05  # angstrom: the first lines of an F-centred cubic lattice
ALUMINIUM = [(n, n / A**2) for n in (3, 4, 8, 11, 12, 16, 19, 20, 24, 27, 32, 35, 36, 40)]
GERMANIUM = Path(__file__).parents[1] / "reference" / "lauetools" / "Ge_blanc_0000_LT_5.cor"


def _rocked(path: Path) -> None:
    at = {"cell": (A, A, A, 90.0, 90.0, 90.0), "zone": (0, 0, 1), "voltage_kv": 120.0}
    place = geometry(shell_beams(at["cell"], at["zone"], 5), tilt_disc(5, 60.0)[0], **at)
    u = random_u(np.random.default_rng(5), place.dhkl, 0.1)
    write_larbed(path, *simulate_pattern("pattern", u, place, 150.0, **at))


GOOD = {
    "powder": lambda path: path.write_text("# q2\n" + "".join(f"{q2:.8f}\n" for _, q2 in ALUMINIUM)),
    "laue": lambda path: path.write_bytes(GERMANIUM.read_bytes()),
    "bloch": _rocked,
}
QUICK = {
    "powder": {"effort": "quick", "lattice": ["cP", "cI", "cF"]},
    "laue": {"materials": ["Ge"]},
    "bloch": {"thickness_nm": [10, 30]},
}


@pytest.fixture(scope="module", params=sorted(stages.STAGES))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stage(name):
    campaign = CampaignSettings(inputs=("x",), stage=name)
    settings = Campaign.model_validate({"campaign": campaign, name: QUICK[name]}).stage_settings()
    return stages.load(name, settings)


@pytest.fixture(scope="module")
def items(stage, name, tmp_path_factory) -> list[Item]:
    path = tmp_path_factory.mktemp(name) / "good"
    GOOD[name](path)
    return stage.read(str(path))


@pytest.fixture(scope="module")
def result(stage, items) -> Result:
    return stages.solve(stage, items[:1])[0]


def test_protocol(stage, name):
    assert isinstance(stage.name, str) and stage.name == name
    assert isinstance(stage.schema, Schema)
    for columns in stage.schema.tables.values():
        names = [column.name for column in columns]
        assert len(set(names)) == len(names) and all(isinstance(column, Column) for column in columns)


def test_items_travel_unchanged(items):
    (again,) = items_from_buffer(items_to_buffer(items[:1]))
    assert (again.id, again.source, dict(again.attrs)) == (items[0].id, items[0].source, dict(items[0].attrs))
    assert set(again.arrays) == set(items[0].arrays)
    for key, array in items[0].arrays.items():
        np.testing.assert_array_equal(again.arrays[key], array)
        assert again.arrays[key].dtype == array.dtype


def test_the_good_item_is_solved_and_fills_the_schema(stage, result):
    assert result.status is Status.SOLVED, result.reason
    assert set(result.tables) == set(stage.schema.tables)
    for table, columns in stage.schema.tables.items():
        found = result.tables[table]
        assert set(found) == {column.name for column in columns}
        assert len({len(values) for values in found.values()}) == 1
        for column in columns:
            values = np.asarray(found[column.name])
            assert values.shape[1:] == column.shape, (table, column.name)
            if column.dtype == "str":
                assert all(isinstance(value, str) for value in values.ravel())
            else:
                assert values.dtype == np.dtype(column.dtype), (table, column.name)


def test_the_record_is_json(stage, result, items):
    for each in (result, failed(items[0], "because")):
        record = json.loads(json.dumps(stage.record(each), allow_nan=False))
        assert record["id"] == each.id and record["source"] == each.source and record["status"] == str(each.status)
    assert record["reason"] == "because"


@pytest.mark.parametrize("content", [None, b"", b"\x00\x01\x02", b"no data in here\n"])
def test_bad_input_is_an_input_error_of_one_sentence(stage, tmp_path, content):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        stage.read(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_one_bad_item_does_not_take_the_batch_with_it(stage, items):
    bad = Item("bad", "nowhere", {}, {})
    good, spoiled = stages.solve(stage, [items[0], bad])
    assert good.status is Status.SOLVED and good.id == items[0].id
    assert spoiled.status is Status.FAILED and spoiled.reason and spoiled.id == "bad"


def test_an_unknown_stage_names_the_known_ones():
    with pytest.raises(InputError, match="powder"):
        stages.load("magic", None)
