"""HDF5 through `DiskFile`: the same file as without it, and on a disk that takes no more an `OSError`, no crash."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlindex.runtime.diskfile import DiskFile, new_hdf5
from tests.runtime.campaigns import ROOT

VERSION = ("v110", "v110")


def fill(file: h5py.File) -> None:
    """What shards and masters have: attributes, texts, holes, chunks, virtual datasets, and metadata read back."""
    file.attrs["long"] = "é" * 40000
    file["text"] = np.array([b"abc", b"de"], "S3")
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((1 << 20,))
    h5py.h5d.create(file.id, b"hole", h5py.h5t.NATIVE_DOUBLE, space, plan)
    file.create_dataset("chunks", data=np.arange(30000), chunks=(1000,), compression="gzip")
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("virtual", layout)
    for k in range(40):
        file.create_group(f"g{k}").attrs["k"] = k
    assert file["chunks"][:].sum() == 30000 * 29999 // 2 and file["g7"].attrs["k"] == 7


def test_it_is_the_file_that_hdf5_writes_itself(tmp_path):
    with h5py.File(tmp_path / "direct.h5", "w", libver=VERSION) as file:
        fill(file)
    with new_hdf5(tmp_path / "through.h5", VERSION) as file:
        fill(file)
        offset = file["hole"].id.get_offset()
    with h5py.File(tmp_path / "direct.h5") as direct, h5py.File(tmp_path / "through.h5") as through:
        assert set(direct) == set(through) and direct.attrs["long"] == through.attrs["long"]
        for name in ("text", "chunks"):
            np.testing.assert_array_equal(direct[name][:], through[name][:])
        assert through["hole"].id.get_offset() == offset and not through["hole"][:].any()
        assert through["virtual"].is_virtual
    for name in ("direct.h5", "through.h5"):
        assert (tmp_path / name).stat().st_blocks * 512 < 1 << 20, "the hole takes no space"
    with open(tmp_path / "through.h5", "r+b") as raw:
        raw.seek(offset + 8 * 1000)
        raw.write(np.float64(2.5).tobytes())
    with h5py.File(tmp_path / "through.h5") as through:
        assert through["hole"][1000] == 2.5 == through["hole"][:].sum()


OPERATIONS = st.lists(
    st.tuples(st.integers(0, 60), st.binary(max_size=30)) | st.integers(0, 90) | st.just("full"), max_size=12
)


@given(OPERATIONS)
def test_it_reads_what_was_written(tmp_path_factory, operations):
    """As a file in memory does, whether the disk took it or not."""
    path = tmp_path_factory.mktemp("disk") / "file"
    disk, model = DiskFile(path), io.BytesIO()
    for operation in operations:
        if operation == "full":
            disk.error = disk.error or OSError(28, "No space left on device")
        elif isinstance(operation, tuple):
            for file in (disk, model):
                file.seek(operation[0])
                file.write(operation[1])
        else:
            disk.seek(operation)
            model.seek(operation)
            assert disk.read(7) == model.read(7)
    assert disk.seek(0, io.SEEK_END) == model.seek(0, io.SEEK_END)
    disk.seek(0)
    assert disk.read() == model.getvalue()
    buffer = bytearray(5)
    disk.readinto(buffer)
    assert not any(buffer) and disk.tell() == len(model.getvalue()) + 5
    disk.close()


@pytest.mark.parametrize("call", ["pwrite", "ftruncate"])
def test_error_at_any_call_is_raised_at_the_end(tmp_path, monkeypatch, call):
    real = getattr(os, call)
    for allowed in range(0, 400, 3):
        count = iter(range(1 << 30))

        def failing(*arguments, left=allowed, count=count):
            if next(count) >= left:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                with new_hdf5(tmp_path / "f.h5", VERSION) as file:
                    fill(file)
            except OSError as error:
                assert error.errno == 28 and not (tmp_path / "f.h5").exists()
            else:
                break
    assert allowed > 0
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["g39"].attrs["k"] == 39


CHILD = """
import resource, sys
from pathlib import Path
from mlindex.runtime.diskfile import new_hdf5
from tests.runtime.test_diskfile import VERSION, fill
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    with new_hdf5(Path(sys.argv[1]), VERSION) as file:
        fill(file)
except OSError as error:
    print("errno", error.errno)
"""


@pytest.mark.parametrize("size", [0, 4096, 100000, 5000000])
def test_process_ends_in_order(tmp_path, size):
    """By a real limit on the size of files; the library has nothing to stumble over at its end."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "f.h5"), str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "errno 27\n" and done.stderr == ""


def test_other_errors_leave_no_file_either(tmp_path):
    (tmp_path / "f.h5").write_text("before")
    with pytest.raises(ZeroDivisionError), new_hdf5(tmp_path / "f.h5", VERSION):
        raise ZeroDivisionError
    assert not (tmp_path / "f.h5").exists()
    with pytest.raises(FileNotFoundError), new_hdf5(tmp_path / "no" / "f.h5", VERSION):
        raise AssertionError
