"""Train what powder indexing has learned, on the command line; what that needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PARTS = ("templates", "assign", "proposals", "posterior")


def _parts(incomplete: str) -> list[str]:
    return [part for part in _PARTS if part.startswith(incomplete)]


def train_powder(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder with cells.parquet and peaklists_calc.parquet, or a folder of CIFs with atoms."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--out", "--output", metavar="DIR", help="Folder for the weights.")
    ] = Path("powder-weights"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Parts to train, as templates,assign or again and again: "
            f"{', '.join(_PARTS)}. Default: all, in this order.",
            autocompletion=_parts,
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(min=0.01, help="At most so long for the networks of the proposals, and for the searches."),
    ] = 60.0,
    lists: Annotated[
        int, typer.Option(min=1, help="Lists of each lattice that are searched, to train the posterior.")
    ] = 45,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train all that powder indexing has learned on crystals: templates, assignment, proposals, posterior.

    Each file is written when it is done, and says in its card how it was made and how well it does. To index with
    them, copy the files into mlindex/models of the installation. JAX uses a GPU where there is one.
    """
    from mlindex.records import InputError

    wanted = [name for entry in only or () for name in entry.replace(",", " ").split()]
    if unknown := sorted(set(wanted) - set(_PARTS)):
        raise InputError(f"--only: {', '.join(unknown)} cannot be trained; the parts are {', '.join(_PARTS)}")
    chosen = [part for part in _PARTS if part in wanted or not wanted]

    from mlindex.cli.training import train_parts

    raise typer.Exit(train_parts(data, output, chosen, minutes, lists, seed))
