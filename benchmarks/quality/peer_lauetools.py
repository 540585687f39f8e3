"""Peer: Lauetools' indexing of Laue spots (`LaueTools.indexing_batch`), one JSON line in, one JSON line out.

Run by the interpreter that has Lauetools, never by the environment of mlindex. It is what Lauetools documents for
series of frames: pairs of a spot of set A and a spot of set B are recognised in a table of angles, orientations are
ranked by their matching rate, the best is refined with strain in steps of smaller and smaller tolerance, its spots are
taken away, and the next grain is sought. Several materials go through its `sequence` with the strategy `best_of`. In:
`{"cor": FILE, "materials": [{"name", "lattice", "extinction", "grains"}, ...], "energy": [low, high], "settings": {}}`,
where `grains` is the number of them that it is asked for. Out: `{"grains": [{"material", "ub", "matched",
"match_rate"}, ...], "cpu", "seconds", "info"}`; `ub` (3, 3) takes hkl to q (1/angstrom) in LT.

`settings` replaces entries of `indexing` or of `indexing: dict_indexrefine` in Lauetools' `DEFAULT_CONFIG`. Seconds do
not count the table of angles, which is made once for a material. A request of `{"about": true}` is answered with
versions and defaults.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")  # Lauetools prints on standard output, and begins while it is imported
os.dup2(2, 1)

import numpy as np  # noqa: E402
from LaueTools import CrystalParameters, dict_LaueTools, indexing_batch, indexing_sequence  # noqa: E402

_TABLES: dict[str, Any] = {}


def config_of(request: dict[str, Any]) -> dict[str, Any]:
    """The configuration of `indexing_batch` for a frame; what the request does not say stays as Lauetools ships it."""
    config = copy.deepcopy(indexing_batch.DEFAULT_CONFIG)
    materials = request["materials"]
    low, high = request["energy"]
    config["output"]["fit_folder"] = tempfile.gettempdir()  # nothing is written there
    config["run"]["writefitfile"] = False
    config["material"]["key_material"] = materials[0]["name"]
    # In the table itself: with its argument `mymaterials` a sequence of two materials ends in a KeyError
    for m in materials:
        dict_LaueTools.dict_Materials[m["name"]] = [m["name"], m["lattice"], m["extinction"]]
    indexing, search = config["indexing"], config["indexing"]["dict_indexrefine"]
    # of the shipped 22 and 19 keV the latter is for matching rates; the band of the frame is divided in that way
    indexing |= {"e_min": low, "e_max": high, "e_max_MR": high * 19 / 22, "nbGrainstoFind": materials[0]["grains"]}
    for key, value in request["settings"].items():
        if key not in search and key not in indexing:
            raise KeyError(f"Lauetools has no setting {key}")
        (search if key in search else indexing)[key] = value
    if isinstance(search["central spots indices"], int):  # as `load_config` reads them
        search["central spots indices"] = list(range(search["central spots indices"]))
    if indexing["MatchingRate_List"] is None:
        indexing["MatchingRate_List"] = [2] * len(search["list matching tol angles"])
    if len(materials) > 1:
        steps = [{"name": m["name"], "key_material": m["name"], "nbGrainstoFind": m["grains"]} for m in materials]
        config["sequence"] = {"strategy": "best_of", "steps": steps}
    return config


def prepared(request: dict[str, Any]) -> Any:
    """The parameters of a frame, with the tables of angles that were made before."""
    parameters = indexing_batch.params_from_config(config_of(request), build_LUT=False)
    order = parameters.dict_indexrefine["nlutmax"]
    for material in request["materials"]:
        if len(request["materials"]) > 1:
            indexing_sequence._lut(material["name"], order, parameters.mymaterials)  # keeps them itself
            continue
        key = f"{material['lattice']} {order}"
        if key not in _TABLES:
            _TABLES[key] = parameters.build_LUT().LUT
        parameters.LUT = _TABLES[key]
    return parameters


def solve(request: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """The grains of one frame."""
    answer = indexing_batch.index_refine(request["cor"], parameters)
    names = [request["materials"][0]["name"]] * len(answer[1])
    if parameters.sequence is not None and len(answer) > 4:
        names = [record["key_material"] for record in answer[4]]
    lattice = {m["name"]: m["lattice"] for m in request["materials"]}
    grains = []
    for name, (_, ub), (_, (matched, rate)) in zip(names, answer[1], answer[2], strict=True):
        if ub is not None:
            full = np.asarray(ub) @ CrystalParameters.calc_B_RR(lattice[name])
            grains.append({"material": name, "ub": full.tolist(), "matched": int(matched), "match_rate": float(rate)})
    return {"grains": grains, "info": str(answer[3])}


def about() -> dict[str, Any]:
    """Versions, and the settings that Lauetools ships."""
    versions = {name: version(name) for name in ("lauetools", "numpy", "scipy")}
    return versions | {"python": platform.python_version(), "defaults": indexing_batch.DEFAULT_CONFIG["indexing"]}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("about"):
            print(json.dumps(about(), default=str), file=ANSWERS, flush=True)
            continue
        reply: dict[str, Any] = {"grains": []}
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                parameters = prepared(request)
                wall, cpu = time.perf_counter(), time.process_time()
                reply = solve(request, parameters)
        except Exception as error:  # a frame the peer cannot take is a failure of that frame, not of the run
            reply["error"] = f"{type(error).__name__}: {error}"
        reply |= {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(reply), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
