"""Data that is never decoded as a whole: how it starts, what it takes of memory, how fast it is.

    python benchmarks/sharded_data.py [--samples 10000000] [--shards 1000] [--folder DIR]
    python benchmarks/sharded_data.py --real PARQUET [--folder DIR]

The first simulates that many samples, a small PNG each, in tar files of 1 KiB a sample (10 GB for
ten million), and prints how long the index takes, how long the next start takes, and how memory
grows with the number of samples, by comparison with a hundredth of the same files. What the system
counts as memory is told apart: what a process has for itself, and pages of files that the system
takes back when it needs room. The second reads real images, from a Parquet file with a column
`image` of bytes, in every way that there is: kept in the cache as pixels, where they are in
Parquet (packed and not), and in tar files. Each figure is of a process of its own. Everything is
removed afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH = 64
SECONDS = 8.0  # how long random access is measured


# --- what is measured, in a process of its own ------------------------------------------------


def memory() -> dict[str, float]:
    """MB of this process: its own, and of files."""
    text = Path("/proc/self/status").read_text()
    return {
        name: int(text.split(f"{name}:")[1].split()[0]) / 1024 for name in ("RssAnon", "RssFile")
    }


def peak() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def child(kind: str, path: str, access: bool) -> dict[str, Any]:
    """Load data, then read random batches of it as training does. kind: of the source, or "alone"
    for shards of which no unpacked page is kept from one batch to the next."""
    from ornstein.data import shards
    from ornstein.data.sources import Parquet, Shards
    from ornstein.data.stream import Stream

    if kind == "alone":
        shards._KEPT = 0
    source = (Parquet if kind == "parquet" else Shards)(path=path)
    before, low = memory(), peak()
    begun = time.perf_counter()
    data = source.load()
    found: dict[str, Any] = {"start": time.perf_counter() - begun, "peak": peak() - low}
    found |= {f"start {k}": v - before[k] for k, v in memory().items()}
    found |= {"count": data.info.count, "shape": data.info.shape}
    if access:
        stream = Stream(data, 0, (-1.0, 1.0))
        stream.at(0, BATCH)
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            done += len(stream.at(BATCH + done, BATCH).x)
        found["rate"] = done / (time.perf_counter() - begun)
        found |= {f"access {k}": v - before[k] for k, v in memory().items()}
    return found


def measure(kind: str, path: Path, cache: Path, access: bool = True) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", kind, str(path), "1" if access else ""]
    environment = {**os.environ, "ORNSTEIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- simulated samples ------------------------------------------------------------------------


def simulate(folder: Path, samples: int, shards: int) -> None:
    """Write tar files whose members are valid PNGs of 8 × 8 pixels, a block each."""
    bodies = np.zeros((256, 512), np.uint8)
    sizes = np.zeros(256, int)
    for i in range(256):
        stream = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        body = np.frombuffer(stream.getvalue(), np.uint8)
        bodies[i, : len(body)], sizes[i] = body, len(body)
    about = tarfile.TarInfo("0000000000.png")
    about.size = int(sizes[0])
    assert (sizes == sizes[0]).all(), "PNGs of noise are all as large"
    template = np.frombuffer(about.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    each = samples // shards
    begun = time.perf_counter()
    for shard in range(shards):
        numbers = np.arange(shard * each, (shard + 1) * each)
        rows = np.zeros((each, 1024), np.uint8)
        rows[:, :512] = template
        for place in range(10):
            rows[:, 9 - place] = 48 + numbers // 10**place % 10
        rows[:, 148:156] = 32
        sums = rows[:, :512].sum(1, dtype=np.int64)
        for place in range(6):
            rows[:, 153 - place] = 48 + (sums >> 3 * place) % 8
        rows[:, 154] = 0
        rows[:, 512:] = bodies[numbers % 256]
        (folder / f"{shard:05d}.tar").write_bytes(rows.tobytes() + bytes(1024))
        if shard % 100 == 99:
            say(f"wrote {shard + 1} files in {time.perf_counter() - begun:.0f} s")


def simulated(place: Path, samples: int, shards: int) -> None:
    needed, free = samples * 1024, shutil.disk_usage(place).free
    if needed * 1.2 > free:
        raise SystemExit(
            f"{needed / 2**30:.0f} GiB are needed in {place}: give --samples or --folder"
        )
    few = max(1, shards // 100)
    whole, part = place / "whole", place / "part"
    whole.mkdir()
    part.mkdir()
    simulate(whole, samples, shards)
    for path in sorted(whole.iterdir())[:few]:
        (part / path.name).symlink_to(path)
    rows = {}
    for path in (part, whole):
        first = measure("shards", path, place / "cache", access=False)
        say(f"{first['count']:,} samples: the first start took {first['start']:.1f} s")
        rows[path.name] = first, measure("shards", path, place / "cache")
    kept = sum(path.stat().st_size for path in (place / "cache").rglob("*") if path.is_file())
    print("\n| samples | files | first start | its peak | next start | batches of 64 |")
    print("|---|---|---|---|---|---|")
    for name, files in (("part", few), ("whole", shards)):
        first, again = rows[name]
        print(
            f"| {first['count']:,} | {files:,} | {first['start']:.1f} s | +{first['peak']:.0f} MB "
            f"| {again['start'] * 1000:.0f} ms | {again['rate']:,.0f} samples/s |"
        )
    (low_first, low), (high_first, high) = rows["part"], rows["whole"]
    more = high["count"] - low["count"]

    def each(key: str, one: dict[str, Any] = low, other: dict[str, Any] = high) -> str:
        return f"{(other[key] - one[key]) * 2**20 / more:.1f}"

    print(f"\nbytes of memory for each further sample, of {more:,}:\n")
    print("| | of the process itself | of files, which the system may take back |")
    print("|---|---|---|")
    for when, what in (("start", "after the next start"), ("access", "after random access")):
        print(f"| {what} | {each(f'{when} RssAnon')} | {each(f'{when} RssFile')} |")
    print(f"| at the peak of the first start, both | {each('peak', low_first, high_first)} | |")
    print(f"\nthe index takes {kept / (high['count'] + low['count']):.1f} bytes a sample on disk")


# --- real images ------------------------------------------------------------------------------


def real(place: Path, table: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(table)
    images = [row["bytes"] for row in rows.column("image").to_pylist()]
    for name, codec in (("plain", "none"), ("packed", "snappy")):
        (place / name).mkdir()
        made = pa.table({"image": rows.column("image")})
        pq.write_table(made, place / name / "x.parquet", compression=codec, use_dictionary=False)
    (place / "tar").mkdir()
    each = -(-len(images) // 10)
    for k in range(0, len(images), each):
        with tarfile.open(place / "tar" / f"{k:07d}.tar", "w", format=tarfile.USTAR_FORMAT) as file:
            for i, body in enumerate(images[k : k + each], k):
                about = tarfile.TarInfo(f"{i:07d}.jpg")
                about.size = len(body)
                file.addfile(about, io.BytesIO(body))
    print("| images | read as | first start | next start | random batches of 64 |")
    print("|---|---|---|---|---|")
    ways = (
        ("parquet", "plain", "Parquet, pixels in the cache"),
        ("shards", "plain", "Parquet without packing, where it is"),
        ("shards", "packed", "Parquet with snappy, where it is, all pages kept"),
        ("alone", "packed", "Parquet with snappy, where it is, no page kept"),
        ("shards", "tar", "tar, where it is"),
    )
    for kind, name, what in ways:
        first = measure(kind, place / name, place / f"cache-{kind}-{name}", access=False)
        again = measure(kind, place / name, place / f"cache-{kind}-{name}")
        print(
            f"| {first['count']:,} of {'×'.join(map(str, first['shape']))} | {what} "
            f"| {first['start']:.1f} s | {again['start'] * 1000:.0f} ms "
            f"| {again['rate']:,.0f} samples/s |",
            flush=True,
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where files are written for the time being")
    parser.add_argument("--real", type=Path, metavar="PARQUET")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        kind, path, access = asked.child
        print(json.dumps(child(kind, path, bool(access))))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        if asked.real:
            real(Path(place), asked.real)
        else:
            simulated(Path(place), asked.samples, asked.shards)


if __name__ == "__main__":
    main()
