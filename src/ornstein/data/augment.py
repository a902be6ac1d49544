"""What may happen to an image on its way to training, and only there.

    flip    x(i, j) → x(i, W − 1 − j)            with probability 1/2
    crop    x(i, j) → x(r(i + a), r(j + b))      a, b uniform on −crop ... crop

where r reflects about the first and the last row (column): r(−k) = k, r(H − 1 + k) = H − 1 − k.
The window is cut first and mirrored then. Both only move pixels about, so that an image keeps
its kinds of values, and scaling before or after makes no difference.

What happens to an image depends on the seed and on its position in the stream of training
samples: each epoch shows it differently, and a run that was stopped, or that is spread over other
micro-batches or ranks, sees the same. Held-out data, likelihoods, scores and previews never pass
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ornstein.choice import Choice
from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


class Augment(Choice):
    """How training images are varied; by default not at all.

    flip: half of them are mirrored, left for right. crop: they are shifted by up to so many
    pixels along each axis, and what that leaves bare is filled by reflection.
    """

    flip: bool = False
    crop: int = Field(0, ge=0)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be varied."""
        return self.flip or self.crop > 0

    def check(self, info: DataInfo) -> None:
        """Raises: ConfigError where the data are no images, or too small to be shifted so far."""
        if not self.wanted:
            return
        if info.kind != "image":
            raise ConfigError(
                f"augment is for images, and {info.name} holds {info.kind} data of shape "
                f"{list(info.shape)}; write augment.flip=false augment.crop=0"
            )
        side = min(info.shape[1:])
        if self.crop >= side:
            raise ConfigError(
                f"augment.crop={self.crop} must be below {side}, the shorter side of the images "
                f"of {info.name} in pixels; usual is an eighth of it, {max(1, side // 8)}"
            )

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Images [B, C, H, W] varied; image b draws as position `noise.ids[b]` of the stream."""
        b, c, h, w = x.shape
        rows, columns = torch.arange(h).expand(b, h), torch.arange(w).expand(b, w)
        if self.crop:
            shift = noise.integers(0, 2 * self.crop + 1, (2, 1)) - self.crop
            rows = _reflected(rows + shift[:, 0], h)
            columns = _reflected(columns + shift[:, 1], w)
        if self.flip:
            mirrored = noise.integers(1, 2, (1,)) == 1
            columns = torch.where(mirrored, columns.flip(1), columns)
        place = (w * rows.unsqueeze(2) + columns.unsqueeze(1)).view(b, 1, h * w)
        return x.reshape(b, c, h * w).gather(2, place.expand(b, c, h * w)).view(b, c, h, w)


def _reflected(index: Tensor, size: int) -> Tensor:
    """The row (column) that shows at `index`, which is less than `size` beyond either end."""
    last = size - 1
    return last - (last - index.abs()).abs()
