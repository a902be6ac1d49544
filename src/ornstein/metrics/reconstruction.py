"""How near an image is to what it should be: PSNR and SSIM, of each image in float64.

    PSNR = 10 log10( span² / mean (x − y)² )                                        in dB

    SSIM = mean over windows of   2 μx μy + C1      2 σxy + C2
                                 ------------- · ---------------,   C1 = (0.01 span)²,
                                 μx² + μy² + C1   σx² + σy² + C2    C2 = (0.03 span)²

Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment: from error visibility to
structural similarity", 2004, doi:10.1109/TIP.2003.819861, §III-B. μ, σ² and σxy are weighted by a
Gaussian of 1.5 pixels in windows of 11 × 11, those that lie within the image only, as theirs; of
several channels it is the mean. Where an image is smaller than the window, the window is the
largest odd square that fits, 7 × 7 of 8 × 8 pixels: such values compare among themselves alone.

`span` is the largest less the smallest value that there may be (`span_of` data), and `low` the
smallest (`low_of`), from which SSIM counts what it calls light; so both are the same in any units.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError

WINDOW, WIDTH = 11, 1.5  # the side of a window and the deviation of its weights, in pixels
K1, K2 = 0.01, 0.03
MOST = 120.0
"""dB that an exact image counts for in a mean: an error of a millionth of the span."""


def span_of(info: DataInfo) -> float:
    """The largest less the smallest possible value; of data without a range, the width within
    which nearly all values of a Gaussian of its deviation lie, 6 of them."""
    return 6 * info.std if info.range is None else info.range[1] - info.range[0]


def low_of(info: DataInfo) -> float:
    """The smallest possible value; of data without a range, 3 deviations below their mean."""
    return info.mean - 3 * info.std if info.range is None else info.range[0]


def psnr(x: Tensor | np.ndarray, y: Tensor | np.ndarray, span: float) -> Tensor:
    """PSNR in dB of samples [N, *] against y [N, *], float64 [N]; infinite where they are equal.

    Raises: ConfigError for other shapes, or a span that is not above 0.
    """
    a, b = _pair(x, y, span)
    errors = (a - b).square().flatten(1).mean(1)
    decibels: Tensor = -10 * torch.log10(errors / span**2)
    return decibels


def ssim(x: Tensor | np.ndarray, y: Tensor | np.ndarray, span: float, low: float = 0.0) -> Tensor:
    """SSIM of images [N, C, H, W] against y [N, C, H, W], float64 [N], 1 where they are equal.

    Raises: ConfigError for other shapes, or a span that is not above 0.
    """
    a, b = _pair(x, y, span)
    if a.dim() != 4:
        raise ConfigError(f"SSIM is of images [N, C, H, W], not of {list(a.shape)}")
    count, _, height, width = a.shape
    fits = min(WINDOW, height, width)
    weights = window(fits - (fits + 1) % 2, a.device)
    a, b = a - low, b - low
    flat = torch.stack((a, b, a * a, b * b, a * b)).view(-1, 1, height, width)
    smooth = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    ma, mb, aa, bb, ab = smooth.view(5, count, -1)
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    light = (2 * ma * mb + c1) / (ma * ma + mb * mb + c1)
    # σ² = E[a²] − μ², and so on; a sum of two is 0 or more but for rounding, which c2 outweighs.
    shape = (2 * (ab - ma * mb) + c2) / (aa - ma * ma + bb - mb * mb + c2)
    found: Tensor = (light * shape).mean(1)
    return found


def window(size: int, device: torch.device | None = None) -> Tensor:
    """The weights of one side of a window of `size` pixels, an odd number; they sum to 1."""
    place = torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2
    weights = (-place.square() / (2 * WIDTH**2)).exp()
    return weights / weights.sum()


def _pair(x: Tensor | np.ndarray, y: Tensor | np.ndarray, span: float) -> tuple[Tensor, Tensor]:
    a, b = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    if a.shape != b.shape or a.dim() < 2 or a.numel() == 0:
        raise ConfigError(
            f"compared are as many samples of one shape, not {list(a.shape)} and {list(b.shape)}"
        )
    if not (span > 0 and math.isfinite(span)):
        raise ConfigError(f"the span of the values is a number above 0, got {span:g}")
    return a, b
