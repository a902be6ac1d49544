"""Folders of images: read as a person would see them, or left out by name; cached; untouched."""

import hashlib
import json
import os
import struct
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from ornstein.data import decode as decoding
from ornstein.data import decoders, images
from ornstein.data.decode import Unreadable, answer, decode
from ornstein.data.images import cache_folder, read_folder
from ornstein.errors import DataError, StorageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    return path


def quarters(h=16, w=16, mode="RGB"):
    """Red, green / blue, white."""
    x = np.empty((h, w, 3), np.uint8)
    x[: h // 2, : w // 2], x[: h // 2, w // 2 :] = RED, GREEN
    x[h // 2 :, : w // 2], x[h // 2 :, w // 2 :] = BLUE, WHITE
    return Image.fromarray(x).convert(mode)


def noise(seed, h=16, w=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def fill(folder, count=4, suffix="png", **size):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(zlib.crc32(folder.name.encode()) + i, **size).save(folder / f"{i:03d}.{suffix}")


def corners(x):
    """The middle of each quarter of [3, H, W]."""
    _, h, w = x.shape
    return [tuple(int(v) for v in x[:, i, j]) for i in (h // 4, -h // 4) for j in (w // 4, -w // 4)]


def near(found, wanted, tolerance=12):
    return np.abs(np.array(found, int) - np.array(wanted, int)).max() <= tolerance


def decoded(path: Path, size=(16, 16)):
    image = decode(path.read_bytes(), size).image
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


# What a person sees


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("bmp", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("webp", {"lossless": True}),
        ("jpg", {"quality": 95, "subsampling": 0}),
        ("gif", {}),
    ],
)
def test_every_format(tmp_path, suffix, options):
    path = tmp_path / f"a.{suffix}"
    quarters().save(path, **options)
    x = decoded(path)
    assert x.shape == (3, 16, 16)
    assert x.dtype == np.uint8
    assert near(corners(x), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_mode(tmp_path, mode):
    image = quarters(mode=mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, **({"quality": 95, "subsampling": 0} if mode == "CMYK" else {}))
    wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    if mode in ("CMYK", "P"):
        assert near(corners(decoded(path)), [RED, GREEN, BLUE, WHITE])
    else:
        np.testing.assert_array_equal(decoded(path), wanted)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_obeyed(tmp_path, turn, suffix):
    upright = quarters(16, 24)
    inverse = {**decoding._TURN, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(inverse[turn]) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, quality=95)
    x = decoded(path, (16, 24))
    assert near(corners(x), [RED, GREEN, BLUE, WHITE], 30)
    for i in range(2):
        (tmp_path / "two").mkdir(exist_ok=True)
        stored.save(tmp_path / "two" / f"{i}.{suffix}", exif=exif, quality=95)
    assert read_folder(tmp_path / "two").x.shape == (2, 3, 16, 24)


def test_broken_exif_does_not_matter(tmp_path):
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0nonsense" * 4, quality=95)
    assert near(corners(decoded(tmp_path / "a.jpg")), [RED, GREEN, BLUE, WHITE], 40)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_16_bits_keeps_its_tones(tmp_path, dtype, suffix):
    grey = np.linspace(0, 65535, 256).reshape(16, 16).astype("<u2")
    Image.fromarray(grey.astype(dtype)).save(tmp_path / f"a.{suffix}")
    x = decoded(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(x[0].ravel(), np.arange(256))
    assert (x == x[:1]).all()


def test_grey_of_floats(tmp_path):
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(decoded(tmp_path / "a.tiff")[0].ravel(), np.arange(256))
    Image.fromarray(grey * 255).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(decoded(tmp_path / "a.tiff")[0].ravel(), np.arange(256))
    Image.fromarray(grey - 7).save(tmp_path / "a.tiff")
    with pytest.raises(Unreadable, match="neither 8-bit nor 16-bit"):
        decoded(tmp_path / "a.tiff")


def test_what_is_transparent_shows_white(tmp_path):
    image = quarters(mode="RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0], [255]], 8, axis=0).repeat(16, 1).astype("u1")))
    image.save(tmp_path / "a.png")
    assert corners(decoded(tmp_path / "a.png")) == [WHITE, WHITE, BLUE, WHITE]
    quarters(mode="RGB").save(tmp_path / "a.png", transparency=GREEN)
    assert corners(decoded(tmp_path / "a.png")) == [RED, WHITE, BLUE, WHITE]
    palette = quarters(mode="P")
    index = palette.getpixel((0, 0))
    palette.save(tmp_path / "a.png", transparency=index)
    assert corners(decoded(tmp_path / "a.png"))[0] == WHITE
    palette.save(tmp_path / "a.gif", transparency=index)
    assert corners(decoded(tmp_path / "a.gif"))[0] == WHITE


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame(tmp_path, suffix):
    frames = [quarters(), Image.new("RGB", (16, 16), BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert near(corners(decoded(path)), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 200)])
def test_slivers(tmp_path, shape):
    Image.new("RGB", shape[::-1], RED).save(tmp_path / "a.png")
    assert (decoded(tmp_path / "a.png") == np.array(RED).reshape(3, 1, 1)).all()


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_images_are_cut_about_their_centre(tmp_path, size, suffix):
    """Linear ramps stay linear: the value at each pixel centre is known."""
    h, w = 900, 1300
    y, x = np.mgrid[:h, :w]
    ramp = np.stack([x / w * 255, y / h * 255, np.full((h, w), 90)], -1)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / f"a.{suffix}", quality=95)
    got = decoded(tmp_path / f"a.{suffix}", size)
    scale = max(size[0] / h, size[1] / w)
    for axis, (n, full) in enumerate(zip(size[::-1], (w, h), strict=True)):
        centre = (np.arange(n) + 0.5 - n / 2) / scale / full + 0.5
        middle = got[axis, size[0] // 2] if axis == 0 else got[axis, :, size[1] // 2]
        assert np.abs(middle[1:-1] - 255 * centre[1:-1]).max() < 3


def test_shrinking_does_not_alias(tmp_path):
    board = np.indices((640, 640)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(decoded(tmp_path / "a.png").astype(int) - 127.5).max() < 3


# What cannot be read


def png(width, height):
    """The beginning of a PNG of this size, with a little data."""
    data = b"\x89PNG\r\n\x1a\n"
    body = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))]
    body += [(b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    for name, chunk in body:
        data += struct.pack(">I", len(chunk)) + name + chunk
        data += struct.pack(">I", zlib.crc32(name + chunk))
    return data


def photo(tmp_path, suffix="jpg"):
    noise(1, 64, 64).save(tmp_path / f"source.{suffix}")
    return (tmp_path / f"source.{suffix}").read_bytes()


def test_each_reason_is_said(tmp_path, folder):
    fill(folder, 2)
    jpeg = photo(tmp_path)
    broken = {
        "a empty.png": (b"", "The file is empty."),
        "b page.png": (b"\n<!DOCTYPE html><html></html>", "It is a web page, not one of "),
        "c truncated.jpg": (jpeg[:-900], "The file is damaged: "),
        "d head.png": (photo(tmp_path, "png")[:12], "The file is damaged: "),
        "e text.jpg": (b"hello, world", "It is something else, not one of JPEG, PNG"),
        "f bomb.png": (png(30_000, 30_000), "It has more than 50 million pixels or 16384"),
        "f warned.png": (png(12_000, 12_000), "It has more than 50 million pixels or 16384"),
        "g wide.png": (png(20_000, 10), "It has more than 50 million pixels or 16384"),
        "h large.png": (png(8000, 8000), "It has more than 50 million pixels or 16384"),
        "i other.ppm": (b"P6 2 2 255\n" + bytes(12), "It is something else"),
        "j phone.heic": (b"\0\0\0\x18ftypheic", "It is something else"),
        "k truncated.webp": (photo(tmp_path, "webp")[:-300], "The file is damaged: "),
        "中文 📷.gif": (b"GIF89a", "The file is damaged: "),
    }
    for name, (data, _) in broken.items():
        (folder / name).write_bytes(data)
    (folder / "l dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "m loop.png").symlink_to(folder / "m loop.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "dangling").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "n pipe.png")
    with (folder / "o sparse.bmp").open("wb") as file:
        file.truncate(decoding.MAX_FILE + 1)
    start = time.perf_counter()
    found = read_folder(folder, 16)
    assert time.perf_counter() - start < 2
    wanted = {name: reason for name, (_, reason) in broken.items()} | {
        "l dangling.png": "It cannot be reached: no such file or directory.",
        "m loop.png": "It cannot be reached: too many levels of symbolic links.",
        "n pipe.png": "It is not an ordinary file.",
        "o sparse.bmp": "It is larger than 64 MB.",
    }
    assert [bad.path for bad in found.bad] == sorted(wanted)
    for bad in found.bad:
        assert bad.reason.startswith(wanted[bad.path])
        assert bad.reason.endswith(".")
        assert "\n" not in bad.reason
    assert found.files == ("000.png", "001.png")
    assert found.ignored == 2
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(folder):
    fill(folder, 3)
    (folder / "001.png").chmod(0)
    found = read_folder(folder)
    assert [bad.path for bad in found.bad] == ["001.png"]
    assert "permission denied" in found.bad[0].reason
    (folder / "001.png").chmod(0o644)
    assert not read_folder(folder).bad


def test_permission_denied_is_said(monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "_contents", refused)
    request = {"size": [8, 8], "channels": 3, "fit": "crop"}
    assert answer(request, "a.png") == ({"bad": "It cannot be opened: permission denied."}, b"")


def test_a_file_that_vanishes(folder, monkeypatch):
    fill(folder, 3)
    listed = images.scan(folder)
    (folder / "001.png").unlink()
    monkeypatch.setattr(images, "scan", lambda root: listed)
    found = read_folder(folder)
    assert [bad.path for bad in found.bad] == ["001.png"]
    assert found.bad[0].reason == "It cannot be opened: no such file or directory."


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_damage_raises_nothing_else(tmp_path, suffix):
    good = photo(tmp_path, suffix)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as read_folder does
        for trial in range(120):
            data = bytearray(good)
            for place in rng.integers(0, len(data) if trial % 2 else 200, 8):
                data[place] ^= 1 << rng.integers(8)
            if trial % 5 == 0:
                del data[rng.integers(len(data)) :]
            with suppress(Unreadable):
                assert decode(bytes(data), (16, 16)).image.size == (16, 16)


@pytest.mark.parametrize(
    ("good", "says"),
    [
        (0, "no image in .*; 1 files are no images"),
        (1, "only one image in .*; 1 cannot be read, the first is b.png .The file is empty.;"),
    ],
)
def test_too_few(folder, good, says):
    (folder / "readme.md").write_text("")
    if good:
        (folder / "b.png").write_bytes(b"")
        quarters().save(folder / "a.png")
    with pytest.raises(DataError, match=says):
        read_folder(folder)
    with pytest.raises(DataError, match="does not exist"):
        read_folder(folder / "none")
    with pytest.raises(DataError, match="is not a folder"):
        read_folder(folder / "readme.md")


# What is found in a folder


def test_names_links_and_hidden_files(folder, tmp_path):
    names = ["a b.png", "中文.PNG", "📷/x.jpeg", "deep/er/é.png", "wrong suffix.jpg"]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(folder / name, format="PNG")
    for hidden in (".hidden.png", "._x.png", ".git/y.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        noise(9).save(folder / hidden)
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "again").symlink_to(folder / "deep")
    fill(tmp_path / "elsewhere", 1)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    found = read_folder(folder)
    assert found.files == tuple(sorted([*names, "linked/000.png"]))
    assert not found.bad
    for i, name in enumerate(names):
        np.testing.assert_array_equal(
            found.x[found.files.index(name)], np.asarray(noise(i)).transpose(2, 0, 1)
        )


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_name_that_is_not_text(folder):
    fill(folder, 2)
    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text only")
    assert read_folder(folder).bad[0].path == "\ufffd.png"


def test_classes_are_the_first_folders(folder):
    for name in ("cats", "dogs"):
        fill(folder / name / "2024", 3)
    (folder / "docs").mkdir()
    found = read_folder(folder)
    assert found.classes == ("cats", "dogs")
    assert found.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.held_out is None
    fill(folder, 1)  # an image beside them: no classes
    assert read_folder(folder).label is None
    assert read_folder(folder / "cats").classes == ()


def test_a_class_of_unreadable_files_is_none(folder):
    for name in ("a", "b", "c"):
        fill(folder / name, 2)
    for path in (folder / "b").iterdir():
        path.write_bytes(b"")
    found = read_folder(folder)
    assert found.classes == ("a", "c")
    assert found.label.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val"), ("training", "validation")])
def test_splits_are_kept(folder, names):
    for name, count in zip(names, (3, 2), strict=True):
        for kind in ("cats", "dogs"):
            fill(folder / name / kind, count)
    found = read_folder(folder)
    assert found.classes == ("cats", "dogs")
    held_out = [name.startswith(names[1]) for name in found.files]
    assert found.held_out.tolist() == held_out
    assert sum(held_out) == 4
    assert found.label.tolist() == ["dogs" in name for name in found.files]


def test_splits_with_something_beside_them(folder):
    for name in ("train", "test", "extra"):
        fill(folder / name, 2)
    with pytest.raises(DataError, match="and the folder 'extra' beside them"):
        read_folder(folder)
    for path in (folder / "extra").iterdir():
        path.rename(folder / path.name)
    with pytest.raises(DataError, match="and images beside them"):
        read_folder(folder)


def placed(folder, names):
    """The folder, with images of these names in it."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(folder / name)
    return folder


def test_splits_below_the_classes(folder):
    names = ["cat/train/0.png", "cat/train/deep/1.png", "dog/Test/2.png", "dog/training/3.png"]
    found = read_folder(placed(folder, names))
    assert found.files == ("cat/train/0.png", "cat/train/deep/1.png", *names[2:])
    assert found.held_out.tolist() == [False, False, True, False]
    assert (found.classes, found.label.tolist()) == (("cat", "dog"), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("cat/train/0.png cat/val/1.png dog/2.png", "in 'cat', and images that are in no"),
        ("cat/train/0.png cat/val/1.png dog/wild/2.png", "in 'cat', and images"),
        ("cat/train/0.png cat/val/1.png 2.png", "in 'cat', and images"),
        # no class holds both: they are names like any others
        ("vehicle/train/0.png sign/test/1.png vehicle/car/2.png", None),
        ("cat/train/0.png dog/train/1.png", None),
    ],
)
def test_splits_below_some_classes(folder, names, says):
    if says is None:
        assert read_folder(placed(folder, names.split())).held_out is None
    else:
        with pytest.raises(DataError, match=says):
            read_folder(placed(folder, names.split()))


def test_a_train_folder_alone_is_no_split(folder):
    fill(folder / "train", 2)
    fill(folder / "plane", 2)
    assert read_folder(folder).classes == ("plane", "train")


def test_a_train_folder_of_unreadable_files(folder):
    fill(folder / "test", 3)
    (folder / "train").mkdir()
    (folder / "train" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the images to train on"):
        read_folder(folder)


# Size and channels


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([(28, 28)] * 3, (28, 28)),
        ([(40, 64)] * 3, (40, 64)),
        ([(16, 64)] * 3, (16, 16)),
        ([(178, 218)] * 3, (64, 64)),
        ([(30, 40), (41, 50), (300, 200)], (28, 28)),
        ([(300, 200)] * 10 + [(1, 9)], (64, 64)),
        ([(1, 9), (2, 2)], (8, 8)),
        ([], (8, 8)),
    ],
)
def test_a_size_is_chosen(sizes, wanted):
    assert images.common_size(sizes) == wanted


def test_size_and_channels_as_asked(folder):
    fill(folder, 3, h=40, w=50)
    assert read_folder(folder).x.shape == (3, 3, 40, 50)
    grey = read_folder(folder, 12, 1)
    assert grey.x.shape == (3, 1, 12, 12)
    colour = read_folder(folder, 12, 3).x[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(grey.x[0, 0], np.asarray(Image.fromarray(colour).convert("L")))


def test_grey_is_what_looks_grey(folder):
    for i, mode in enumerate(["L", "RGB", "1", "P"] * 80):  # more than a block
        noise(i).convert("L").convert(mode).save(folder / f"{i:03d}.png")
    found = read_folder(folder)
    assert found.x.shape == (320, 1, 16, 16)
    np.testing.assert_array_equal(found.x[301, 0], np.asarray(noise(301).convert("L")))
    assert read_folder(folder, channels=3).x.shape == (320, 3, 16, 16)
    noise(0).save(folder / "colour.png")
    assert read_folder(folder).x.shape == (321, 3, 16, 16)


# The cache


def tree(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def same(a, b):
    np.testing.assert_array_equal(a.x, b.x)
    assert [v for v in a if not isinstance(v, np.ndarray)] == [
        v for v in b if not isinstance(v, np.ndarray)
    ]


def test_the_second_start_decodes_nothing(folder, cache, monkeypatch):
    for name in ("a", "b"):
        fill(folder / name, 3)
    (folder / "a" / "bad.png").write_bytes(b"")
    before, calls = tree(folder), []
    first = read_folder(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 7) for i in range(1, 8)]
    assert tree(folder) == before
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".size", ".u8"]
    monkeypatch.setattr(decoders, "COMMAND", None)
    second = read_folder(folder, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 7
    same(first, second)
    assert isinstance(second.x, np.memmap)
    assert not second.x.flags.writeable


def test_reading_twice_gives_the_same(folder, cache, monkeypatch):
    fill(folder, 5, h=80, w=90, suffix="jpg")
    first = read_folder(folder)
    monkeypatch.setenv("ORNSTEIN_CACHE", str(cache / "other"))
    same(first, read_folder(folder))


@pytest.mark.parametrize(
    "harm",
    [
        lambda pixels, index: pixels.write_bytes(pixels.read_bytes()[:-1]),
        lambda pixels, index: pixels.unlink(),
        lambda pixels, index: index.unlink(),
        lambda pixels, index: index.write_bytes(index.read_bytes()[:-9]),
        lambda pixels, index: index.write_text("[]"),
        lambda pixels, index: index.write_bytes(b"\xff"),
        lambda pixels, index: index.write_text(
            json.dumps({**json.loads(index.read_text()), "label": [0]})
        ),
    ],
)
def test_a_damaged_cache_is_rebuilt(folder, cache, harm):
    fill(folder, 3)
    first = read_folder(folder)
    kept = np.array(first.x)
    (pixels,), (index,) = cache.glob("*.u8"), cache.glob("*.json")
    harm(pixels, index)
    second = read_folder(folder)
    np.testing.assert_array_equal(second.x, kept)
    assert second.fingerprint == first.fingerprint


def test_a_changed_folder_is_read_again(folder):
    fill(folder, 3)
    first = read_folder(folder)
    noise(99).save(folder / "001.png")
    second = read_folder(folder)
    assert second.fingerprint != first.fingerprint
    np.testing.assert_array_equal(second.x[1], np.asarray(noise(99)).transpose(2, 0, 1))
    noise(98).save(folder / "004.png")
    assert len(read_folder(folder).x) == 4


def test_the_fingerprint_is_of_the_content(folder, tmp_path):
    fill(folder / "a", 2)
    fill(folder / "b", 2)
    first = read_folder(folder)
    other = tmp_path / "copy"
    for path in folder.rglob("*.png"):
        target = other / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        os.utime(target, (1, 1))
    assert read_folder(other).fingerprint == first.fingerprint
    assert read_folder(other, 16).fingerprint == first.fingerprint  # the size that was chosen
    assert read_folder(other, 12).fingerprint != first.fingerprint
    (other / "b").rename(other / "c")
    assert read_folder(other).fingerprint != first.fingerprint


def test_an_interrupted_start_leaves_nothing(folder, cache):
    fill(folder, 3)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_folder(folder, progress=stop)
    assert list(cache.iterdir()) == []
    assert len(read_folder(folder).x) == 3


def test_a_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    fill(folder, 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="set ORNSTEIN_CACHE"):
        read_folder(folder)


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("ORNSTEIN_CACHE")
    assert cache_folder() == Path("/b/ornstein")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ornstein"
