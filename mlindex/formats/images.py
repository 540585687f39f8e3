"""Detector images: TIFF, MarCCD, EDF, CBF and what else fabio reads, gzipped or not, and frames of HDF5 files.

Content decides which, not the extension. A frame of an HDF5 file (NeXus, CXI) is `file.h5::/entry/data/data#3`: the
dataset and the number of the frame, counted from 0; both may be left out. Without a dataset it is that which the NeXus
attributes `default` and `signal` lead to, else one of the usual places, else the largest of two or three dimensions. Of
a stack in several datasets (`data_000001`, `data_000002`, ...) only the first is found so.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mlindex.records import InputError

_HDF5 = b"\x89HDF\r\n\x1a\n"
_GZIP = b"\x1f\x8b"
_LARGEST = 2**31  # bytes of a file of one image, unpacked
_USUAL = ("/entry/data/data", "/entry/data/data_000001", "/entry_1/data_1/data", "/entry/instrument/detector/data")
_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
_EXPOSURE_KEY = re.compile(r"((acq_)?expo(sure)?|count)[ _]?time|exposure", re.IGNORECASE)
_SATURATION_KEY = re.compile(r"count_?cutoff|saturat(ion|ed)(_value|_level)?", re.IGNORECASE)
# Free text, as "(mon=12276 exposure=1.000)" or "# Count_cutoff 1048576 counts"
_EXPOSURE_TEXT = re.compile(rf"\bexpo(?:sure)?(?:[ _]?time)?(?:\s*[=:]\s*|\s+){_NUMBER}", re.IGNORECASE)
_SATURATION_TEXT = re.compile(rf"\bcount_?cutoff(?:\s*[=:]\s*|\s+){_NUMBER}", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """One frame as the detector gave it.

    `data`: counts, float32, shape (ny, nx), row by row from the first in the file; NaN where the detector says that a
    pixel is no measurement (the largest value of an unsigned 32-bit image, negative values of a signed one).
    `saturation` in counts: from the header, else the largest value of 8 and 16-bit images, else None. `exposure` in
    seconds or None. `header`: what else the file says.
    """

    source: str
    data: Float[np.ndarray, "ny nx"]
    saturation: float | None = None
    exposure: float | None = None
    header: Mapping[str, str] = field(default_factory=dict)


def read_image(path: Path | str) -> Image:
    """The image in a file, or one frame of an HDF5 file (`path::/dataset#frame`; by default the first).

    Raises `InputError`, one sentence, for a file that cannot be used.
    """
    source = str(path)
    file, dataset, frame = _parts(source)
    data = _bytes(file, 8)
    if data == _HDF5:
        with _hdf5(file) as h5:
            return _from_hdf5(source, file, h5, dataset, frame)
    if dataset or frame is not None:
        raise InputError(f"{source}: {file} is no HDF5 file, whose frames have such names; give {file} alone")
    return _from_fabio(source, file)


def count_frames(path: Path | str) -> int:
    """How many frames `read_image` finds in a file (`path` or `path::/dataset`): 1 for all but a stack in HDF5.

    Raises `InputError` for a file that is not there, or an HDF5 file that cannot be used.
    """
    file, dataset, frame = _parts(str(path))
    if _bytes(file, 8) != _HDF5 or frame is not None:
        return 1
    with _hdf5(file) as h5:
        found = _dataset(str(path), file, h5, dataset)
        return found.shape[0] if found.ndim == 3 else 1


def _parts(source: str) -> tuple[Path, str, int | None]:
    """The file, the dataset ("" if none is named) and the frame (None likewise)."""
    file, colons, rest = source.partition("::")
    if not colons:
        return Path(source), "", None
    dataset, hash_, number = rest.partition("#")
    if not hash_:
        return Path(file), dataset, None
    if not re.fullmatch(r"\d+", number, re.ASCII):
        raise InputError(f"{source}: the frame {number!r} is no number; write {file}::{dataset}#0 for the first")
    return Path(file), dataset, int(number)


def _bytes(file: Path, most: int) -> bytes:
    if "\0" not in str(file) and file.is_dir():
        raise InputError(f"{file}: is a directory; give the images in it")
    try:
        with file.open("rb") as handle:
            data = handle.read(most)
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such file; check the name") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file}: cannot be read ({reason}); check the name and its permissions") from None
    if not data:
        raise InputError(f"{file}: is empty; give an image")
    return data


def _unpacked(file: Path) -> bytes:
    """The content of the file, gunzipped if need be: fabio seeks, which is slow in a gzipped file."""
    data = _bytes(file, _LARGEST)
    if data.startswith(_GZIP):
        try:
            with gzip.open(io.BytesIO(data)) as handle:
                data = handle.read(_LARGEST)
        except (OSError, EOFError, zlib.error):
            raise InputError(f"{file}: its gzip compression is damaged or cut off; copy it again") from None
    return data


class _Messages(logging.Handler):
    """Keeps what a library logs, and shows none of it: what goes wrong becomes one sentence."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(record.getMessage())


@contextlib.contextmanager
def _messages(name: str) -> Iterator[list[str]]:
    logger, handler = logging.getLogger(name), _Messages()
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.text
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _from_fabio(source: str, file: Path) -> Image:
    import fabio

    damaged = f"{file}: is no image that can be read, or is cut off; give a TIFF, MarCCD, EDF, CBF or HDF5 file"
    content = fabio.fabioutils.BytesIO(_unpacked(file), str(file))
    try:
        with _messages("fabio") as messages:
            image = fabio.open(content)
            data = image.data
    except Exception:  # fabio's readers raise whatever their parsing runs into
        raise InputError(damaged) from None
    # fabio fills up what is missing of an EDF file with zeros, and says so
    if data is None or not np.size(data) or any("incomplete" in text for text in messages):
        raise InputError(damaged)
    header = {str(key): str(value) for key, value in dict(image.header or {}).items()}
    return _image(source, np.asarray(data), header)


@contextlib.contextmanager
def _hdf5(file: Path) -> Iterator[Any]:
    import h5py
    import hdf5plugin  # noqa: F401  # registers the detectors' compression filters

    try:
        h5 = h5py.File(file, "r")
    except OSError as error:
        reason = str(error).partition("(")[2].rstrip(")") or str(error)
        raise InputError(f"{file}: is no HDF5 file that can be read ({reason}); copy it again") from None
    with h5:
        yield h5


def _stacks(h5: Any) -> list[str]:
    """The names of all datasets that can be images, the largest first."""
    import h5py

    found: list[tuple[int, str]] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and _imagelike(node):
            found.append((-node.size, f"/{name}"))

    h5.visititems(visit)
    return [name for _, name in sorted(found)]


def _imagelike(node: Any) -> bool:
    return node.ndim in (2, 3) and node.dtype.kind in "iuf" and node.size > 0 and min(node.shape[-2:]) > 1


def _node(h5: Any, name: str) -> Any:
    """What is there under a name; None for nothing, or a link to a file that is not there."""
    try:
        return h5[name]
    except (KeyError, OSError, ValueError):
        return None


def _by_default(h5: Any) -> str | None:
    """What the NeXus attributes lead to: `default` from group to group, then `signal`."""
    import h5py

    node = h5
    for _ in range(8):
        name = next((node.attrs[key] for key in ("default", "signal") if key in node.attrs), None)
        if isinstance(name, bytes):
            name = name.decode(errors="replace")
        if not isinstance(name, str) or (node := _node(node, name)) is None:
            return None
        if isinstance(node, h5py.Dataset):
            return node.name if _imagelike(node) else None
    return None


def _dataset(source: str, file: Path, h5: Any, name: str) -> Any:
    import h5py

    if name:
        node = _node(h5, name)
        if isinstance(node, h5py.Dataset) and _imagelike(node):
            return node
        others = _stacks(h5)
        wrong = "has no images" if isinstance(node, h5py.Dataset) else f"there is no dataset {name}"
        advice = f"{file}::{others[0]}" if others else "another file: it has no images"
        raise InputError(f"{source}: {wrong} in it; give {advice}")
    for usual in (_by_default(h5), *_USUAL):
        node = _node(h5, usual) if usual else None
        if isinstance(node, h5py.Dataset) and _imagelike(node):
            return node
    stacks = _stacks(h5)
    if not stacks:
        raise InputError(f"{source}: has no dataset of two or three dimensions; give an HDF5 file with images")
    return h5[stacks[0]]


def _from_hdf5(source: str, file: Path, h5: Any, name: str, frame: int | None) -> Image:
    node = _dataset(source, file, h5, name)
    frames = node.shape[0] if node.ndim == 3 else 1
    number = frame or 0
    if number >= frames:
        raise InputError(f"{source}: has {frames} frame{'s' * (frames > 1)}; give a number below {frames}")
    try:
        data = node[number] if node.ndim == 3 else node[()]
    except OSError as error:
        raise InputError(f"{source}: frame {number} cannot be read ({error}); copy the file again") from None
    header = {"dataset": str(node.name), "frame": str(number)}
    for key, value in node.attrs.items():
        header[key] = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    header |= _scalars(h5)
    return _image(source, np.asarray(data), header)


def _scalars(h5: Any) -> dict[str, str]:
    """Scalar datasets that say how long the exposure was and where the detector saturates."""
    import h5py

    found: dict[str, str] = {}

    def visit(name: str, node: Any) -> None:
        last = name.rpartition("/")[2]
        if (
            isinstance(node, h5py.Dataset)
            and node.size == 1
            and node.dtype.kind in "iuf"
            and (_EXPOSURE_KEY.fullmatch(last) or _SATURATION_KEY.fullmatch(last))
        ):
            found[last] = str(np.asarray(node[()]).ravel()[0])

    h5.visititems(visit)
    return found


def _image(source: str, data: np.ndarray, header: dict[str, str]) -> Image:
    if data.ndim != 2 or min(data.shape) < 2:
        shape = " x ".join(map(str, data.shape))
        raise InputError(f"{source}: is an array of {shape}, not an image in shades of grey; give one value a pixel")
    if data.dtype.kind not in "iuf":
        raise InputError(f"{source}: has pixels of type {data.dtype}; give integers or floating-point numbers")
    counts = data.astype(np.float32)
    if data.dtype.kind == "u" and data.dtype.itemsize >= 4:
        counts[data == np.iinfo(data.dtype).max] = np.nan
    elif data.dtype.kind == "i":
        counts[data < 0] = np.nan
    else:
        counts[~np.isfinite(counts)] = np.nan
    if not np.any(np.isfinite(counts)):
        raise InputError(f"{source}: has no pixel with a measured value; check the file")
    saturation = _stated(header, _SATURATION_KEY, _SATURATION_TEXT)
    if saturation is None and data.dtype.kind in "iu" and data.dtype.itemsize <= 2:
        saturation = float(np.iinfo(data.dtype).max)
    return Image(source, counts, saturation, _stated(header, _EXPOSURE_KEY, _EXPOSURE_TEXT), header)


def _stated(header: Mapping[str, str], key: re.Pattern[str], text: re.Pattern[str]) -> float | None:
    """The first positive number under a key of the header that matches, else in a value that reads like `text`."""
    matches = [re.match(rf"\s*{_NUMBER}", value) for name, value in header.items() if key.fullmatch(name)]
    matches += [text.search(value) for value in header.values()]
    return next((float(match[1]) for match in matches if match and float(match[1]) > 0), None)
