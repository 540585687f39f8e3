"""Images written by fabio, h5py and Pillow come back pixel by pixel; bad ones are refused with one sentence."""

from __future__ import annotations

import gzip

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from mlindex.formats.images import count_frames, read_image
from mlindex.records import InputError

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 60000, (37, 53)).astype(np.uint16)


def refused(path, read=read_image) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def written(path, data=COUNTS, header=None):
    kinds = {".tif": TifImage, ".edf": EdfImage, ".cbf": CbfImage}
    kinds[path.suffix](data=data, header=header or {}).write(str(path))
    return path


def marccd(path, data):
    """The layout of a MarCCD file: a TIFF directory that says where the pixels are, and they begin after 4096 bytes."""
    ny, nx = data.shape
    tags = [(256, nx), (257, ny), (258, 16), (259, 1), (262, 1), (273, 4096), (277, 1), (278, ny), (279, data.nbytes)]
    entries = [np.array([tag, 4, 1, 0, 0, 0], "<u2").tobytes()[:8] + np.uint32(value).tobytes() for tag, value in tags]
    head = b"II*\x00\x08\x00\x00\x00" + np.uint16(len(tags)).tobytes() + b"".join(entries) + bytes(4)
    path.write_bytes(head.ljust(4096, b"\x00") + data.astype("<u2").tobytes())
    return path


@pytest.fixture
def stack(tmp_path):
    """Frames as a NeXus file has them, compressed as an Eiger does."""
    frames = RNG.integers(0, 900, (3, 30, 40)).astype(np.uint32)
    frames[:, 4, 5] = 2**32 - 1
    path = tmp_path / "stack.h5"
    with h5py.File(path, "w") as h5:
        h5.create_dataset("entry/data/data", data=frames, chunks=(1, 30, 40), **hdf5plugin.Bitshuffle())
        h5["entry/instrument/detector/count_time"] = 0.25
        h5["entry/instrument/detector/saturation_value"] = 123456
        h5["entry/other/large"] = np.zeros((3, 90, 90), np.uint8)
    return path, frames


@pytest.mark.parametrize("name", ["a.tif", "a.edf", "a.cbf"])
def test_images_that_fabio_wrote_come_back(tmp_path, name):
    data = COUNTS.astype(np.int32) if name.endswith("cbf") else COUNTS
    path = written(tmp_path / name, data)
    image = read_image(path)
    assert image.data.dtype == np.float32 and np.array_equal(image.data, COUNTS)
    assert image.saturation == (None if name.endswith("cbf") else 65535)
    assert image.source == str(path) and count_frames(path) == 1
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_image(packed).data, COUNTS)
    renamed = path.rename(tmp_path / "image.bin")  # content decides
    assert np.array_equal(read_image(renamed).data, COUNTS)


def test_a_marccd_image_comes_back(tmp_path):
    path = marccd(tmp_path / "a.mccd", COUNTS)
    assert np.array_equal(read_image(path).data, COUNTS)
    packed = tmp_path / "a.mccd.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_image(packed).data, COUNTS)


@settings(max_examples=25)
@given(
    st.sampled_from(["u1", "u2", "u4", "i2", "i4", "f4"]), st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**32)
)
def test_an_edf_image_of_any_type_and_shape_comes_back(tmp_path_factory, kind, ny, nx, seed):
    data = np.random.default_rng(seed).integers(0, 120, (ny, nx)).astype(kind)
    path = written(tmp_path_factory.mktemp("edf") / "a.edf", data)
    assert np.array_equal(read_image(path).data, data)


def test_what_the_header_says(tmp_path):
    path = written(tmp_path / "a.edf", header={"acq_expo_time": "0.5", "saturation_value": "60000", "motor": "3 mm"})
    image = read_image(path)
    assert (image.exposure, image.saturation, image.header["motor"]) == (0.5, 60000, "3 mm")
    free = "# Detector: PILATUS\r\n# Exposure_time 0.0500 s\r\n# Exposure_period 0.1 s\r\n# Count_cutoff 1048576 counts"
    path = written(tmp_path / "b.edf", header={"title": free, "experiment": "experiment 7"})
    image = read_image(path)
    assert (image.exposure, image.saturation) == (0.05, 1048576)
    picture = Picture.fromarray(COUNTS)
    picture.save(tmp_path / "c.tif", description="0 (Xech=1.0747 mon=12276 exposure=1.000)")
    assert read_image(tmp_path / "c.tif").exposure == 1
    assert read_image(written(tmp_path / "d.edf", header={"experiment": "expo 2024"[:5]})).exposure is None


def test_pixels_that_are_no_measurement_are_nan(tmp_path):
    data = COUNTS.astype(np.int32)
    data[3, 4], data[5, 6] = -1, -2
    got = read_image(written(tmp_path / "a.cbf", data)).data
    assert np.argwhere(np.isnan(got)).tolist() == [[3, 4], [5, 6]]
    large = COUNTS.astype(np.float32)
    large[7, 8] = np.inf
    assert np.argwhere(np.isnan(read_image(written(tmp_path / "a.edf", large)).data)).tolist() == [[7, 8]]


def test_frames_of_a_stack(stack):
    path, frames = stack
    expected = np.where(frames == 2**32 - 1, np.nan, frames)
    assert count_frames(path) == count_frames(f"{path}::/entry/data/data") == 3
    assert count_frames(f"{path}::/entry/data/data#1") == 1
    for name, frame in (("", 0), ("::/entry/data/data", 0), ("::/entry/data/data#2", 2), ("::#1", 1)):
        image = read_image(f"{path}{name}")
        assert np.array_equal(image.data, expected[frame], equal_nan=True)
        assert (image.exposure, image.saturation) == (0.25, 123456)
        assert (image.header["dataset"], image.header["frame"]) == ("/entry/data/data", str(frame))


def test_which_dataset_serves_by_default(tmp_path):
    one, two = np.full((4, 5), 1, np.uint16), np.full((2, 6, 7), 2, np.uint16)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        h5["a/small"], h5["b/large"], h5["cell"] = one, two, np.arange(6.0)
    assert read_image(path).data[0, 0] == 2 and count_frames(path) == 2
    with h5py.File(path, "a") as h5:
        h5.attrs["default"] = "a"
        h5["a"].attrs["signal"] = np.bytes_("small")
    assert read_image(path).data[0, 0] == 1 and count_frames(path) == 1
    with h5py.File(path, "a") as h5:
        h5.attrs["default"] = "gone"  # leads nowhere
        h5["entry/data/data"] = h5py.ExternalLink("no_such_file.h5", "/data")
    assert read_image(path).data[0, 0] == 2


def test_a_link_to_another_file_is_followed(stack, tmp_path):
    path, frames = stack
    master = tmp_path / "master.h5"
    with h5py.File(master, "w") as h5:
        h5["entry/data/data_000001"] = h5py.ExternalLink(path.name, "/entry/data/data")
    assert count_frames(master) == 3
    assert np.array_equal(read_image(f"{master}::#2").data[6:], frames[2, 6:])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tif", b"", "is empty"),
        ("a.tif", b"not an image at all", "no image that can be read"),
        ("a.mccd", b"II*\x00\x08\x00\x00\x00", "no image that can be read"),
        ("a.cbf", b"###CBF: VERSION 1.5\r\nxxxxxxxxxxxxxxxx", "no image that can be read"),
        ("a.edf", b"{\nDim_1 = 3 ;\n}\n", "no image that can be read"),
        ("a.tif.gz", b"\x1f\x8b\x08\x00abcdefgh", "gzip compression is damaged"),
        ("a.tif.gz", gzip.compress(bytes(5000))[:20], "gzip compression is damaged"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "no HDF5 file that can be read"),
        ("a.h5::/data", b"II*\x00\x08\x00\x00\x00", "is no HDF5 file, whose frames have such names"),
    ],
)
def test_a_bad_file_is_refused_with_one_sentence(tmp_path, name, content, says):
    (tmp_path / name.partition("::")[0]).write_bytes(content)
    assert says in refused(tmp_path / name)


def test_images_that_are_cut_off_are_refused(tmp_path):
    for name in ("a.tif", "a.edf", "a.cbf"):
        path = written(tmp_path / name, COUNTS.astype(np.int32) if name.endswith("cbf") else COUNTS)
        path.write_bytes(path.read_bytes()[:-1500])
        assert "cut off" in refused(path)


def test_what_is_no_image_is_refused(tmp_path, stack):
    assert "no such file" in refused(tmp_path / "none.tif")
    assert "is a directory" in refused(tmp_path)
    assert "cannot be read" in refused(f"{tmp_path}/a\0.tif")
    Picture.fromarray(RNG.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(tmp_path / "colour.tif")
    assert "20 x 20 x 3, not an image in shades of grey" in refused(tmp_path / "colour.tif")
    assert "no pixel with a measured value" in refused(written(tmp_path / "nan.edf", np.full((5, 5), np.nan, "f4")))
    path, _ = stack
    assert f"there is no dataset /entry/nothing in it; give {path}::/entry/" in refused(f"{path}::/entry/nothing")
    assert "has no images in it" in refused(f"{path}::/entry/instrument/detector/count_time")
    assert "has 3 frames; give a number below 3" in refused(f"{path}::/entry/data/data#3")
    assert "the frame 'two' is no number" in refused(f"{path}::/entry/data/data#two")
    with h5py.File(tmp_path / "empty.h5", "w") as h5:
        h5["x"] = np.arange(5)
    for read in (read_image, count_frames):
        assert "no dataset of two or three dimensions" in refused(tmp_path / "empty.h5", read)
    assert "another file" in refused(f"{tmp_path / 'empty.h5'}::/x")


def test_a_damaged_frame_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        node = h5.create_dataset("data", data=RNG.integers(0, 9, (2, 64, 64)), chunks=(1, 64, 64), compression="gzip")
        where = node.id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    path.write_bytes(content)
    assert read_image(path).data.shape == (64, 64)
    assert "frame 1 cannot be read" in refused(f"{path}::/data#1")


def test_fabio_reads_what_this_reads(tmp_path):
    path = written(tmp_path / "a.tif")
    with fabio.open(str(path)) as other:
        assert np.array_equal(read_image(path).data, other.data)
