"""The values themselves as features, for data without classes.

Images are averaged to 8x8: such features see brightness, contrast and coarse shape, and no more,
and one Gaussian over the pixels scores almost nothing. Of sequences up to 8 frames are looked at,
averaged to 4x4: how these go together says, coarsely, how things move.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data.info import DataInfo
from ornstein.features.base import check_shape, chunks

FRAMES = 8
"""Of longer sequences as many frames are looked at, evenly spaced, the first and the last too."""


class Pixels(NamedTuple):
    """The values themselves; images in units of their standard deviation, averaged to 8x8.

    Images (C, H, W) give C · min(H, 8) · min(W, 8) features; each is the mean of its patch
    (`adaptive_avg_pool2d`: patches of unequal size where 8 does not divide the side). Sequences
    (T, C, H, W) give min(T, 8) · C · min(H, 4) · min(W, 4). Vectors are left as they are, in their
    own units.
    """

    info: DataInfo

    @property
    def name(self) -> str:
        if self.info.kind == "vector":
            return f"values {math.prod(self.info.shape)}"
        h, w = self._size
        if self.info.kind == "image":
            return f"pixels {h}x{w}"
        return f"pixels {h}x{w} of {min(self.info.shape[0], FRAMES)} frames"

    @property
    def weights(self) -> None:
        return None

    @property
    def accuracy(self) -> None:
        return None

    @property
    def published(self) -> bool:
        return False

    def features(self, x: np.ndarray) -> Tensor:
        check_shape(x, self.info)
        if self.info.kind == "vector":
            return torch.from_numpy(np.array(x, dtype=np.float64)).flatten(1)
        parts = []
        for part in chunks(len(x)):
            seen = x[part]
            if self.info.kind == "sequence":
                last = self.info.shape[0] - 1
                count = min(last + 1, FRAMES)
                seen = seen[:, [round(i * last / (count - 1)) for i in range(count)]]
            image = torch.from_numpy(np.array(seen, dtype=np.float64))
            scaled = (image - self.info.mean) / (self.info.std or 1)
            pooled = F.adaptive_avg_pool2d(scaled.flatten(0, -4), self._size)
            parts.append(pooled.reshape(len(seen), -1))
        return torch.cat(parts)

    @property
    def _size(self) -> tuple[int, int]:
        """The cells that an image, or a frame, is averaged to."""
        most = 8 if self.info.kind == "image" else 4
        height, width = self.info.shape[-2:]
        return min(height, most), min(width, most)

    def probabilities(self, features: Tensor) -> None:
        return None
