"""Success of powder indexing on measured lists and on calculated ones, for mlindex and for its peers.

    python benchmarks/quality/powder_lists.py --data DIR --engine mlindex --json out.json
    python benchmarks/quality/powder_lists.py --subset real --engine fox,mlindex013 --mlindex013-python PYTHON

A list counts as solved at rank r when the r-th cell of the answer is the true primitive lattice (see `truth.py`:
unimodular equality of Niggli-reduced metrics, 1 % in lengths and 0.75 degrees in angles). Every list stays in the
count: an error or an overrun is a failure, and it is named. `benchmarks/README.md` says where peers come from.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

from benchmarks.quality.dataset import LATTICES, SETS, VARIANTS, Entry, calculated, real
from benchmarks.quality.engines import HERE, Answer, Engine, MlindexEngine, Peer
from benchmarks.quality.truth import ANGLE_TOLERANCE, LENGTH_TOLERANCE, niggli, same_lattice
from mlindex.powder.posterior_train import calibration_error

GROUPS = ("clean", "dirty", "hard")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MLINDEX_DATA"), help="default: MLINDEX_DATA")
    parser.add_argument("--engine", default="mlindex", help="comma list of mlindex, fox, mlindex013")
    parser.add_argument("--subset", default="all", help="all, or a comma list of real, calc, clean, dirty, hard")
    parser.add_argument("--variant", default=",".join(VARIANTS), help="of the calculated lists, a comma list")
    parser.add_argument("--set", default="validation", choices=SETS, help="test is held out: for releases only")
    parser.add_argument("--per-lattice", type=int, default=20, help="calculated lists of each Bravais lattice")
    parser.add_argument("--lattice", default=",".join(LATTICES), help="true lattices of the lists to keep")
    parser.add_argument("--seed", type=int, default=0, help="of the line errors")
    parser.add_argument("--lines", type=int, default=20, help="first lines given to a peer (mlindex gets all)")
    parser.add_argument("--jobs", type=int, default=1, help="peers at work at once; their times then share the machine")
    parser.add_argument("--set-option", action="append", default=[], metavar="KEY=VALUE", help="mlindex powder setting")
    parser.add_argument("--fox-python", default="/usr/bin/python3")
    parser.add_argument("--fox-options", default="--centred --sigma 0.03", help="for peer_fox.py")
    parser.add_argument("--mlindex013-python", default="python3")
    parser.add_argument("--mlindex013-options", default="--cap 60", help="for peer_mlindex013.py")
    parser.add_argument("--budget", type=float, default=0.0, help="wall seconds after which no list is begun; 0: none")
    parser.add_argument("--limit", type=float, default=600.0, help="wall seconds after which a peer is stopped")
    parser.add_argument("--json", type=Path, help="write settings, versions, summary and one row a list")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give the data folder with --data or in MLINDEX_DATA")
    return options


def entries_of(options: argparse.Namespace) -> list[tuple[str, Entry]]:
    """(title of the table, list) of everything that was asked for."""
    wanted = set(options.subset.split(","))
    if unknown := wanted - {"all", "real", "calc", *GROUPS}:
        raise SystemExit(f"--subset: {', '.join(sorted(unknown))} is none of all, real, calc, clean, dirty, hard")
    if unknown := set(options.variant.split(",")) - set(VARIANTS):
        raise SystemExit(f"--variant: {', '.join(sorted(unknown))} is none of {', '.join(VARIANTS)}")
    lattices = set(options.lattice.split(","))
    out = []
    if wanted & {"all", "real", *GROUPS}:
        groups = wanted & set(GROUPS) or set(GROUPS)
        mine = [e for e in real(options.data) if e.group in groups and e.bravais in lattices]
        out += [(f"real {e.group}", e) for e in sorted(mine, key=lambda e: GROUPS.index(e.group))]
    if wanted & {"all", "calc"}:
        for variant in options.variant.split(","):
            lists = calculated(options.data, options.set, variant, options.per_lattice, options.seed)
            out += [(f"{options.set} {variant}", e) for e in lists if e.bravais in lattices]
    return out


def engine_of(name: str, options: argparse.Namespace) -> Engine:
    if name == "mlindex":
        settings: dict[str, Any] = {}
        for text in options.set_option:
            key, _, value = text.partition("=")
            settings[key] = value.split("+") if key == "lattice" else value
        return MlindexEngine(settings)
    if name not in ("fox", "mlindex013"):
        raise SystemExit(f"--engine: {name} is none of mlindex, fox, mlindex013")
    python = getattr(options, f"{name}_python")
    extra = getattr(options, f"{name}_options").split()
    command = [python, str(HERE / f"peer_{name}.py"), *extra]
    return Peer(name, command, options.limit, options.lines, {"options": extra, "version": version_of(name, python)})


def version_of(name: str, python: str) -> str:
    package = {"fox": "pyobjcryst", "mlindex013": "mlindex"}[name]
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return f"{package} {done.stdout.strip()}" if done.returncode == 0 else f"{package} is not installed in {python}"


def rank_of(entry: Entry, answer: Answer) -> int | None:
    """The rank (from 1) of the true lattice among the cells of the answer."""
    for rank, cell in enumerate(answer.cells, 1):
        try:
            reduced = niggli(cell.cell, cell.centring)
        except ValueError:
            continue
        if same_lattice(entry.niggli, reduced):
            return rank
    return None


def row_of(title: str, entry: Entry, answer: Answer) -> dict[str, Any]:
    first = answer.cells[0] if answer.cells else None
    return {
        "table": title,
        "uid": entry.uid,
        "bravais": entry.bravais,
        "metric": entry.metric_bravais,
        "lines": int(entry.q2.size),
        "cell": [round(float(x), 4) for x in entry.cell],
        "rank": rank_of(entry, answer),
        "first": [first.bravais, *(round(x, 4) for x in first.cell)] if first else None,
        "found": len(answer.cells),
        "seconds": round(answer.seconds, 3),
        "cpu": None if answer.cpu is None else round(answer.cpu, 3),
        "probability": None if answer.probability is None else round(answer.probability, 4),
        "note": answer.note,
    }


def run(name: str, work: list[tuple[str, Entry]], options: argparse.Namespace) -> tuple[list[dict], dict]:
    """Rows of one engine over all lists, in their order, and its resolved settings."""
    jobs = 1 if name == "mlindex" else max(1, options.jobs)
    engines = [engine_of(name, options) for _ in range(jobs)]
    if name == "mlindex":  # warm the compilation cache with the shortest and the longest list; not counted
        sizes = sorted((entry for _, entry in work), key=lambda e: e.q2.size)
        for entry in (sizes[0], sizes[-1]):
            engines[0].solve(entry.uid, entry.q2, entry.wavelength)

    start = time.monotonic()

    def part(k: int) -> list[dict]:
        rows: list[dict] = []
        for title, entry in work[k::jobs]:
            if options.budget and time.monotonic() - start > options.budget:
                break
            rows.append(row_of(title, entry, engines[k].solve(entry.uid, entry.q2, entry.wavelength)))
            row = rows[-1]
            rank = row["rank"] or "-"
            print(f"{name} {title} {entry.uid} {entry.bravais} rank {rank} {row['seconds']:.1f} s", file=sys.stderr)
        return rows

    try:
        with ThreadPoolExecutor(jobs) as pool:
            parts = list(pool.map(part, range(jobs))) if jobs > 1 else [part(0)]
    finally:
        for engine in engines:
            engine.close()
    rows = [row for i in range(len(work)) for row in parts[i % jobs][i // jobs : i // jobs + 1]]
    if len(rows) < len(work):
        print(f"{name}: the time allowed {len(rows)} of {len(work)} lists; the others are not counted", file=sys.stderr)
    return rows, engines[0].settings | {"not_run": len(work) - len(rows)}


def counts(rows: list[dict]) -> dict[str, Any]:
    ranks = [row["rank"] for row in rows]
    seconds = [row["seconds"] for row in rows]
    spent = [row["cpu"] for row in rows if row["cpu"] is not None]
    stated = [(row["probability"], row["rank"] == 1) for row in rows if row["probability"] is not None]
    return {
        "lists": len(rows),
        "first": sum(rank == 1 for rank in ranks),
        "top10": sum(rank is not None and rank <= 10 for rank in ranks),
        "anywhere": sum(rank is not None for rank in ranks),
        "median_s": round(float(np.median(seconds)), 2),
        "p90_s": round(float(np.quantile(seconds, 0.9)), 2),
        "median_cpu_s": round(float(np.median(spent)), 2) if spent else None,
        "mean_cpu_s": round(float(np.mean(spent)), 2) if spent else None,
        "calibration_error": round(calibration_error(*map(np.array, zip(*stated, strict=True))), 4) if stated else None,
    }


def summary(rows: list[dict]) -> dict[str, dict[str, Any]]:
    """Counts by table, and by true Bravais lattice within each table."""
    out: dict[str, dict[str, Any]] = {}
    for title in dict.fromkeys(row["table"] for row in rows):
        mine = [row for row in rows if row["table"] == title]
        out[title] = {"all": counts(mine)}
        for lattice in LATTICES:
            if some := [row for row in mine if row["bravais"] == lattice]:
                out[title][lattice] = counts(some)
    return out


def show(name: str, rows: list[dict]) -> None:
    print(f"\n{name}")
    print(f"{'table':24}{'lattice':8}{'lists':>6}{'first':>12}{'top ten':>12}{'any':>6}{'median s':>10}{'90 % s':>9}")
    for title, parts in summary(rows).items():
        for lattice, c in parts.items():
            share, ten = 100 * c["first"] / c["lists"], 100 * c["top10"] / c["lists"]
            print(
                f"{title:24}{lattice:8}{c['lists']:6}{c['first']:6} {share:4.0f}%{c['top10']:6} {ten:4.0f}%"
                f"{c['anywhere']:6}{c['median_s']:10.2f}{c['p90_s']:9.2f}"
            )
    missed = [row for row in rows if row["rank"] != 1]
    print(f"\n{name}: {len(missed)} lists whose true lattice is not first")
    for row in missed:
        first = (
            "nothing" if row["first"] is None else " ".join(f"{x:g}" if i else x for i, x in enumerate(row["first"]))
        )
        true = " ".join(f"{x:g}" for x in row["cell"])
        note = f"; {row['note']}" if row["note"] else ""
        rank = row["rank"] or "-"
        print(f"  {row['table']}: {row['uid']} {row['bravais']} {true} | rank {rank} | first {first}{note}")


def surroundings() -> dict[str, Any]:
    """The machine and the versions that the figures belong to."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    versions = {}
    for package in ("numpy", "jax", "jaxlib", "gemmi", "pandas"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_at_end": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        "commit": done.stdout.strip(),
    }


def main() -> None:
    options = options_of()
    work = entries_of(options)
    document: dict[str, Any] = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "truth": {"length": LENGTH_TOLERANCE, "angle_deg": ANGLE_TOLERANCE},
        "engines": {},
    }
    for key in ("data", "json", "fox_python", "mlindex013_python"):  # places on one machine say nothing to a reader
        del document["settings"][key]
    for name in options.engine.split(","):
        rows, settings = run(name, work, options)
        show(name, rows)
        document["engines"][name] = {"settings": settings, "summary": summary(rows), "rows": rows}
    document["hardware"] = surroundings()
    if options.json:
        options.json.write_text(compact(document))


def compact(document: dict[str, Any]) -> str:
    """JSON with one line a list, so that two results can be compared by eye and by diff."""
    rows = {name: part.pop("rows") for name, part in document["engines"].items()}
    text = json.dumps(document, indent=1)
    body = json.dumps({name: "@" + name for name in rows})
    for name, mine in rows.items():
        body = body.replace(f'"@{name}"', "[\n" + ",\n".join(json.dumps(row) for row in mine) + "\n]")
    return text[: text.rindex("}")].rstrip() + ',\n "rows": ' + body + "\n}\n"


if __name__ == "__main__":
    main()
