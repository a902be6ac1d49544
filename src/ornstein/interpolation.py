"""From one sample to another by way of their latents, as the probability flow sees them.

    z_a, z_b = encode(a), encode(b);    decode(slerp(z_a, z_b, share)),  share from 0 to 1

The ends of a row are reconstructions. Beside them stand the samples themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from ornstein import pictures
from ornstein.diffusion.flow import slerp
from ornstein.errors import ConfigError
from ornstein.noise import permutation
from ornstein.strips import strips

if TYPE_CHECKING:
    from ornstein.recipe import Generation
    from ornstein.run import Run

WIDTH = 1600  # of the picture, in pixels


class Rows(NamedTuple):
    """Interpolations in native values: from `first` [n, *shape] to `last` [n, *shape], by way of
    `between` [n, columns, *shape], whose ends are their reconstructions."""

    first: np.ndarray
    last: np.ndarray
    between: np.ndarray

    @property
    def error(self) -> float:
        """The root mean square error of the reconstructions, in native units."""
        found = self.between[:, [0, -1]].astype(np.float64)
        real = np.stack([self.first, self.last], axis=1).astype(np.float64)
        return float(np.sqrt(np.square(found - real).mean()))


def interpolated(
    run: Run,
    first: np.ndarray,
    last: np.ndarray,
    columns: int = 9,
    *,
    generation: Generation | None = None,
    average: str = "",
) -> Rows:
    """Rows from `first` to `last`, samples [n, *shape] in native values, at `columns` equal shares
    of the way, both ends included.

    Raises: ConfigError where the run has no latents, or for fewer than two columns.
    """
    if columns < 2:
        raise ConfigError(f"an interpolation has at least 2 columns, its ends; got {columns}")
    z = run.encode(np.concatenate([first, last]), generation=generation, average=average)
    a, b = torch.from_numpy(z).chunk(2)
    way = [slerp(a, b, i / (columns - 1)) for i in range(columns)]
    latents = torch.stack(way, dim=1).flatten(0, 1).numpy()
    x = run.decode(latents, generation=generation, average=average)
    return Rows(first, last, x.reshape(len(first), columns, *x.shape[1:]))


def ends(
    run: Run,
    rows: int,
    seed: int = 0,
    *,
    drawn: bool = False,
    generation: Generation | None = None,
    average: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """`rows` first and `rows` last samples, chosen by the seed: of those held out of the data, or
    drawn from the run. Raises: ConfigError where too few are held out."""
    if drawn:
        x = run.generate(2 * rows, seed, generation=generation, average=average)
    else:
        unseen = run.dataset.held_out
        if len(unseen) < 2 * rows:
            raise ConfigError(
                f"{rows} rows have {2 * rows} ends, and {len(unseen)} samples are held out of the "
                "data; write --number with fewer, or --between drawn"
            )
        chosen = permutation(seed, "interpolate", 0, len(unseen))[: 2 * rows].numpy()
        x = run.dataset.x[unseen[chosen]]
    return x[:rows], x[rows:]


def picture(rows: Rows, run: Run) -> Image.Image:
    """A row of small images for each pair: the sample, its reconstruction, the way to the
    reconstruction of the other, and that one."""
    columns = rows.between.shape[1]
    shares = [f"{i / (columns - 1):.2g}" for i in range(columns)]
    lines: list[tuple[str, Sequence[Image.Image]]] = []
    for first, last, between in zip(rows.first, rows.last, rows.between, strict=True):
        images = [first, *between, last]
        lines.append(("", [pictures.single(image, run.info) for image in images]))
    return strips(lines, ["sample", *shares, "sample"], width=WIDTH)
