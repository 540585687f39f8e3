"""Weights on disk: safetensors with a card, written so that a reader never sees half a file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from mlindex.records import InputError


def arrays_of(model: nnx.Module) -> dict[str, NDArray]:
    """The parameters of a network by their names ("inner.kernel"), on the host."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(str(part) for part in path): np.asarray(leaf[...]) for path, leaf in flat}


def put_arrays(model: nnx.Module, arrays: Mapping[str, NDArray]) -> None:
    """Put parameters by their names into a network. Raises `ValueError` where names or shapes do not fit."""
    flat = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    named = {".".join(str(part) for part in path): leaf for path, leaf in flat.items()}
    wrong = sorted(set(named) ^ set(arrays)) or sorted(n for n in named if named[n].shape != arrays[n].shape)
    if wrong:
        raise ValueError(f"the parameters do not fit the network: {', '.join(wrong)}")
    for name, leaf in named.items():
        leaf[...] = arrays[name]
    nnx.update(model, nnx.from_flat_state(flat.items()))


def save(path: str | Path, arrays: Mapping[str, NDArray], card: Mapping[str, Any]) -> None:
    """Write arrays and a card (anything JSON can hold) to `path`, as `write` does."""
    content = to_bytes(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={"card": json.dumps(dict(card), sort_keys=True)},
    )
    write(path, content)


def write(path: str | Path, content: bytes) -> None:
    """Write a file in one move; the folder is made. Others may read it as far as the umask lets them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(6)}.part")  # `tempfile` would keep it from all others
    try:
        with draft.open("xb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def load(path: str | Path) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """(arrays, card) of a file that `save` wrote. Raises `InputError`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the path of a trained network")
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {})["card"])
            return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"{path}: this is no trained network of mlindex ({error}); train it again") from None
