"""The values themselves as features, for data without classes.

Images are averaged to 8x8: such features see brightness, contrast and coarse shape, and no more,
and one Gaussian over the pixels scores almost nothing.
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


class Pixels(NamedTuple):
    """The values themselves; images in units of their standard deviation, averaged to 8x8.

    Images (C, H, W) give C · min(H, 8) · min(W, 8) features; each is the mean of its patch
    (`adaptive_avg_pool2d`: patches of unequal size where 8 does not divide the side). Other data
    are flattened and left as they are, in their own units.
    """

    info: DataInfo

    @property
    def name(self) -> str:
        if self.info.kind != "image":
            return f"values {math.prod(self.info.shape)}"
        return f"pixels {min(self.info.shape[1], 8)}x{min(self.info.shape[2], 8)}"

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
        if self.info.kind != "image":
            return torch.from_numpy(np.array(x, dtype=np.float64)).flatten(1)
        _, height, width = self.info.shape
        size = (min(height, 8), min(width, 8))
        parts = []
        for part in chunks(len(x)):
            image = torch.from_numpy(np.array(x[part], dtype=np.float64))
            pooled = F.adaptive_avg_pool2d((image - self.info.mean) / (self.info.std or 1), size)
            parts.append(pooled.flatten(1))
        return torch.cat(parts)

    def probabilities(self, features: Tensor) -> None:
        return None
