"""HDF5 files written so that a full disk is an `OSError` and nothing worse.

A write that fails leaves the HDF5 library with a file that it can neither flush nor forget, and at the end of the
process it crashes over it (a disk that is full when a file is closed, HDF5 2.0). So the library writes through
`DiskFile`, which never fails: from the first error on it keeps what it is given in memory, for the library to read
back, and the error is raised when the library is done.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py


class DiskFile:
    """A file as h5py's file-object driver wants it; `error` is the first that the operating system gave."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._at = self._size = 0
        self._kept: list[tuple[int, bytes]] = []  # writes after the error, in order
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; the place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next byte is read or written."""
        return self._at

    def write(self, data: Any) -> int:
        """Write all of the data here."""
        view, at = memoryview(data).cast("B"), self._at
        n = len(view)
        self._at += n
        self._size = max(self._size, self._at if n else 0)
        while view and self.error is None:
            try:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
            except OSError as error:
                self.error = error
        if view:
            self._kept.append((at, bytes(view)))
        return n

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what is here; bytes that were never written are zeros."""
        view, at = memoryview(buffer).cast("B"), self._at
        data = os.pread(self._file, len(view), at)
        view[:] = data + bytes(len(view) - len(data))
        for start, kept in self._kept:
            first, last = max(start, at), min(start + len(kept), at + len(view))
            if first < last:
                view[first - at : last - at] = kept[first - start : last - start]
        self._at += len(view)
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """So many bytes from here, or all that follow."""
        data = bytearray(max(min(size if size >= 0 else self._size, self._size - self._at), 0))
        self.readinto(data)
        return bytes(data)

    def truncate(self, size: int) -> int:
        """Make the file so long; what is new is a hole."""
        self._size = size
        if self.error is None:
            try:
                os.ftruncate(self._file, size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def check(self) -> None:
        """Raise the error that the operating system gave, if any."""
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        """Wait for the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Give the file back to the operating system."""
        os.close(self._file)


@contextlib.contextmanager
def new_hdf5(path: Path, version: tuple[str, str]) -> Iterator[h5py.File]:
    """A new HDF5 file at `path`, in place of one that is there, closed at the end; `version` as h5py's `libver`.

    Raises `OSError` where the disk did not take it, and leaves no file then, nor after any other error.
    """
    disk = DiskFile(path)
    try:
        with h5py.File(disk, "w", libver=version) as file:
            yield file
        disk.check()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        disk.close()
