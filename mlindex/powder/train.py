"""Training of everything that powder indexing has learned, from crystals to the files that it reads.

Four parts, each a file of its own: `templates` (indices from which cells are solved), `assign` (which reflection a line
is), `proposals` (networks and forests that propose cells) and `posterior` (how probable a solution is). The posterior
learns from searches of normal effort, which use the templates as they are installed; `proposals` are for thorough
searches, and the assignment networks for the samplers (`sampler`), which the benchmarks compare with the search. Only
crystals of the set "train" are learnt from, and the figures in the cards are those of the set "validation" (of the
posterior: of families left out).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

import mlindex
from mlindex.crystal.lattice import BRAVAIS
from mlindex.learn import checkpoint
from mlindex.powder import (
    assign_network,
    assign_train,
    posterior,
    posterior_lists,
    posterior_train,
    proposals,
    proposals_train,
    templates,
    templates_train,
)
from mlindex.powder.dataset import Entries, from_cifs, from_parquet
from mlindex.powder.dataset.parquet import listed
from mlindex.records import InputError

Say = Callable[[str], None]
PARTS = ("templates", "assign", "proposals", "posterior")
_EVERY = 20  # searches between two messages


@dataclass(frozen=True)
class Plan:
    """What is done. `minutes`: at most so long for the networks of the proposals, and for the searches of the
    posterior. `lists`: searches a lattice. `proposals`: arguments of `proposals_train.train`."""

    seed: int = 0
    minutes: float = 60.0
    lists: int = 45
    assign: assign_train.Settings = field(default_factory=assign_train.Settings)
    proposals: Mapping[str, Any] = field(default_factory=dict)


PLAN = Plan()


class Data(NamedTuple):
    """Crystals to learn from: `entries`, and the reflections of their lines by set and Bravais lattice."""

    entries: Entries
    patterns: Mapping[str, Mapping[str, Sequence[NDArray]]]


class Trained(NamedTuple):
    """One part: its file, its card, and what the card says of its quality in a few words."""

    part: str
    path: Path
    card: dict[str, Any]
    quality: str


def read(folder: Path, say: Say) -> Data:
    """The crystals of a folder with `cells.parquet` and `peaklists_calc.parquet`, or of one with CIFs.

    Raises `InputError` where there is no crystal to learn from.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give one with cells.parquet or with CIFs")
    if (folder / "cells.parquet").is_file():
        entries = from_parquet(folder)
        patterns = {which: listed(folder, which) for which in ("train", "validation")}
    else:
        entries = from_cifs(folder, report=say)
        patterns = {which: _observable(entries, which) for which in ("train", "validation")}
    if not np.any(entries.set == "train"):
        why = ", ".join(f"{reason} {n}" for reason, n in entries.rejected.items())
        raise InputError(f"{folder}: no crystal passes the filters ({why}); give others")
    return Data(entries, patterns)


def _observable(entries: Entries, which: str) -> dict[str, list[NDArray]]:
    found: dict[str, list[NDArray]] = {}
    for i in np.flatnonzero(entries.set == which):
        hkl, observable = entries.lines(int(i))
        found.setdefault(str(entries.bravais[i]), []).append(hkl[observable].astype(np.int64))
    return found


def train(data: Data, folder: Path, parts: Sequence[str], plan: Plan, say: Say) -> list[Trained]:
    """Train `parts` and write each to `folder` when it is done.

    A lattice without training crystals keeps the templates and the assignment networks that are installed, and has no
    learned proposals. Raises `InputError` for crystals that are too few.
    """
    makers = {"templates": _templates, "assign": _assign, "proposals": _proposals, "posterior": _posterior}
    made = []
    for part in parts:
        started = time.perf_counter()
        say(f"{part}: training")
        path, arrays, card, quality = makers[part](data, plan, partial(_say, say, part))
        card |= {
            "command": _command(part, plan),
            "data_sha256": data.entries.sha256(),
            "crystals": int(np.sum(data.entries.set == "train")),
            "seed": plan.seed,
            "seconds": round(time.perf_counter() - started, 1),
            "device": jax.devices()[0].device_kind,
            "version": mlindex.__version__,
        }
        save = templates_train.save if part == "templates" else checkpoint.save
        save(folder / path, arrays, card)
        made.append(Trained(part, folder / path, card, quality))
    return made


def _say(say: Say, part: str, text: str) -> None:
    say(f"{part}: {text}")


def _command(part: str, plan: Plan) -> str:
    words = ["mlindex train powder DATA --only", part]
    if part in ("proposals", "posterior"):
        words.append(f"--minutes {plan.minutes:g}")
    if part == "posterior":
        words.append(f"--lists {plan.lists}")
    return " ".join([*words, f"--seed {plan.seed}"])


_Made = tuple[str, dict[str, NDArray], dict[str, Any], str]


def _templates(data: Data, plan: Plan, say: Say) -> _Made:
    arrays, card = templates_train.train(data.patterns["train"], data.patterns["validation"], progress=say)
    kept = [b for b in templates_train.COUNTS if b not in arrays]
    arrays |= {b: templates.stored(b).astype(np.int8) for b in kept}
    shares = [list(v.values())[-1] for v in card["validation"].values()]
    quality = f"{np.mean(shares):.0%} of unseen crystals solved" if shares else ""
    return templates.STORED, arrays, card | {"kept": kept}, quality


def _assign(data: Data, plan: Plan, say: Say) -> _Made:
    settings = replace(plan.assign, seed=plan.seed)
    arrays, card = assign_train.train(data.entries, settings, progress=say)
    kept = [b for b in BRAVAIS if b not in card["validation"]]
    for bravais in kept:
        arrays |= assign_network.to_arrays(assign_network.shipped(bravais), bravais)
    right = np.array([v["right"] for v in card["validation"].values() if "right" in v])
    levels = ", ".join(f"{r:.0%} at {100 * level:g} %" for r, level in zip(right.mean(0), card["levels"], strict=True))
    quality = f"lines right: {levels} error" if len(right) else ""
    return assign_network.STORED, arrays, card | {"kept": kept}, quality


def _proposals(data: Data, plan: Plan, say: Say) -> _Made:
    arrays, card = proposals_train.train(
        data.entries, minutes=plan.minutes, seed=plan.seed, progress=say, **plan.proposals
    )
    inside = [v["inside99"] for v in card["validation"].values()]
    quality = f"volume in the 99 % interval of {np.mean(inside):.1%}" if inside else ""
    return proposals.STORED, arrays, card, quality


def _posterior(data: Data, plan: Plan, say: Say) -> _Made:
    found: list[posterior_train.Outcomes] = []
    started = time.perf_counter()
    lists = posterior_lists.labelled(data.entries, lists=plan.lists, seed=plan.seed)
    for outcome in posterior_train.collect(lists, seed=plan.seed):
        found.append(outcome)
        seconds = time.perf_counter() - started
        if len(found) % _EVERY == 0:
            right = np.mean([o.right[-1].any() for o in found])
            say(f"{len(found)} searches, the true cell among the candidates of {right:.0%}, {seconds:.0f} s")
        if seconds > 60 * plan.minutes:
            say(f"{plan.minutes:g} minutes are over after {len(found)} searches")
            break
    try:
        arrays, card = posterior_train.train(posterior_train.joined(found))
    except ValueError:
        raise InputError(
            f"the posterior cannot be trained on the {len(found)} searches that were made; give more crystals, "
            "--lists or --minutes"
        ) from None
    told = card["cross_validation"]
    quality = f"first right {told['first']:.0%}, calibration error {told['calibration_error']:.3f}"
    return posterior.WEIGHTS.name, arrays, card, quality
