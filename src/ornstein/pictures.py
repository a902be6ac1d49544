"""Pictures of samples: grids of images, clouds of points, strips of film, and animations."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo

CLOUD = 256  # pixels on a side of a picture of points
REACH = 3.0  # standard deviations that it shows to each side of the mean


def as_bytes(x: np.ndarray, info: DataInfo) -> np.ndarray:
    """Images in native values [N, C, H, W] as uint8 [N, H, W, C], C being 1 or 3."""
    low, high = info.range or (float(x.min()), float(x.max()))
    unit = (x.astype(np.float64) - low) / max(high - low, 1e-12)
    pixels = np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]


def picture(x: np.ndarray, info: DataInfo, columns: int | None = None) -> Image.Image:
    """Samples in native values as one picture: images side by side, a cloud of points, or the
    frames of each sequence in a row."""
    if info.kind == "image":
        return grid(as_bytes(x, info), columns)
    if info.kind == "sequence":
        return grid(as_bytes(x.reshape(-1, *info.shape[1:]), info), info.shape[0])
    return cloud(x.reshape(len(x), -1), info)


def single(x: np.ndarray, info: DataInfo) -> Image.Image:
    """One image [C, H, W] in native values, pixel for pixel; of a sequence, a strip of film."""
    if info.kind == "sequence":
        return picture(x[None], info)
    pixels = as_bytes(x[None], info)[0]
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def motion(x: np.ndarray, info: DataInfo) -> list[Image.Image]:
    """Sequences [N, T, C, H, W] in native values, all running at once: T pictures of N frames."""
    pixels = as_bytes(x.reshape(-1, *info.shape[1:]), info).reshape(*x.shape[:2], *x.shape[3:], -1)
    return [grid(frames) for frames in pixels.swapaxes(0, 1)]


def grid(pixels: np.ndarray, columns: int | None = None) -> Image.Image:
    """Images uint8 [N, H, W, C] side by side, small ones enlarged so that they can be seen."""
    n, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    zoom = max(1, 48 // max(height, width))
    gap = 2
    cell_h, cell_w = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * cell_h + gap, columns * cell_w + gap, channels), 40, np.uint8)
    large = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    for i, image in enumerate(large):
        top, left = (i // columns) * cell_h + gap, (i % columns) * cell_w + gap
        canvas[top : top + height * zoom, left : left + width * zoom] = image
    return Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas)


def cloud(x: np.ndarray, info: DataInfo) -> Image.Image:
    """Vectors [N, D] as points of their first two coordinates (one: against their rank)."""
    centre, reach = info.mean, REACH * max(info.std, 1e-12)
    if x.shape[1] == 1:
        x = np.stack([x[:, 0], np.linspace(centre - reach, centre + reach, len(x))], axis=1)
    place = ((x[:, :2] - centre) / reach * 0.5 + 0.5) * (CLOUD - 1)
    inside = ((place >= 0) & (place <= CLOUD - 1)).all(axis=1)
    column, row = np.rint(place[inside]).astype(int).T
    counts = np.zeros((CLOUD, CLOUD))
    np.add.at(counts, (CLOUD - 1 - row, column), 1)
    shade = np.sqrt(counts / max(counts.max(), 1))
    return Image.fromarray((255 * (1 - shade)).astype(np.uint8))


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures next to each other."""
    gap = 24
    canvas = Image.new(
        "RGB", (left.width + gap + right.width, max(left.height, right.height)), "white"
    )
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + gap, 0))
    return canvas


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def animation(frames: Sequence[Image.Image], milliseconds: int = 80) -> bytes:
    """Pictures as an animated GIF that holds its last frame for two seconds."""
    buffer = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    first, *rest = [frame.convert("L" if frame.mode == "L" else "RGB") for frame in frames]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return buffer.getvalue()
