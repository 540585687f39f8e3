"""Results files opened to read: whatever is wrong with one is said in a sentence, and the library comes back from it.

The global heaps of an HDF5 file hold the texts of all attributes, and are the one structure of these files that has no
checksum. Over one that a damaged disk has filled with zeros the library walks for ever, in steps of no length (HDF5
2.0), so they are looked at before it does; any other damage it reports itself.

Source: HDF5 File Format Specification, version 3.0, section III.E.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py

from mlindex.records import InputError

# what h5py raises over damaged metadata is not only OSError: a bad checksum is a RuntimeError, an AttributeError or a
# TypeError, and numbers out of range are what they are to NumPy
_BROKEN = (OSError, RuntimeError, LookupError, ValueError, AttributeError, TypeError, ArithmeticError, MemoryError)
_SIGNATURE = b"GCOL\x01\0\0\0"
_HEAD = 16  # bytes before the objects of a heap, and before the data of each
_REACH = 1 << 20  # bytes in which a heap begins: from the start of the file, from the heap before, or to the end


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read; what h5py raises over one that is no results file, or not whole, is an `InputError`."""
    try:
        check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except InputError:
        raise
    except _BROKEN as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        ours = path.parent.name == "shards" or path.name == "results.h5"
        advice = "resume its run, which makes it again" if ours else "give the folder of a run, or results of -o"
        raise InputError(f"{path}: is not a readable results file ({detail}); {advice}") from None


def check_heaps(path: Path) -> None:
    """Raise `ValueError` for a file with a global heap, before or behind its data, that the library cannot get through.

    Raises `OSError` where the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in {0, max(size - _REACH, 0)}:
            at = _next(file, start)
            while at is not None:
                at = _next(file, at + _checked(file, at, size))


def _next(file: BinaryIO, start: int) -> int | None:
    """Where the next heap begins; None where none does."""
    file.seek(start)
    found = file.read(_REACH).find(_SIGNATURE)
    return None if found < 0 else start + found


def _checked(file: BinaryIO, at: int, size: int) -> int:
    """The length of the heap that begins here; `ValueError` where its objects do not fill it."""
    file.seek(at + 8)
    length = int.from_bytes(file.read(8), "little")
    if not _HEAD < length <= size - at:
        raise ValueError(f"the heap at byte {at} has no end")
    heap = file.read(length - _HEAD)
    place = 0
    while place + _HEAD <= len(heap):
        number = int.from_bytes(heap[place : place + 2], "little")
        own = int.from_bytes(heap[place + 8 : place + 16], "little")
        step = _HEAD + -(-own // 8) * 8 if number else own  # free space, which has no number, counts its head
        if not 0 < step <= len(heap) - place:
            raise ValueError(f"the heap at byte {at} is damaged")
        place += step
    return length
