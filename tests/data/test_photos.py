"""Folders as they come: photos of many megapixels, and folders a quarter of which is damaged."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from ornstein.cli import carry, run
from ornstein.data import decode as decoding
from ornstein.data import decoders
from ornstein.data.decode import answer, decode
from ornstein.data.images import read_folder, scan
from ornstein.data.info import Originals, originals
from ornstein.data.sources import Folder, Toy

NETWORK = ["model.network=unet", "model.network.channels=[8]", "model.network.blocks=1"]
TINY = [*NETWORK, "generation.steps=1", "optim.batch=2", "optim.warmup=0", "--no-previews"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    return path


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed, h=8, w=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def planes(image):
    """An image as numbers [3, H, W]."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)


def ramp(width, height):
    """Red rises to the right, green rises downwards."""
    slope = Image.linear_gradient("L")
    across, down = slope.rotate(90).resize((width, height)), slope.resize((width, height))
    return Image.merge("RGB", (across, down, Image.new("L", (width, height), 90)))


# Photos


def test_photos_are_resized_and_it_is_said(folder, tmp_path, capsys, monkeypatch):
    """At every start, also where the cache serves."""
    photo = saved(ramp(4032, 3024), "JPEG", quality=60)
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(photo)
    words = ["train", "edm", "--data", str(folder), "--samples", "2", "--runs", str(tmp_path)]
    sentence = (
        "images of 4032×3024 are cut square and resized to 64×64; "
        "data.size=128 for more detail (about 4 times the work)"
    )
    assert run([*words, *TINY]) == 0
    assert sentence in capsys.readouterr().err
    monkeypatch.setattr(decoders, "COMMAND", None)
    assert run([*words, *TINY]) == 0
    err = capsys.readouterr().err
    assert "is finished" in err
    assert sentence in err


def test_a_turned_photo_has_the_size_that_a_person_sees(folder):
    """A phone held upright stores the rows of its sensor, and a tag that says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, kind in enumerate(("JPEG", "PNG", "WEBP", "TIFF")):
        (folder / f"{i}.{kind}").write_bytes(saved(ramp(40, 30), kind, exif=exif))
    assert set(read_folder(folder, 8).originals) == {(40, 30)}
    assert set(read_folder(folder, 8).originals) == {(40, 30)}  # from the cache


def test_twelve_megapixels_are_decoded_at_a_fraction(tmp_path, monkeypatch):
    """A JPEG is read at an eighth of its sides, if that is enough: 64 times fewer pixels."""
    decoded = []
    load = ImageFile.ImageFile.load

    def counted(image):
        decoded.append(image.size)
        return load(image)

    data = saved(ramp(4032, 3024), "JPEG", quality=60)
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    image, original = decode(data, (64, 64))
    pixels = planes(image)
    assert original == (3024, 4032)
    assert decoded[0] == (504, 378)
    # The middle square shows the middle three quarters of the rise to the right.
    inner = slice(2, -2)
    centres = (np.arange(64) + 0.5) / 64
    across = 255 * (0.125 + 0.75 * centres)
    assert np.abs(pixels[0].mean(0) - across)[inner].max() < 3
    assert np.abs(pixels[1].mean(1) - 255 * centres)[inner].max() < 3


SIZES = Originals((60, 80), (600, 800), (3000, 4000))
SQUARE = Originals((512, 512), (512, 512), (512, 512))
FOLDER = {"kind": "folder", "path": "x"}


@pytest.mark.parametrize(
    ("fields", "side", "sizes", "says"),
    [
        (
            {},
            64,
            SIZES,
            "images of 80×60 to 4000×3000 (half of them up to 800×600) are cut square and resized "
            "to 64×64; data.size=128 for more detail (about 4 times the work)",
        ),
        # Twice the side would be more than most of them have.
        (
            {},
            64,
            originals([(100, 120)]),
            "images of 120×100 are cut square and resized to 64×64",
        ),
        # Whoever names a size has thought of it.
        (
            {"size": 64, "fit": "pad"},
            64,
            SIZES,
            "images of 80×60 to 4000×3000 (half of them up to 800×600) are padded to a square and "
            "resized to 64×64",
        ),
        (
            {"size": 64, "fit": "stretch"},
            64,
            originals([(5, 9)]),
            "images of 9×5 are stretched to a square and enlarged to 64×64",
        ),
        ({"size": 64}, 64, SQUARE, "images of 512×512 are resized to 64×64"),
        ({}, 512, SQUARE, ""),
        ({}, 64, None, ""),
    ],
)
def test_what_is_said_of_the_size(fields, side, sizes, says):
    source = Folder(path="x", **fields)
    assert carry._resizing(source, (3, side, side), sizes) == says


def test_nothing_is_said_of_what_was_not_resized():
    assert Toy(name="moons", count=10).load().originals is None
    assert carry._resizing(Toy(name="moons"), (2,), None) == ""


def test_originals_are_ordered_by_area():
    assert originals([(9, 1), (2, 2), (3, 3), (1, 4)]) == ((1, 4), (3, 3), (9, 1))
    assert originals([(5, 7)]) == ((5, 7), (5, 7), (5, 7))


# Fitting


@pytest.mark.parametrize(("h", "w"), [(12, 20), (20, 12), (7, 8), (20, 20)])
def test_padding_without_scaling_only_adds_white(h, w):
    x = np.asarray(noise(0, h, w)).transpose(2, 0, 1)
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    margins = ((0, 0), (top, side - h - top), (left, side - w - left))
    expected = np.pad(x, margins, constant_values=255)
    got = planes(decode(saved(noise(0, h, w)), (side, side), "pad").image)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("width", "height"), [(1300, 900), (900, 1300), (320, 100)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_linear_ramps_stay_linear(width, height, kind, fit):
    """The value at each pixel's centre is known, however the image is fitted."""
    options = {"quality": 95} if kind == "JPEG" else {}
    x = planes(decode(saved(ramp(width, height), kind, **options), (32, 32), fit).image)
    scale = {
        "crop": (min(width, height),) * 2,
        "pad": (max(width, height),) * 2,
        "stretch": (width, height),
    }[fit]
    for axis, (part, whole) in enumerate(zip(scale, (width, height), strict=True)):
        centre = ((np.arange(32) + 0.5) / 32 - 0.5) * part / whole + 0.5
        middle = x[axis, 16] if axis == 0 else x[axis, :, 16]
        # Pixels at an edge are mixtures, and beyond it padding is white.
        reach = 1.6 / 32 * part / whole
        inside = (centre > reach) & (centre < 1 - reach)
        beyond = (centre < -reach) | (centre > 1 + reach)
        assert np.abs(middle[inside] - 255 * centre[inside]).max() < 4
        assert (middle[beyond] == 255).all()
        assert beyond.any() == (fit == "pad" and part > whole)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "I;16", "1"])
def test_padding_is_white_in_every_mode(mode):
    grey = mode == "I;16"
    image = Image.fromarray(np.zeros((4, 8), np.uint16)) if grey else Image.new(mode, (8, 4))
    if mode == "RGBA":
        image.putalpha(255)
    if mode == "CMYK":
        image = Image.new("CMYK", (8, 4), (0, 0, 0, 255))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    x = planes(decode(saved(image, kind), (8, 8), "pad").image)
    expected = np.full((3, 8, 8), 255)
    expected[:, 2:6] = 0
    np.testing.assert_array_equal(x, expected)


def test_each_fit_has_a_cache_and_a_fingerprint_of_its_own(folder):
    for i in range(3):
        noise(i, 20, 30).save(folder / f"{i}.png")
    found = {fit: read_folder(folder, 12, fit=fit) for fit in ("crop", "pad", "stretch")}
    assert len({x.fingerprint for x in found.values()}) == 3
    assert len({x.x.tobytes() for x in found.values()}) == 3
    for fit, before in found.items():
        again = Folder(path=str(folder), size=12, fit=fit).load()
        np.testing.assert_array_equal(again.x, before.x)
        assert again.originals == ((20, 30),) * 3


# Five hundred bad among two thousand


def chunks(*pairs):
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in pairs:
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    return data


def png(width, height, pixels=None):
    """A PNG of 8-bit grey that says it has this size."""
    body = zlib.compress(bytes((width + 1) * height if pixels is None else pixels))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return chunks((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))


def arrays():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((8, 8)))
    return buffer.getvalue()


def flawed(data, place):
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


JPEG = saved(noise(1, 32, 32), "JPEG")
BAD_BYTES = {
    "empty.png": b"",
    "page.jpg": b"<!doctype html><html><body>404</body></html>",
    "cut.jpg": JPEG[: len(JPEG) * 2 // 3],
    "cut.png": saved(noise(2, 32, 32))[:2000],
    "cut.webp": saved(noise(3, 32, 32), "WEBP")[:-100],
    "cut.gif": saved(noise(4), "GIF")[:9],
    "cut.tiff": saved(noise(5), "TIFF")[:60],
    "cut.bmp": saved(noise(6), "BMP")[:40],
    "random.webp": np.random.default_rng(0).bytes(3000),
    "bomb.png": png(30_000, 30_000, 1000),
    "large.png": png(8_000, 8_000, 1000),
    "wide.png": png(20_000, 10, 1000),
    "no width.png": png(0, 8),
    "no height.png": png(8, 0),
    "flipped.png": flawed(saved(noise(7, 32, 32)), 60),
    "text.bmp": b"hello, world\n" * 9,
    "paper.tiff": b"%PDF-1.7\n" + bytes(200),
    "zip.jpeg": b"PK\x03\x04" + bytes(200),
    "phone.heic": b"\0\0\0\x18ftypheic" + bytes(100),
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "array.jpg": arrays(),
}
BAD_OTHERWISE = {
    "dangling.png": lambda path: path.symlink_to(path.with_name("nowhere")),
    "itself.jpg": lambda path: path.symlink_to(path),
    "pipe.png": os.mkfifo,
    "sparse.bmp": lambda path: (path.touch(), os.truncate(path, decoding.MAX_FILE + 1)),
}
EACH = 20  # of 25 kinds

ANIMATED = {"save_all": True, "append_images": [noise(11)], "duration": 50}
GOOD_BYTES = {
    "plain.png": saved(noise(0)),
    "plain.jpg": saved(noise(1), "JPEG"),
    "plain.webp": saved(noise(2), "WEBP"),
    "plain.bmp": saved(noise(3), "BMP"),
    "plain.tiff": saved(noise(4), "TIFF"),
    "moving.gif": saved(noise(5), "GIF", **ANIMATED),
    "moving.webp": saved(noise(6), "WEBP", **ANIMATED),
    "a png.jpg": saved(noise(7)),  # a wrong suffix
    "a jpeg.heic": saved(noise(8), "JPEG"),
    "SHOUTED.PNG": saved(noise(9)),
    "print.jpg": saved(noise(10).convert("CMYK"), "JPEG"),
    "clear.png": saved(noise(11).convert("RGBA")),
    "palette.png": saved(noise(12).convert("P")),
    "deep.png": saved(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)),
    "dot.png": saved(noise(13, 1, 1)),
    "strip.png": saved(noise(14, 1, 300)),
    "and more.jpg": saved(noise(15), "JPEG") + b"trailing",
    "großes 中文 📷.png": saved(noise(16, 90, 70)),
}


@pytest.fixture
def spoilt(folder):
    """The names of the bad files among 2,000, spread over folders that loop."""
    bad = set()
    for i in range(EACH):
        place = folder / f"{i % 5}"
        place.mkdir(exist_ok=True)
        for name in (*BAD_BYTES, *BAD_OTHERWISE):
            path = place / f"{i:02d} {name}"
            if name in BAD_BYTES:
                path.write_bytes(BAD_BYTES[name])
            else:
                BAD_OTHERWISE[name](path)
            bad.add(f"{i % 5}/{path.name}")
    names = list(GOOD_BYTES)
    for i in range(1500):
        name = names[i % len(names)]
        (folder / f"{i % 5}" / f"{i:04d} {name}").write_bytes(GOOD_BYTES[name])
    (folder / "1" / "loop").symlink_to(folder)
    (folder / "2" / "again").symlink_to(folder / "3")
    (folder / "3" / "readme.txt").write_text("no image")
    assert len(bad) == 500
    return bad


def test_exactly_the_bad_files_are_left_out(spoilt, folder, tmp_path, monkeypatch, capsys):
    """Each by name and with a reason; the same again; and training goes on with the others."""
    first = read_folder(folder, 8)
    assert {file.path for file in first.bad} == spoilt
    assert len(first.bad) == 500
    assert len(first.files) == len(first.x) == 1500
    assert not set(first.files) & spoilt
    reasons = {}
    for path, reason in first.bad:
        kind = path.split(" ", 1)[1]
        assert reasons.setdefault(kind, reason) == reason  # the same for the same fault
        assert reason.endswith(".")
    assert len(reasons) == 25

    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "another"))
    second = read_folder(folder, 8)
    assert second.bad == first.bad
    assert second.files == first.files
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.x, first.x)

    words = ["train", "edm", "--data", str(folder), "data.size=8", "--samples", "20"]
    runs = tmp_path / "runs"
    assert run([*words, "--runs", str(runs), "--run", "job", *TINY]) == 0
    table = (runs / "job" / "bad_files.tsv").read_text(encoding="utf-8")
    rows = [tuple(line.split("\t")) for line in table.splitlines()]
    assert rows == list(first.bad)
    err = capsys.readouterr().err
    assert err.count("skipped ") == 5
    assert "... and 495 more" in err
    assert f"500 unreadable files were skipped; {runs}/job/bad_files.tsv lists them" in err


def test_limits_are_checked_before_anything_is_decoded(spoilt, folder, monkeypatch):
    """What is too large is not decoded, and a file of too many bytes is not even opened."""
    opened, decoded = [], []
    read, load = decoding._contents, ImageFile.ImageFile.load

    def counted_read(path):
        opened.append(Path(path).name)
        return read(path)

    def counted_load(image):
        decoded.append(opened[-1])
        return load(image)

    monkeypatch.setattr(decoding, "_contents", counted_read)
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted_load)
    request = {"size": [8, 8], "channels": 3, "fit": "crop"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the program does
        for file in scan(folder)[0]:
            item = decoders.Item(file.path, file.size, folder / file.path)
            if not decoders._known(item):
                answer(request, str(item.content))
    kinds = {name.split(" ", 1)[1] for name in opened}
    assert kinds == {*BAD_BYTES, *GOOD_BYTES}
    begun = {name.split(" ", 1)[1] for name in decoded}
    assert set(GOOD_BYTES) <= begun
    assert not begun & {"bomb.png", "large.png", "wide.png", "empty.png", "page.jpg"}
    assert "cut.jpg" in begun  # the count does see what fails later
