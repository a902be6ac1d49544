"""Pictures of what an autoencoder makes of samples, and of what its codes mean; see `latents`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from ornstein import pictures
from ornstein.charts import INK, LARGE, LEFT, PAPER, SCALE, write
from ornstein.latents import autoencoder
from ornstein.scatter import framed, scatter
from ornstein.strips import GAP, stacked, strips

if TYPE_CHECKING:
    from ornstein.latents import LatentMap, Reconstructions, Traversals
    from ornstein.run import Run
    from ornstein.scores import Estimate

WIDTH, TITLED = 1600, 1200  # of a picture in pixels, at most; and of a title
LARGEST = 160  # pixels that an image is enlarged to, at most


def picture_of_reconstructions(found: Reconstructions, run: Run) -> Image.Image:
    """The samples, what was given of them, and what came back."""
    rows = [("held-out samples", found.x)]
    numbers = found.numbers()
    if found.given is not None:
        rows.append((f"as given to the encoder{_said(numbers, ' as given')}", found.given))
    rows.append((f"reconstructions{_said(numbers, '')}", found.back))
    if run.info.kind == "image":
        lines = [(text, [pictures.single(x, run.info) for x in images]) for text, images in rows]
        drawn = strips(lines, width=_width(len(found.x), run))
    else:
        clouds = [
            stacked([heading(text, pictures.CLOUD * 2), _enlarged(pictures.picture(x, run.info))])
            for text, x in rows
        ]
        drawn = clouds[0]
        for cloud in clouds[1:]:
            drawn = pictures.beside(drawn, cloud)
    count = len(found.codes.ids)
    title = f"{run.path.name}: reconstructions, numbers of {count:,} held-out samples"
    return stacked([heading(title, max(drawn.width, TITLED)), drawn])


def picture_of_traversals(found: Traversals, run: Run) -> Image.Image:
    """A row for each unit: the sample, its reconstruction, and the way of that unit."""
    ends = [found.x, found.back]
    lines = [
        (name, [pictures.single(x, run.info) for x in [*ends, *images]])
        for name, images in found.rows
    ]
    marks = ["sample", "decoded", *found.marks]
    drawn = strips(lines, marks, width=_width(len(marks), run))
    scale = "of its prior" if _gaussian(run) else "of its own, about its mean"
    title = f"{run.path.name}: one unit moved, by standard deviations {scale}"
    return stacked([heading(title, max(drawn.width, TITLED)), drawn])


def picture_of_map(found: LatentMap, run: Run) -> Image.Image:
    """The samples in the plane of the code, and beside them what is decoded all over it."""
    first, second = found.axes
    points = scatter(found.points, found.label, run.info.classes, first, second, size=WIDTH // 2)
    what = "means of q(z|x)" if _gaussian(run) else "codes"
    title = f"{run.path.name}: {what} of {len(found.points):,} held-out samples"
    drawn = stacked([heading(title, points.width), points])
    if found.decoded is None or run.info.kind != "image":
        return drawn
    side = len(found.decoded)
    pixels = pictures.as_bytes(found.decoded.reshape(-1, *run.info.shape), run.info)
    height, width, channels = pixels.shape[1:]
    tiled = pixels.reshape(side, side, height, width, channels).swapaxes(1, 2)
    tiled = tiled.reshape(side * height, side * width, channels)
    plane = Image.fromarray(tiled.squeeze(-1) if channels == 1 else tiled)
    law = "the prior" if _gaussian(run) else "a Gaussian of the codes' moments"
    text = f"decoded at even quantiles of {law}"
    plane = framed(_enlarged(plane), first, second)
    return pictures.beside(stacked([heading(text, plane.width), plane]), drawn)


def heading(text: str, width: int) -> Image.Image:
    """A line of text to set above a picture."""
    line = Image.new("RGB", (width, 32 * SCALE), PAPER)
    write(line, (LEFT * SCALE, 16 * SCALE), text, LARGE, INK, "lm")
    return line


def _width(columns: int, run: Run) -> int:
    """Of strips, in pixels: as wide as images are that are enlarged by a whole number, if any."""
    across, left = run.info.shape[-1], LEFT * SCALE
    zoom = ((WIDTH - left) // columns - GAP) // across
    return left + columns * (max(1, min(zoom, LARGEST // across)) * across + GAP) if zoom else WIDTH


def _gaussian(run: Run) -> bool:
    return autoencoder(run).bottleneck.kind == "gaussian"


def _enlarged(image: Image.Image, width: int = WIDTH // 2) -> Image.Image:
    """By a whole number, to at most this width, so that pixels stay square; or made smaller."""
    zoom = width // image.width or width / image.width
    size = (round(zoom * image.width), round(zoom * image.height))
    way = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
    return image.convert("RGB").resize(size, way)


def _said(numbers: dict[str, Estimate], suffix: str) -> str:
    """PSNR and SSIM behind a label."""
    words = [f"{numbers[f'PSNR{suffix}, dB'].value:.1f} dB"]
    if f"SSIM{suffix}" in numbers:
        words.append(f"SSIM {numbers[f'SSIM{suffix}'].value:.3f}")
    return f": {', '.join(words)}"
