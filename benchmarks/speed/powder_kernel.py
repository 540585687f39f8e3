"""How fast the kernels of the powder search run, against what this machine can do, and how often they compile.

    python benchmarks/speed/powder_kernel.py --json benchmarks/results/powder_kernel.json

Limits are measured in the same run: memory bandwidth by a copy that no cache holds, float32 operations by a fused chain
of multiply-adds (what a kernel of element-wise work can reach) and by a matrix product (what the machine can reach at
all). Operations and bytes of `refine` are those that XLA counts for one compiled step over the batch ("accessed", in
caches and memory alike), divided by the candidates; those of `screen` are counted by hand: see `screening`. Shares of a
limit are rate x operations over the limit. Compilations are those of XLA during whole searches: of the first list in a
process without a cache, of the same list again, and of other lists with other numbers of lines. Peak memory is the
resident set of the process after these searches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from anywhere

import jax
import jax.numpy as jnp
import numpy as np

from mlindex.crystal.lattice import BRAVAIS, SYSTEMS
from mlindex.crystal.metric import products_from_hkl, reciprocal_metric_from_cell
from mlindex.crystal.reflections import hkl_within, reference_hkl
from mlindex.powder import assign, propose, refine
from mlindex.powder.lines import Lines, lines_from_q2
from mlindex.powder.search import EFFORTS, search
from mlindex.powder.sweep import refinement_scales

CU = 1.5405929  # angstrom
COMPILED = "/jax/core/compile/backend_compile_duration"  # the event that JAX reports for every compilation by XLA
CELLS = {
    "cP": (8.913, 8.913, 8.913, 90, 90, 90),
    "tP": (7.421, 7.421, 9.836, 90, 90, 90),
    "hP": (8.129, 8.129, 6.731, 90, 90, 120),
    "hR": (9.417, 9.417, 15.361, 90, 90, 120),
    "oP": (6.137, 8.291, 10.673, 90, 90, 90),
    "mP": (7.313, 9.127, 8.461, 90, 103.21, 90),
    "aP": (6.417, 7.253, 8.139, 82.31, 101.47, 108.23),
}
LINES = 20
REFLECTIONS = {1: 100, 2: 200, 3: 300, 4: 400, 6: 400}  # as in a search, by number of free parameters
SCREENED = 96  # reflections


def listed(bravais: str, count: int, seed: int) -> Lines:
    """The first `count` lines of the cell of a lattice with errors of 0.005 degrees, 0.06 degrees apart at least."""
    g = reciprocal_metric_from_cell(np.array(CELLS[bravais], float))
    hkl = hkl_within(g, bravais, 0.6)
    tth = 2 * np.rad2deg(np.arcsin(np.sqrt(np.sort(products_from_hkl(hkl) @ g)) * CU / 2))
    kept = [0]
    for i in range(1, len(tth)):
        if tth[i] - tth[kept[-1]] > 0.06:
            kept.append(i)
    tth = tth[kept[:count]] + np.random.default_rng(seed).normal(0, 0.005, count)
    return lines_from_q2((2 * np.sin(np.deg2rad(tth) / 2) / CU) ** 2, CU)


def seconds(call: Callable[[], Any], repeats: int, pick: Callable[[list[float]], float] = statistics.median) -> float:
    """The median (or other `pick`) of the times that a warm call takes until its result is ready."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return pick(times)


def limits(repeats: int) -> dict[str, float]:
    """Measured limits, the best of all repeats: 10^9 bytes a second of a copy, 10^9 float32 operations of two kinds."""
    source = jnp.ones(1 << 26, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    chain = 256

    def fused(x: Any) -> Any:
        for _ in range(chain):
            x = x * 0.999 + 0.001
        return x

    small = jnp.ones(1 << 20, jnp.float32)
    square = jnp.ones((1536, 1536), jnp.float32)
    element = jax.jit(fused)
    product = jax.jit(lambda x: x @ x)
    return {
        "copy_gb_s": 2 * source.nbytes / seconds(lambda: copy(source), repeats, min) / 1e9,
        "elementwise_gflop_s": 2 * chain * small.size / seconds(lambda: element(small), repeats, min) / 1e9,
        "matmul_gflop_s": 2 * 1536**3 / seconds(lambda: product(square), repeats, min) / 1e9,
    }


def cost(compiled: Any) -> tuple[float, float]:
    """Operations and bytes accessed of a compiled function, as XLA counts them (NaN where the backend does not say)."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return analysis.get("flops", float("nan")), analysis.get("bytes accessed", float("nan"))


def refinement(bravais: str, batch: int, repeats: int) -> dict[str, Any]:
    """`refine.refine` over a batch of perturbed cells, as in a search; and the cost of one step."""
    lattice = BRAVAIS[bravais]
    system = SYSTEMS[lattice.system]
    lines = listed(bravais, LINES, 1)
    problem = refine.Problem(
        jnp.asarray(lines.q2, jnp.float32),
        jnp.asarray(2 * lines.q * lines.w, jnp.float32),
        jnp.ones(LINES, jnp.float32),
        jnp.asarray(products_from_hkl(reference_hkl(bravais, REFLECTIONS[lattice.n_free])), jnp.float32),
        jnp.asarray(system.embed, jnp.float32),
    )
    x = system.project @ reciprocal_metric_from_cell(np.array(CELLS[bravais], float))
    noise = np.random.default_rng(0).normal(0, 0.003 * np.abs(x).max(), (batch, len(x)))
    g = jnp.asarray((x + noise) @ system.embed.T, jnp.float32)
    keys = jax.random.split(jax.random.key(0), batch)
    scales = refinement_scales(EFFORTS["normal"][0].tolerance)
    project = jnp.asarray(system.project, jnp.float32)
    took = seconds(lambda: refine.refine(g, keys, problem, project, scales), repeats)
    rate = batch * len(scales) / took

    def start(g: Any, key: Any) -> refine.State:
        x = jnp.append(project @ g, 0.0)
        return refine.State(x, *refine._residuals(x, problem), x, jnp.float32(jnp.inf), key)

    states = jax.vmap(start)(g, keys)
    step = jax.jit(lambda states: jax.vmap(lambda s: refine.step(s, jnp.float32(0.02), problem, 0.8))(states))
    operations, accessed = cost(step.lower(states).compile())
    return {
        "kernel": "refine",
        "bravais": bravais,
        "batch": batch,
        "reflections": REFLECTIONS[lattice.n_free],
        "seconds": took,
        "rate": rate,
        "unit": "candidate-iterations/s",
        "operations": operations / batch,
        "bytes": accessed / batch,
    }


def screening(bravais: str, batch: int, repeats: int) -> dict[str, Any]:
    """`assign.screen`: look-ups a second.

    A look-up is 11 operations of the scalar product, a maximum, a root, a product, a conversion, two of the clip and an
    OR: 18. It reads a word of the table (32 KiB, which stays in a cache); a candidate itself is 24 bytes in, 4 out.
    """
    lines = listed(bravais, LINES, 1)
    width = EFFORTS["normal"][0].tolerance * lines.w
    table, scale = assign.line_table(lines.q, width)
    rng = np.random.default_rng(0)
    g = jnp.asarray(
        reciprocal_metric_from_cell(
            np.concatenate([rng.uniform(4, 14, (batch, 3)), rng.uniform(80, 100, (batch, 3))], 1)
        ),
        jnp.float32,
    )
    products = jnp.asarray(products_from_hkl(reference_hkl(bravais, SCREENED).astype(np.float32)))
    expected = (4 * np.pi * width * lines.q**2).astype(np.float32)
    took = seconds(lambda: assign.screen(g, products, table, scale, expected), repeats)
    return {
        "kernel": "screen",
        "bravais": bravais,
        "batch": batch,
        "reflections": SCREENED,
        "seconds": took,
        "rate": batch / took,
        "unit": "candidates/s",
        "lookups_s": batch * SCREENED / took,
        "operations": 18.0 * SCREENED,
        "bytes": 4.0 * SCREENED + 28,
    }


def proposing(bravais: str, repeats: int) -> dict[str, Any]:
    """`propose.from_templates` as the first pass of a normal search: systems solved, and cells kept, a second."""
    lattice = BRAVAIS[bravais]
    sweep = EFFORTS["normal"][0]
    lines = listed(bravais, LINES, 1)
    window = propose.volume_window(lines, bravais)
    n_lines = sweep.combined[lattice.n_free]

    def call() -> tuple[Any, int]:
        return propose.from_templates(
            lines.q2, bravais, window=window, n_lines=n_lines, n_templates=sweep.templates, tile=assign.TILE
        )

    templates = len(propose.solved_templates(bravais, sweep.templates))
    subsets = len(propose.line_subsets(n_lines, lattice.n_free))
    kept = call()[1]
    took = seconds(lambda: call()[0], repeats)
    return {
        "kernel": "propose",
        "bravais": bravais,
        "batch": templates * subsets,
        "reflections": templates,
        "seconds": took,
        "rate": templates * subsets / took,
        "unit": "systems/s",
        "cells_s": kept / took,
        "kept": kept,
        # a product of p x p, its embedding, the determinant and the tests; only a bit leaves
        "operations": float(2 * lattice.n_free**2 + 12 * lattice.n_free + 30),
        "bytes": 1.0,
    }


def compilations(effort: str) -> list[dict[str, Any]]:
    """How often XLA compiles, and how long a search takes: cold, the same again, and other lists."""
    count = [0]

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        count[0] += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    rows = []
    runs = [
        ("cold", "oP", 25, 1),
        ("the same list", "oP", 25, 1),
        ("another list", "mP", 30, 2),
        ("a third list", "tP", 22, 3),
        ("a fourth list", "aP", 28, 4),
        ("the third again", "tP", 22, 3),
    ]
    for label, bravais, lines, seed in runs:
        before, start = count[0], time.perf_counter()
        found = search(listed(bravais, lines, seed), effort=effort)
        rows.append(
            {
                "run": label,
                "list": f"{bravais}, {lines} lines",
                "seconds": time.perf_counter() - start,
                "compilations": count[0] - before,
                "right": bool(found) and found[0].fit.bravais == bravais,
            }
        )
    if not rows[0]["compilations"]:
        raise SystemExit(f"this version of JAX does not report {COMPILED}; correct the name of the event")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="candidates refined together (a search uses 256)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--effort", default="normal", choices=sorted(EFFORTS), help="of the whole searches")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # compilations are counted

    load = os.getloadavg()
    # First of all, while nothing is compiled and no array of this script counts as memory of the search
    searches = compilations(options.effort)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    limit = limits(options.repeats)
    print(
        f"limits: copy {limit['copy_gb_s']:.1f} GB/s, float32 element-wise {limit['elementwise_gflop_s']:.1f} and "
        f"matrix product {limit['matmul_gflop_s']:.1f} Gop/s\n"
    )
    rows = [refinement(name, options.batch, options.repeats) for name in CELLS]
    rows += [screening(name, size, options.repeats) for name, size in (("aP", 4096), ("aP", 1 << 16), ("oP", 1 << 16))]
    rows += [proposing(name, options.repeats) for name in CELLS]
    print(
        "kernel   lattice    batch      ms   rate                              op each  byte each  op share  byte share"
    )
    for row in rows:
        row["operations_share"] = row["rate"] * row["operations"] / limit["elementwise_gflop_s"] / 1e9
        row["bytes_share"] = row["rate"] * row["bytes"] / limit["copy_gb_s"] / 1e9
        print(
            f"{row['kernel']:8} {row['bravais']:7} {row['batch']:8} {1e3 * row['seconds']:7.1f}   "
            f"{row['rate']:10.3g} {row['unit']:22} {row['operations']:8.0f} {row['bytes']:10.0f} "
            f"{row['operations_share']:9.2f} {row['bytes_share']:11.2f}"
        )
        if "lookups_s" in row:
            print(f"{'':38}{row['lookups_s']:10.3g} look-ups/s")
        if "cells_s" in row:
            print(f"{'':38}{row['cells_s']:10.3g} cells/s in the window ({row['kept']})")
    print(
        f"\nwhole searches, effort {options.effort}, all lattices\n\n{'run':18}{'list':16}{'s':>7}  compilations  right"
    )
    for row in searches:
        print(f"{row['run']:18}{row['list']:16}{row['seconds']:7.2f}{row['compilations']:14}  {row['right']}")
    print(f"\npeak memory of the process after them: {peak:.0f} MiB")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        hardware = {
            "cores": os.cpu_count(),
            "load": load,
            "machine": platform.machine(),
            "device": jax.devices()[0].device_kind,
        }
        versions = {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}
        written = {
            "settings": settings,
            "hardware": hardware,
            "versions": versions,
            "limits": limit,
            "rows": rows,
            "searches": searches,
            "peak_mib": round(peak),
        }
        options.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
