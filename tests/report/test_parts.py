"""The smaller parts of the report: escaping, reasons, quantities, the rows that are read, time without pauses."""

from __future__ import annotations

import dataclasses
import html
import subprocess
import sys
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.cli.main import main
from mlindex.cli.report import write_report
from mlindex.records import InputError
from mlindex.report import canvas, leading
from mlindex.report.census import STATUSES, Block, Writer, collect
from mlindex.report.leading import leading_rows
from mlindex.report.markup import element, join, text
from mlindex.report.quantities import count, duration, percent, rate, stopwatch
from mlindex.report.reasons import group, pattern
from mlindex.report.timeline import timeline
from tests.report.results import failed
from tests.report.runs import make


class Seen(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list]] = []
        self.data = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.data += data


@given(st.text())
def test_any_text_stays_text(value):
    seen = Seen(element("p", value, title=value))
    assert [tag for tag, _ in seen.tags] == ["p"]
    shown = html.unescape(text(value))
    assert seen.data == shown and seen.tags[0][1] == [("title", shown)]
    assert shown.encode().decode() == shown and not any(ord(c) < 32 and c not in "\t\n" for c in shown)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_printable_text_is_unchanged(value):
    assert Seen(element("p", value)).data == value


def test_markup_is_not_escaped_twice():
    assert join(["<", element("b", "&"), None, 3], ", ") == "&lt;, <b>&amp;</b>, 3"


@pytest.mark.parametrize(
    ("sentence", "source", "is_"),
    [
        ("/a/b/x.txt: has 3 lines; it needs at least 6", "b/x.txt", "has … lines; it needs at least …"),
        ("/my data/b/empty.txt: is empty; give a list", "b/empty.txt", "is empty; give a list"),
        ("line 2 of the list, q2 = -2.5e-3, is not positive", "empty", "line … of the list, q2 = …, is not positive"),
        ("no line beyond q2 = 4/wavelength^2 can be seen", "x", "no line beyond q2 = …/wavelength^2 can be seen"),
        ("OSError: [Errno 5] Input/output error: '/x/y 7.h5'", "y", "OSError: [Errno …] Input/output error: …"),
        ("took longer than the limit of 2.5 s (item_seconds)", "a", "took longer than the limit of … s (item_seconds)"),
        ("", "a", "no reason was given"),
    ],
)  # fmt: skip
def test_pattern_of_a_reason(sentence, source, is_):
    assert pattern(sentence, source) == is_


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["run 1/a.txt", "b.csv", "x/y/z 2.npy"]))
def test_numbers_and_names_do_not_make_a_reason(a, b, source):
    sentence = "/data 3/{source}: has {n} lines in {n} rows of /tmp/{source}; give more"
    one = pattern(sentence.format(source=source, n=a), source)
    assert one == pattern(sentence.format(source="other.txt", n=b), "other.txt") and str(a) not in one


def test_groups_are_counted_and_ranked():
    found = group([(k, f"f{k}.txt", f"f{k}.txt: is empty") for k in range(5)] + [(9, "g.txt", "g.txt: is binary")])
    assert [(r.pattern, r.count, r.examples) for r in found] == [("is empty", 5, (0, 1, 2)), ("is binary", 1, (9,))]


def test_quantities():
    assert [duration(s) for s in (0, 0.25, 45, 125, 3600, 12_000, 187_200)] == [
        "0 s", "0.25 s", "45 s", "2 min 5 s", "1 h", "3 h 20 min", "2 d 4 h"
    ]  # fmt: skip
    assert [stopwatch(s) for s in (61, 86400 + 3)] == ["0:01:01", "1 d 0:00:03"]
    assert [rate(r) for r in (12.0, 0.5, 0.001)] == ["12 / s", "30 / min", "3.6 / h"]
    assert percent(1, 8) == "12.5 %" and percent(0, 0) == "–" and count(20_000) == "20\u202f000"


@given(st.lists(st.integers(0, 199), max_size=30), st.integers(1, 60))
def test_leading_rows_are_those_asked_for(tmp_path_factory, rows, chunk):
    """In any order, repeated, over borders of chunks."""
    path = tmp_path_factory.mktemp("leading") / "x.h5"
    values = np.arange(1200.0).reshape(200, 6)
    with h5py.File(path, "w") as file:
        file["powder/solutions/cell"] = values
        file["powder/solutions/bravais"] = np.array(
            [f"é{k}".encode() for k in range(200)], h5py.string_dtype("utf-8", 6)
        )
    before, leading.CHUNK = leading.CHUNK, chunk
    try:
        found = leading_rows(path, "powder", "solutions", ["cell", "bravais", "absent"], np.array(rows, np.int64))
    finally:
        leading.CHUNK = before
    assert set(found) == {"cell", "bravais"}
    np.testing.assert_array_equal(found["cell"], values[np.array(rows, np.int64)])
    assert found["bravais"].tolist() == [f"é{k}" for k in rows]


def block(job: str, times: list[float], first: int = 0, status: str = "solved") -> Block:
    n = len(times)
    items = {
        "id": np.array([f"i{k}" for k in range(n)], object),
        "source": np.array(["s"] * n, object),
        "input": np.arange(first, first + n),
        "index": np.zeros(n, np.int64),
        "status": np.array([status] * n, object),
        "reason": np.array(["because"] * n, object),
        "seconds": np.ones(n),
        "time": np.array(times, float),
    }
    return Block("toy", items, [Writer(job, "h", 1)], np.zeros(n, np.int64), np.zeros(n, bool), {})


def test_census_keeps_the_first_and_the_order_of_the_inputs():
    census = collect([block("b", [5.0, 6.0], first=1, status="failed"), block("a", [1.0, 2.0], first=0)])
    assert census.status.tolist() == [STATUSES.index(s) for s in ("solved", "failed", "failed")]
    assert census.time.tolist() == [1.0, 5.0, 6.0] and census.reason == {1: "because", 2: "because"}
    assert len(collect([])) == 0


def test_attributes_are_kept_once_each():
    one = dataclasses.replace(
        block("a", [1.0]), attributes={"hosts": np.array(["h", "i"], object), "seed": np.int64(3)}
    )
    other = dataclasses.replace(block("b", [1.0], first=1), attributes={**one.attributes, "jax_version": "1.0"})
    attributes = collect([one, other]).attributes
    assert attributes == {"hosts": [["h", "i"]], "seed": [3], "jax_version": ["1.0"]}


@given(st.lists(st.floats(0, 5e5), min_size=1, max_size=20), st.lists(st.floats(0, 5e5), min_size=1, max_size=20))
def test_the_timeline_loses_nothing(one, other):
    line = timeline(collect([block("a", one), block("b", other, first=50, status="unsolved")]))
    assert line is not None and line.counts.sum(0).tolist() == [len(one), len(other), 0]
    assert line.worked <= line.end - line.start + 1e-6
    assert line.worked + sum(length for _, length in line.pauses) == pytest.approx(line.end - line.start)
    assert line.edges[0] == 0 and line.edges[-1] >= line.worked and len(line.counts) <= 49


def test_the_command(tmp_path, capsys):
    run = make(tmp_path / "run", [failed()])
    for words, code in ((["report", str(run), "-o", str(tmp_path / "x.html")], 0), (["report", str(tmp_path)], 2)):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == code
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'x.html'}\n" and (tmp_path / "x.html").is_file()
    assert said.err.startswith(f"mlindex: {tmp_path}: is not the directory of a run") and said.err.count("\n") == 1
    with pytest.raises(InputError, match="--tolerance 0: is no tolerance"):
        write_report(run, None, 0.0)


def test_matplotlib_is_imported_only_to_draw():
    """Neither by the help of the command nor by importing every module of the report."""
    program = (
        "import importlib, pkgutil, sys, mlindex.report, mlindex.cli.report\n"
        "for m in pkgutil.walk_packages(mlindex.report.__path__, 'mlindex.report.'): importlib.import_module(m.name)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "mlindex.report.canvas.check()\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'mlindex-hpc\[report\]'"):
        canvas.check()
