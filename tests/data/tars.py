"""Tar files as WebDataset has them, and other files with images, for tests."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
from PIL import Image

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def pixels(seed, size=(8, 8), channels=3):
    """Random pixels [H, W, C]."""
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(x, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, kind)
    return stream.getvalue()


def write(path, members, kind="pax"):
    """Write a tar file: members are pairs of a name and bytes, or a TarInfo instead of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, body in members:
            about = body if isinstance(body, tarfile.TarInfo) else tarfile.TarInfo(name)
            about.name = name
            if isinstance(body, bytes):
                about.size = len(body)
            archive.addfile(about, io.BytesIO(body) if isinstance(body, bytes) else None)
    return path


def labelled(count, start=0, classes=3, **words):
    """Members of `count` samples with a .cls each."""
    for i in range(start, start + count):
        yield f"{i:05d}.png", encoded(pixels(i, **words))
        yield f"{i:05d}.cls", str(i % classes).encode()


def folder(path, files=3, count=5, kind="pax", name="{:03d}.tar", **words):
    """A folder of tar files with `count` labelled samples each."""
    for k in range(files):
        write(path / name.format(k), labelled(count, k * count, **words), kind)
    return path


def with_json(key, label):
    return f"{key}.json", json.dumps({"label": label, "caption": "ignored"}).encode()
