"""Arrays from strangers: what they are, and what is refused before it is loaded."""

import io
import struct
import time
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from ornstein.data import arrays
from ornstein.data.arrays import read_arrays
from ornstein.data.sources import Arrays
from ornstein.errors import DataError

RNG = np.random.default_rng(0)


def saved(tmp_path, x, name="a.npy"):
    path = tmp_path / name
    np.save(path, x)
    return path


def test_floats_of_two_axes_are_vectors(tmp_path):
    x = RNG.normal(size=(20, 3))
    samples = read_arrays(saved(tmp_path, x))
    assert samples.kind == "vector"
    assert samples.range is samples.bins is samples.label is None
    assert samples.x.dtype == np.float32
    np.testing.assert_array_equal(samples.x, x.astype(np.float32))


@pytest.mark.parametrize("dtype", [">f4", "<f2", "f8", "i8", ">i2", "longdouble"])
def test_numbers_become_native_float32(tmp_path, dtype):
    x = np.arange(12).reshape(6, 2).astype(dtype)
    read = read_arrays(saved(tmp_path, x)).x
    assert read.dtype == np.float32
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, np.arange(12).reshape(6, 2))


def test_one_axis_is_a_vector_of_one(tmp_path):
    assert read_arrays(saved(tmp_path, np.ones(5))).x.shape == (5, 1)


def test_bytes_of_two_axes_keep_their_range(tmp_path):
    samples = read_arrays(saved(tmp_path, RNG.integers(0, 256, (5, 9), dtype=np.uint8)))
    assert (samples.kind, samples.range, samples.bins) == ("vector", (0.0, 255.0), 256)
    assert samples.x.dtype == np.uint8


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((6, 8, 9), (6, 1, 8, 9)),
        ((6, 8, 9, 1), (6, 1, 8, 9)),
        ((6, 8, 9, 3), (6, 3, 8, 9)),
        ((6, 3, 8, 9), (6, 3, 8, 9)),
        ((6, 8, 9, 4), (6, 3, 8, 9)),
        ((6, 4, 8, 9), (6, 3, 8, 9)),
        ((6, 3, 4, 4), (6, 3, 4, 4)),  # 4 × 4 images, channels first: the square reading
        ((6, 4, 4, 3), (6, 3, 4, 4)),
        ((6, 3, 3, 3), (6, 3, 3, 3)),
        ((6, 28, 28, 1), (6, 1, 28, 28)),
        ((6, 1, 28, 28), (6, 1, 28, 28)),
    ],
)
def test_images_have_channels_first(tmp_path, shape, read):
    samples = read_arrays(saved(tmp_path, RNG.integers(0, 256, shape, dtype=np.uint8)))
    assert samples.kind == "image"
    assert (samples.range, samples.bins) == ((0.0, 255.0), 256)
    assert samples.x.shape == read
    assert samples.x.dtype == np.uint8


def test_pixels_stay_where_they_are(tmp_path):
    x = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_arrays(saved(tmp_path, x)).x, x.transpose(0, 3, 1, 2))
    wide = x.astype(np.int64)
    np.testing.assert_array_equal(read_arrays(saved(tmp_path, wide)).x, x.transpose(0, 3, 1, 2))


def test_opacity_is_laid_over_white(tmp_path):
    x = np.zeros((2, 5, 5, 4), np.uint8)
    x[1, ..., 0], x[1, ..., 3] = 200, 51  # a fifth of red 200
    read = read_arrays(saved(tmp_path, x)).x
    assert (read[0] == 255).all()
    np.testing.assert_array_equal(read[1, :, 0, 0], [244, 204, 204])
    read = read_arrays(saved(tmp_path, (x / 255).astype(np.float32))).x
    np.testing.assert_allclose(read[1, :, 0, 0], np.array([244, 204, 204]) / 255, atol=1e-6)


def test_float_images_lie_between_0_and_1(tmp_path):
    x = RNG.uniform(size=(4, 8, 8))
    samples = read_arrays(saved(tmp_path, x))
    assert (samples.kind, samples.range, samples.bins) == ("image", (0.0, 1.0), None)
    assert samples.x.dtype == np.float32
    with pytest.raises(DataError, match=r"from 0\.\S+ to 2\S* *.*scale them to \[0, 1\]"):
        read_arrays(saved(tmp_path, np.append(x, [[[2.0] * 8] * 8], axis=0)))


def test_booleans_are_images_of_two_values(tmp_path):
    samples = read_arrays(saved(tmp_path, RNG.uniform(size=(4, 8, 8)) > 0.5))
    assert (samples.range, samples.bins) == ((0.0, 1.0), 2)
    assert samples.x.dtype == np.uint8


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_the_first_row_that_is_not_finite_is_named(tmp_path, value):
    x = np.zeros((9, 2))
    x[4, 1] = x[7, 0] = value
    with pytest.raises(DataError, match="in row 4 "):
        read_arrays(saved(tmp_path, x))


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((9, 9, 9), np.int32) - 1, "from -1 to -1"),
        (np.zeros((9, 9, 9, 2), np.uint8), "channels must come first or last"),
        (np.zeros((9, 9, 9, 9, 3, 2), np.uint8), "vectors are"),
        (np.zeros((32, 32, 3), np.uint8), "single image"),
        (np.zeros((9, 2), complex), "complex128"),
        (np.zeros(9, [("a", "f4")]), "save uint8 or float32"),
        (np.array(["a", "b"]), "vectors are"),
        (np.zeros((1, 2)), "at least 2"),
        (np.zeros((0, 2)), "is empty"),
        (np.zeros((2, 0)), "is empty"),
        (np.float32(3.0), "vectors are"),
        (np.array(["2020"], dtype="datetime64[D]"), "datetime64"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, x, says):
    with pytest.raises(DataError, match=says):
        read_arrays(saved(tmp_path, x))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickles_are_never_opened(tmp_path, name):
    x = np.array([Trap(), Trap()], dtype=object)
    path = tmp_path / name
    np.savez(path, x=x) if name.endswith("z") else np.save(path, x, allow_pickle=True)
    with pytest.raises(DataError, match="never loaded"):
        read_arrays(path)
    path.write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(DataError, match="damaged or not a numpy file"):
        read_arrays(path)


def header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header((10**9, 3)) + b"0" * 100, "limit is 8 GiB"),
        (header((10**30, 3)) + b"0" * 100, "limit is 8 GiB"),
        (header((10**6, 3)) + b"0" * 100, "truncated"),
        (header((-4, 3)) + b"0" * 100, "damaged"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"0" * 30_000, "damaged"),
        (b"\x93NUMPY" + b"junk" * 100, "damaged or not a numpy file: its version is .106, 117."),
        (b"\x93NUMPY\x03\x00" + b"0" * 100, "holds records"),
        (b"", "damaged"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_claims_are_checked_before_loading(tmp_path, data, says, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", data)
    start = time.perf_counter()
    with pytest.raises(DataError, match=says):
        read_arrays(path)
    assert time.perf_counter() - start < 1


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    # The true limit is 256 MiB unpacked, which a quick test cannot write: declare it instead.
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000), np.uint8))
    zip_info = zipfile.ZipFile.infolist

    def declared(archive):
        for info in zip_info(archive):
            info.file_size = 300 << 20
            yield info

    monkeypatch.setattr(zipfile.ZipFile, "infolist", declared)
    with pytest.raises(DataError, match="200 times its size"):
        read_arrays(path)


def test_members_packed_otherwise_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", header((2, 2)) + bytes(16))
    with pytest.raises(DataError, match="save it again"):
        read_arrays(path)


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("data", "y"), ("foo", "y")])
def test_names_in_an_npz(tmp_path, names):
    x = RNG.normal(size=(6, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", **{names[0]: x, names[1]: np.array([7, 3, 3, 9, 7, 9])})
    samples = read_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(samples.x, x)
    assert samples.classes == ("3", "7", "9")
    np.testing.assert_array_equal(samples.label, [1, 0, 0, 2, 1, 2])


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.array(["b", "a", "b"]), ("a", "b")),
        (np.array([b"b", b"a", b"b"]), ("a", "b")),
        (np.array([[2.0], [1.0], [2.0]]), ("1", "2")),
        (np.array([True, False, True]), ("False", "True")),
        (np.array([4, 4, 4]), ()),
    ],
)
def test_labels_of_many_types(tmp_path, y, classes):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=y)
    samples = read_arrays(tmp_path / "a.npz")
    assert samples.classes == classes
    assert (samples.label is None) if not classes else (samples.label.tolist() == [1, 0, 1])


@pytest.mark.parametrize("y", [np.zeros(4), np.zeros((3, 5)), np.array([0.5, 1, 2])])
def test_labels_that_do_not_fit(tmp_path, y):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=y)
    with pytest.raises(DataError, match="label"):
        read_arrays(tmp_path / "a.npz")


def test_an_npz_of_many_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.ones((3, 2)), second=np.ones((3, 2)))
    with pytest.raises(DataError, match="its arrays: first, second"):
        read_arrays(tmp_path / "a.npz")


def test_large_files_stay_in_their_file(tmp_path, monkeypatch):
    x = RNG.integers(0, 256, (50, 6, 7, 3), dtype=np.uint8)
    path = saved(tmp_path, x)
    small = Arrays(path=str(path)).load()
    monkeypatch.setattr(arrays, "IN_MEMORY", 0)
    large = Arrays(path=str(path)).load()
    assert isinstance(large.x, np.memmap)
    assert small.info == large.info
    ids = np.array([3, 40])
    assert large.batch(ids).x.equal(small.batch(ids).x)


def test_damage_raises_nothing_else(tmp_path):
    """Flip and cut bytes of good files: the only exception is ours."""
    np.save(tmp_path / "a.npy", RNG.normal(size=(4, 3)).astype(np.float32))
    np.savez_compressed(tmp_path / "a.npz", x=np.ones((4, 3)), y=np.arange(4))
    for name in ("a.npy", "a.npz"):
        good = (tmp_path / name).read_bytes()
        for trial in range(150):
            data = bytearray(good)
            for place in RNG.integers(0, min(len(data), 400), 3):
                data[place] ^= 1 << RNG.integers(8)
            if trial % 3 == 0:
                del data[RNG.integers(len(data)) :]
            (tmp_path / name).write_bytes(data)
            with suppress(DataError):
                read_arrays(tmp_path / name)
