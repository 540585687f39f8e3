"""The page says what the results files hold: its numbers are computed here again, from `read_results`."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlindex.cli.report import gather, write_report
from mlindex.records import InputError, Result, Status
from mlindex.report.census import collect
from mlindex.report.page import Source
from mlindex.report.page import page as page_of
from mlindex.runtime import lock
from mlindex.runtime.master import build_master
from mlindex.runtime.queue import Part
from mlindex.runtime.shards import read_results
from tests.report.page_reader import Page
from tests.report.results import failed, solved
from tests.report.runs import make, results
from tests.report.test_parts import block


def number(text: str) -> float:
    return float(re.sub(r"[^0-9.eE+-]", "", text))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("report") / "run", results(100), inputs_more=5)


@pytest.fixture(scope="module")
def truth(run) -> list[Result]:
    return read_results(build_master(run))


@pytest.fixture(scope="module")
def page(run, truth) -> Page:
    return Page(write_report(run, None).read_text())


def test_headline(page, truth):
    counts = Counter(r.status for r in truth)
    assert len(truth) == 100 and len(counts) == 3
    for status in Status:
        assert number(page.texts[f"n-{status}"]) == counts[status]
    assert number(page.texts["n-done"]) == 100 and number(page.texts["n-left"]) == 5
    assert page.texts["state"] == "unfinished, 5 left"


def test_wall_time_leaves_out_the_pause_and_gives_the_rate(page):
    """Two jobs: from each one's start to its last item; the day in between is no work."""
    hours, minutes, seconds = page.texts["n-time"].split(":")
    worked = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
    assert 100 < worked < 400
    assert number(page.texts["n-rate"].split("/")[0]) == pytest.approx(60 * 100 / worked, rel=0.02)
    assert "pauses" in page.texts["timeline"] and re.search(r"23 h \d\d min", page.texts["timeline"])


def test_timeline_has_each_item_once(page, truth):
    rows = page.rows("timeline-numbers")
    for status in Status:
        assert sum(int(row[status]) for row in rows) == sum(r.status is status for r in truth)


def test_stage_and_tasks(page, truth):
    (row,) = page.rows("stages")
    done, good = len(truth), sum(r.status is Status.SOLVED for r in truth)
    mean = sum(r.seconds for r in truth) / done
    assert (row["Stage"], int(row["Done"]), int(row["Solved"])) == ("powder", done, good)
    assert number(row["Indexed"]) == pytest.approx(100 * good / done, abs=0.05)
    assert float(row["Seconds each"]) == pytest.approx(mean, rel=0.01)
    tasks = page.rows("tasks")
    assert [row["Array task"] for row in tasks] == ["0 of 2", "1 of 2"]
    for row, mine in zip(tasks, (truth[::2], truth[1::2]), strict=True):
        counts = Counter(r.status for r in mine)
        assert int(row["Done"]) == len(mine) and int(row["Left"]) in (2, 3) and row["Rounds"] == "1"
        assert row["State"] == "stopped by a signal"
        assert [int(row[s.title()]) for s in Status] == [counts[s] for s in Status]


def test_figures_of_merit_are_those_of_the_best_solutions(page, truth):
    best = [float(r.tables["solutions"]["m20"][0]) for r in truth if r.status is Status.SOLVED]
    row = next(row for row in page.rows("merit-numbers") if row["Solved items"].startswith("M20"))
    assert int(row["Values"]) == len(best) and float(row["Median"]) == pytest.approx(statistics.median(best), rel=1e-3)
    zero = next(row for row in page.rows("merit-numbers") if row["Solved items"].startswith("zero"))
    assert int(zero["Values"]) == len(best) and float(zero["Median"]) == pytest.approx(0.0123)


def test_clusters_and_lattices(page, truth):
    good = [r for r in truth if r.status is Status.SOLVED]
    (lattice,) = page.rows("lattices-numbers")
    assert (lattice["Lattice"], int(lattice["Items"])) == ("hR", len(good))
    (cluster,) = page.rows("clusters")
    mean = statistics.fmean(float(r.tables["solutions"]["m20"][0]) for r in good)
    assert int(cluster["Items"]) == len(good) and float(cluster["Mean M20"]) == pytest.approx(mean, abs=0.06)
    assert [float(cluster[k]) for k in ("a (Å)", "c (Å)", "γ (°)")] == [4.759, 12.992, 120]
    assert float(cluster["V (Å³)"]) == pytest.approx(254.8, abs=0.1)


def test_failures_by_reason(page, truth):
    bad = [r for r in truth if r.status is Status.FAILED]
    rows = page.rows("reasons")
    assert {row["Reason"]: int(row["Items"]) for row in rows} == {
        "has … distinct lines; indexing needs at least …": sum("distinct" in r.reason for r in bad),
        "is empty; give a list of line positions": sum("empty" in r.reason for r in bad),
    }
    assert bad[0].source in rows[0]["Examples"] + rows[1]["Examples"]


def test_timing(page, truth):
    (host,) = page.rows("hosts")
    assert int(host["Items"]) == 100 and int(host["Ranks"]) == 4
    assert float(host["Mean (s)"]) == pytest.approx(statistics.fmean(r.seconds for r in truth), rel=0.01)
    assert float(host["Median (s)"]) == pytest.approx(statistics.median(r.seconds for r in truth), rel=0.01)
    assert sum(int(row["Items"]) for row in page.rows("ranks")) == 100
    slowest = max(truth, key=lambda r: r.seconds)
    row = page.rows("slowest")[0]
    assert (row["Item"], float(row["Seconds"])) == (slowest.id, pytest.approx(slowest.seconds, abs=0.006))
    timed = sum(r.seconds > 0 for r in truth)
    rows = page.rows("seconds-numbers")
    assert sum(int(row[status]) for row in rows for status in Status) == timed


def test_settings_versions_and_seed(page):
    settings = {row["Setting"]: row["Value"] for row in page.rows("settings")}
    assert settings["powder.effort"] == "quick" and settings["campaign.name"] == "night <shift>"
    versions = {row["What"]: row["Value"] for row in page.rows("versions")}
    assert versions["seed"] == "7" and versions["numpy"] == np.__version__
    assert len(page.rows("jobs")) == 2


def test_nothing_is_fetched_and_nothing_runs(page):
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                assert value is not None and not re.match(r"\s*([a-z]+:)?//", value), (tag, name, value)
                assert not re.match(r"\s*(?!data:)[a-z]+:", value), (tag, name, value)
    styles = [value for _, attributes in page.tags for name, value in attributes.items() if name == "style"]
    assert not any("url(" in str(style) and "url(#" not in str(style) for style in styles)


def test_ids_are_unique_and_what_they_point_to_is_there(run, page):
    assert len(page.ids) == len(set(page.ids))
    for _, attributes in page.tags:
        reference = attributes.get("href") or ""
        if reference.startswith("#"):
            assert reference[1:] in page.ids
        elif reference.endswith(".png"):
            assert (run / reference).is_file()


def test_pictures_are_whole_pngs(run, page):
    pictures = sorted((run / "report").iterdir())
    shown = {id for tag, a in page.tags if tag == "figure" and (id := a.get("id"))}
    assert {p.stem for p in pictures} == shown and {"timeline", "merit", "cells", "seconds", "cluster-1"} <= shown
    for path in pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        at, kinds, body = 8, [], b""
        while at < len(data):
            (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
            content = data[at + 8 : at + 8 + length]
            assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
            kinds, at = [*kinds, kind], at + 12 + length
            body += content if kind == b"IDAT" else b""
            if kind == b"IHDR":
                width, height = struct.unpack(">II", content[:8])
        assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND" and width > 800 and height > 150
        assert len(set(zlib.decompress(body))) > 20, "not one colour"


def test_the_run_is_not_touched(tmp_path):
    """Shards and journal of a run at work: read as they are, and the same bytes afterwards."""
    run = make(tmp_path / "run", results(30), close=False, inputs_more=10)
    held = lock.acquire(run, Part(0, 1))

    def state() -> dict[str, tuple[str, int]]:
        files = [p for p in run.rglob("*") if p.is_file()]
        return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}

    before = state()
    path = write_report(run, tmp_path / "elsewhere.html")
    assert state() == before
    page = Page(path.read_text())
    assert number(page.texts["n-done"]) == 30 and number(page.texts["n-left"]) == 10
    assert page.texts["state"] == "running, 10 left"
    os.close(held)


def test_an_empty_run(tmp_path):
    run = make(tmp_path / "run", [], inputs_more=3)
    page = Page(write_report(run, None).read_text())
    assert number(page.texts["n-done"]) == 0 and number(page.texts["n-left"]) == 3
    assert "No item is done yet" in page.texts["progress"] and "timeline" not in page.ids


def test_a_method_without_a_section_of_its_own():
    census = collect([block("20260921T141320-1-0of1-00aa", [1_790_000_100.0, 1_790_000_200.0])])
    html, pictures = page_of(Source("somewhere", census, None, 1_790_000_300.0))
    page = Page(html)
    assert page.rows("stages")[0]["Stage"] == "toy" and page.texts["n-time"] == "0:03:20"
    assert set(pictures) == {"timeline.png", "seconds.png"}


@pytest.mark.parametrize("which", ["failed", "unsolved", "one"])
def test_a_run_without_a_solution_or_with_one(tmp_path, which):
    found = {
        "failed": [failed("x"), failed("y")],
        "unsolved": [Result("n", "n.txt", Status.UNSOLVED, "", 1.0, solved().tables)],
        "one": [solved()],
    }[which]
    page = Page(write_report(make(tmp_path / "run", found), None).read_text())
    assert number(page.texts["n-done"]) == len(found) and page.texts["state"] == "complete"
    assert ("clusters" in page.ids) == (which == "one")


def test_a_damaged_shard_is_named_and_the_rest_reported(tmp_path):
    run = make(tmp_path / "run", [failed(f"f{k}") for k in range(40)])
    first, *_ = sorted((run / "shards").glob("*.h5"))
    first.write_bytes(first.read_bytes()[:100])
    page = Page(write_report(run, None).read_text())
    assert 0 < number(page.texts["n-done"]) < 40
    assert first.name in page.texts["problems"] and "not a readable results file" in page.texts["problems"]


HOSTILE = "<script>alert(1)</script>&lt;img src=x onerror=alert(2)>\"'`$x^2$\u202egnp\x07é.txt"


def test_hostile_names_are_text(tmp_path):
    found = [
        Result(HOSTILE, HOSTILE, Status.FAILED, f"{HOSTILE}: is </td></table><b>bad", 0.0),
        *(solved(f"{HOSTILE}{k}") for k in range(9)),
    ]
    run = make(tmp_path / "run", found)
    html = write_report(run, None).read_text()
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags} and "img" not in {tag for tag, _ in page.tags}
    assert "\u202e" not in html and "\x07" not in html
    assert "<script>alert(1)</script>&lt;img" in page.rows("reasons")[0]["Examples"]
    assert "\\u202egnp\\x07é.txt" in page.texts["failures"]


def test_a_results_file_alone_gives_the_same_numbers(run, truth, page, tmp_path):
    alone = Page(write_report(build_master(run), tmp_path / "alone.html").read_text())
    for name in ("n-done", "n-solved", "n-failed"):
        assert alone.texts[name] == page.texts[name]
    for name in ("clusters", "reasons", "lattices-numbers", "merit-numbers"):
        assert alone.tables[name] == page.tables[name]
    assert (tmp_path / "alone" / "cells.png").is_file()


def test_an_item_that_two_shards_hold_counts_once(tmp_path):
    run = make(tmp_path / "run", results(20))
    for path in sorted((run / "shards").glob("*.h5")):
        (path.parent / f"z{path.name}").write_bytes(path.read_bytes())
    assert len(gather(run)[0]) == 20


@pytest.mark.parametrize(("what", "says"), [("nothing", "no such run"), ("folder", "is not the directory of a run")])
def test_no_run_is_one_sentence(tmp_path, what, says):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=says):
        write_report(tmp_path / what, None)


def test_a_page_that_cannot_be_written(run, tmp_path):
    with pytest.raises(InputError, match="another file with -o"):
        write_report(run, tmp_path / "no" / "such" / "folder.html")
    with pytest.raises(InputError, match="give the page another"):
        write_report(run, tmp_path / "page")
