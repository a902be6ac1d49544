"""Small files that claim, or unpack to, more than any machine has: refused at once, in a sentence.

Images, archives, recipes, the records of a run, arrays and tables, each made here. A process that
has imported everything forks a child for each of them, which runs the command that a user would
type. Held against limits are the processor's time and the growth of the memory of the child and
of all decoders that it starts, beside the same command on harmless data.

    python -m pytest tests/reliability/test_bombs.py -s
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is measured in /proc"
)

SECONDS = 1.0  # of the processor, beyond the same command on harmless data
MEGABYTES = 200

DRIVER = """
import json, os, resource, sys, threading
from pathlib import Path
import numpy, torch, PIL.Image, pyarrow.parquet
from ornstein import cli, evaluation, run, training
from ornstein.cli import evaluate, inspect, recipes, runs, sample, show, train
from ornstein.data import arrays, decoders, images, inspection, parquet, sources
from ornstein.features import select

torch.set_num_threads(1)
torch.randn(4, 4) @ torch.randn(4, 4)
logs = Path(sys.argv[1])
# The program that decodes, which notes how much memory it has had.
decoders.COMMAND = (sys.executable, str(logs / "noting.py"), str(logs))

def most():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])

def now():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        before = now()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        code = cli.run(request["words"])
        sys.stdout.flush(), sys.stderr.flush()
        (logs / "peak").write_text(str(most() - before))
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    grown = int((logs / "peak").read_text()) if (logs / "peak").exists() else 10**9
    for log in logs.glob("decoder-*"):
        low, high = map(int, log.read_text().split())
        grown += high - low
    for path in [logs / "peak", *logs.glob("decoder-*")]:
        path.unlink(missing_ok=True)
    answer = {"code": os.waitstatus_to_exitcode(status), "grown": grown / 1024}
    print(json.dumps({**answer, "seconds": used.ru_utime + used.ru_stime}), flush=True)
"""

NOTING = """
import os, sys
from pathlib import Path
from ornstein.data import decode

def most():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

answer, first = decode.answer, most()
def noting(*words):
    try:
        return answer(*words)
    finally:
        Path(sys.argv[1], f"decoder-{os.getpid()}").write_text(f"{first} {most()}")
decode.answer = noting
decode.main()
"""


class Ended(NamedTuple):
    """How a command ended: its exit code, seconds of the processor, growth in MB, what it said."""

    code: int
    seconds: float
    grown: float
    said: str


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs a command line in a child of a process that has imported everything."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "noting.py").write_text(NOTING, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ORNSTEIN_DEVICE": "cpu"},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def call(*words, where):
        request = {
            "words": [str(word) for word in words],
            "folder": str(where),
            "output": str(folder / "output"),
            "environment": {"ORNSTEIN_CACHE": str(where / "cache")},
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return Ended(**answer, said=(folder / "output").read_text(errors="replace"))

    yield call
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


@pytest.fixture(scope="module")
def harmless(command, tmp_path_factory):
    """What the same commands take on harmless data, the larger of time and memory."""
    folder = tmp_path_factory.mktemp("harmless")
    (folder / "data").mkdir()
    for i in range(3):
        (folder / "data" / f"{i}.png").write_bytes(png(i))
    found = [command("inspect", "data", where=folder), command("recipes", where=folder)]
    assert [ended.code for ended in found] == [0, 0], found
    return Ended(0, max(e.seconds for e in found), max(e.grown for e in found), "")


def check(ended, harmless, codes, says=""):
    assert ended.code in codes, ended
    assert ended.seconds - harmless.seconds < SECONDS, ended
    assert ended.grown - harmless.grown < MEGABYTES, ended
    if ended.code:
        lines = ended.said.strip().splitlines()
        assert lines[-1].startswith("ornstein: "), ended
        assert "Traceback" not in ended.said
        assert says in ended.said, ended


# --- images ---------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(seed=0, *, size=(8, 8), between=b"", header=None):
    """A PNG of noise; between: chunks after its header; header: in place of its own."""
    x = np.random.default_rng(seed).integers(0, 256, (size[1], 1 + 3 * size[0]), dtype=np.uint8)
    x[:, 0] = 0
    head = header or struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(x.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + between + body + chunk(b"IEND", b"")


def packed(count):
    """Zlib data that unpacks to `count` zeros."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(1 << 20, count - at))) for at in range(0, count, 1 << 20)]
    return b"".join([*parts, packer.flush()])


def tiff(entries, after=b""):
    """A TIFF whose directory has these entries (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + after


def tiff_of(w, h, compression=1, strip=(8, 8), more=()):
    return sorted(
        [
            *((256, 4, 1, w), (257, 4, 1, h), (258, 3, 1, 8), (259, 3, 1, compression)),
            *((262, 3, 1, 1), (273, 4, 1, strip[0]), (277, 3, 1, 1), (278, 4, 1, h)),
            *((279, 4, 1, strip[1]), *more),
        ]
    )


def one_bit():
    stream = io.BytesIO()
    Image.new("1", (12000, 12000)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def frames(count):
    """A GIF of 8 × 8 pixels that goes on and on."""
    stream = io.BytesIO()
    pictures = [Image.new("P", (8, 8), i) for i in range(2)]
    pictures[0].save(stream, "GIF", save_all=True, append_images=pictures[1:], duration=20)
    data = stream.getvalue()
    start = data.rindex(b"!\xf9")  # the second frame
    return data[:start] + data[start:-1] * count + b";"


def gif(screen, frame):
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def scans(count):
    """A progressive JPEG of 48 million pixels that is drawn `count` times."""
    stream = io.BytesIO()
    Image.new("L", (16000, 3000)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


def jpeg(w, h):
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    data = stream.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", h, w) + data[at + 4 :]


def webp(w, h):
    extended = b"\x02\0\0\0" + (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little")
    parts = b"VP8X" + struct.pack("<I", 10) + extended + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def bmp(w, h, compression=0):
    info = struct.pack("<IiiHHIIiiII", 40, w, h, 1, 8, compression, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078, 0, 0, 1078) + info + bytes(1024) + b"\xff\0" * 8


TEXT = b"c\0\0" + packed(1 << 20)
LARGE = "more than 50 million pixels or 16384 a side"

IMAGES = {
    "largest.png": (lambda: png(header=struct.pack(">IIBBBBB", *[2**31 - 1] * 2, 8, 2, 0, 0, 0)),),
    "one bit.png": (one_bit, LARGE),
    "profile.png": (lambda: png(between=chunk(b"iCCP", b"p\0\0" + packed(1 << 28))),),
    "text.png": (lambda: png(between=chunk(b"zTXt", b"c\0\0" + packed(1 << 28))),),
    "texts.png": (lambda: png(between=chunk(b"zTXt", TEXT) * 100),),
    "chunks.png": (lambda: png(between=chunk(b"tEXt", b"a\0") * 4_500_000), "parts"),
    "screen.gif": (lambda: gif((65535, 65535), (8, 8)), LARGE),
    "frame.gif": (lambda: gif((8, 8), (65535, 65535)), LARGE),
    "frames.gif": (lambda: frames(100_000), None),
    "sides.tiff": (lambda: tiff(tiff_of(100_000, 100_000)), LARGE),
    "count.tiff": (lambda: tiff([*tiff_of(8, 8), (700, 1, 2**31, 8)]), None),
    "tags.tiff": (lambda: tiff([(300 + i, 4, 2**28, 8) for i in range(65_000)]), "parts"),
    "exif.png": (lambda: png(between=chunk(b"eXIf", tiff([(300, 4, 2**28, 8)] * 65_000))), None),
    "unpacks.tiff": (
        lambda: tiff(tiff_of(8, 8, 8, (122, 0x7FFFFF)), packed(1 << 28)),
        None,
    ),
    "canvas.webp": (lambda: webp(16384, 16384),),
    "sides.webp": (lambda: webp(1 << 24, 255),),
    "sides.jpg": (lambda: jpeg(65500, 65500), LARGE),
    "scans.jpg": (lambda: scans(5000), "more than 100 passes"),
    "sides.bmp": (lambda: bmp(2**31 - 1, 2**31 - 1), LARGE),
    "runs.bmp": (lambda: bmp(65535, 16000, 1), LARGE),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, command, harmless, tmp_path):
    """Beside one that is good; None: it may be read, if that is cheap."""
    make, *says = IMAGES[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.png").write_bytes(png())
    (tmp_path / "data" / name).write_bytes(make())
    ended = command("inspect", "data", where=tmp_path)
    check(ended, harmless, (0, 3) if says == [None] else (3,), (says or [""])[0] or "")
    if says != [None]:
        assert f"1 cannot be read, the first is {name} (" in ended.said


# --- archives, arrays and tables ------------------------------------------------------------------


def npy(shape, dtype="<f4", data=b""):
    """An array that claims this shape, with this content."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zipped(members, **words):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **words) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def lying(data, told):
    """A zip with one member, whose sizes say that it unpacks to that many bytes."""
    data = bytearray(data)
    for start, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = data.index(start) + at
        data[place : place + 4] = struct.pack("<I", told)
    return bytes(data)


def nested():
    inner = zipped({"zeros": bytes(1 << 24)}, compresslevel=9)
    for level in range(4):
        inner = zipped({f"{level}-{i}.zip": inner for i in range(10)})
    return inner


def tarred(mode):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        about = tarfile.TarInfo("../x.png")
        about.size = 1 << 26
        archive.addfile(about, io.BytesIO(bytes(1 << 26)))
    return stream.getvalue()


def headers(count, **words):
    """A tar of headers only, of members with names of their own; words: of the first."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for i in range(count):
            about = tarfile.TarInfo(f"{i}.png")
            for key, value in words.items() if i == 0 else ():
                setattr(about, key, value)
            archive.addfile(about)
    return stream.getvalue()


def varint(value):
    value, found = value << 1, b""  # zigzag, of what is not negative
    while value >= 128:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def rows_claimed(folder, told):
    """A table of 70,001 rows whose footer says that there are more."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    table = pa.table({"image": pa.array([b""] * 70_001, pa.binary())})
    pq.write_table(table, folder / "x", store_schema=False, write_statistics=False)
    data = (folder / "x").read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8].replace(varint(70_001), varint(told))
    assert footer != data[-8 - length : -8]
    return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def large_page(folder):
    """A table with one page of 100 MB of zeros, packed."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    table = pa.table({"image": [{"bytes": bytes(100 << 20), "path": "x"}, None]})
    pq.write_table(table, folder / "x", compression="zstd", use_dictionary=False)
    return (folder / "x").read_bytes()


ARCHIVES = {
    "x.zip": (lambda _: zipped({"x.png": bytes(1 << 28)}), "an archive: unpack it"),
    "nested.zip": (lambda _: nested(), "an archive: unpack it"),
    "x.tar": (lambda _: tarred("w"), "no image in"),
    "members.tar": (lambda _: headers(40_000), "no image in"),
    "claim.tar": (lambda _: headers(1, size=1 << 80), "reaches beyond the end of the file"),
    "records.tar": (
        lambda _: headers(1, size=1 << 40, type=tarfile.XHDTYPE),
        "a header is too long",
    ),
    "name.tar": (lambda _: headers(1, size=1 << 40, type=tarfile.GNUTYPE_LONGNAME), "too long"),
    "x.tar.gz": (lambda _: tarred("w:gz"), "an archive: unpack it"),
    "claim.npz": (lambda _: zipped({"x.npy": npy((10**12,))}), "the limit is 8 GiB"),
    "zeros.npz": (
        lambda _: zipped({"x.npy": npy((1 << 28,), "|u1", bytes(1 << 28))}, compresslevel=9),
        "more than 200 times its size",
    ),
    "nested.npz": (lambda _: zipped({"x.npz": nested()}), "its arrays: none"),
    "lies.npz": (
        lambda _: lying(zipped({"x.npy": npy((1 << 29, 2), "|u1", bytes(1 << 28))}), 1 << 12),
        "damaged or not a numpy file",
    ),
    "claim.npy": (lambda _: npy((10**6, 10**6)), "the limit is 8 GiB"),
    "short.npy": (lambda _: npy((10**9,)), "truncated"),
    "header.npy": (
        lambda _: b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"(" * 10_000,
        "damaged or not a numpy file",
    ),
    "gzipped.npz": (lambda _: gzip.compress(bytes(1 << 26)), "damaged or not a numpy file"),
    "page.parquet": (large_page, "would unpack"),
    "rows.parquet": (lambda folder: rows_claimed(folder, 1 << 40), "the limit is 10,000,000"),
    "rows it has not.parquet": (lambda folder: rows_claimed(folder, 9_999_999), "damaged"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name, command, harmless, tmp_path):
    make, says = ARCHIVES[name]
    (tmp_path / name).write_bytes(make(tmp_path))
    words = ("train", "edm", "--data", name, "--samples", "4")
    check(command(*words, where=tmp_path), harmless, (3,), says)


@pytest.mark.parametrize("name", [name for name in ARCHIVES if name.endswith(".parquet")])
def test_tables_that_stay_where_they_are(name, command, harmless, tmp_path):
    make, says = ARCHIVES[name]
    (tmp_path / name).write_bytes(make(tmp_path))
    asked = {"name": "edm", "data": {"kind": "shards", "path": str(tmp_path / name)}}
    (tmp_path / "asked.yaml").write_text(json.dumps(asked))
    words = ("train", "asked.yaml", "--samples", "4")
    says = {"page.parquet": says, "rows.parquet": "more than it can hold"}.get(name, "damaged")
    check(command(*words, where=tmp_path), harmless, (3,), says)


@pytest.mark.parametrize("name", IMAGES)
def test_images_in_tar_files(name, command, harmless, tmp_path):
    """Others stand in their place, or they are read, if that is cheap."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for i, body in enumerate((png(1), IMAGES[name][0](), png(2))):
            about = tarfile.TarInfo(f"{i}.{name.rpartition('.')[2]}" if i == 1 else f"{i}.png")
            about.size = len(body)
            archive.addfile(about, io.BytesIO(body))
    words = ("inspect", "x.tar", "data.size=8", "data.channels=3")
    check(command(*words, where=tmp_path), harmless, (0,))


# --- recipes, and the records of a run ------------------------------------------------------------


def aliases():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join(lines)


RECIPES = {
    "aliases": (aliases, "aliases and anchors"),
    "deep": (lambda: "a: " + "[" * 400_000, "nested at most 20 deep"),
    "deep blocks": (lambda: "\n".join(" " * i + "a:" for i in range(1300)), "at most 20 deep"),
    "long": (lambda: "a: 1\n" * 2_500_000, "larger than 1 MB"),
    "many": (lambda: "a: [" + "1," * 400_000 + "]", "at most 20000 values"),
    "digits": (lambda: "seed: " + "9" * 900_000, ""),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name, command, harmless, tmp_path):
    make, says = RECIPES[name]
    (tmp_path / "bomb.yaml").write_text(make())
    words = ("train", "bomb.yaml", "--data", "digits", "--samples", "4")
    check(command(*words, where=tmp_path), harmless, (2,), says)


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """A run of a second."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train", "edm", "--data", "moons", "data.count=100", "model.network=mlp"]
    words += ["model.network.width=8", "model.network.depth=1", "generation.steps=1"]
    words += ["optim.batch=4", "optim.warmup=0", "--samples", "8", "--run", "job"]
    ended = command(*words, where=folder)
    assert ended.code == 0, ended
    return folder


DEEP = "[" * 2_000_000
HUGE = "[" + "[]," * 30_000_000 + "[]]"
RECORDS = {
    "deep data.json": ("data.json", lambda: DEEP, "is missing or damaged"),
    "huge data.json": ("data.json", lambda: HUGE, "is missing or damaged"),
    "broad data.json": ("data.json", lambda: HUGE[: (1 << 22) - 1] + "]", "damaged"),
    "deep scores.json": ("scores.json", lambda: DEEP, "is missing or damaged"),
    "huge scores.json": ("scores.json", lambda: HUGE, "is missing or damaged"),
    "deep manifest.json": ("ckpt/*/manifest.json", lambda: DEEP, "checkpoint"),
    "huge manifest.json": ("ckpt/*/manifest.json", lambda: HUGE, "checkpoint"),
    "deep state.json": ("ckpt/*/state.json", lambda: DEEP, "checkpoint"),
    "huge state.json": ("ckpt/*/state.json", lambda: HUGE, "checkpoint"),
    "deep recipe.yaml": ("recipe.yaml", lambda: "a: " + DEEP[:400_000], "at most 20 deep"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_a_run(name, command, harmless, trained, tmp_path):
    pattern, make, says = RECORDS[name]
    shutil.copytree(trained / "runs", tmp_path / "runs")
    job = tmp_path / "runs" / "job"
    found = list(job.glob(pattern)) if "*" in pattern else [job / pattern]
    assert found
    for path in found:
        path.write_text(make())
    words = ("evaluate", "job") if "scores" in name else ("sample", "job", "-n", "1")
    check(command(*words, where=tmp_path), harmless, (2, 4), says)


def test_the_measure_sees_what_is_taken(command, harmless, tmp_path):
    """An image of 49 million pixels is within the limits, and read: time and memory show it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.png").write_bytes(png())
    Image.new("RGB", (7000, 7000), "red").save(tmp_path / "data" / "1.png")
    ended = command("inspect", "data", where=tmp_path)
    assert ended.code == 0
    assert ended.grown - harmless.grown > 150
    assert ended.seconds - harmless.seconds > 0.1
