"""Mean and scale of latents, which a model of them has to know.

    z' = (z − m)/s,      m and s over samples and places: of all numbers, and of each channel

R. Rombach et al. 2022, arXiv:2112.10752, §3.3 and appendix G: a diffusion has noise of known sizes,
and latents have any. One s for all channels keeps what they weigh beside each other; it is what
the paper divides by. Sums are in float64 and merged in parts, without a difference of large
squares (T. Chan, G. Golub, R. LeVeque 1979).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ornstein.autoencoders.codec import Codec


class LatentMoments(NamedTuple):
    """Of the likeliest codes of so many samples: mean and standard deviation of all numbers, and of
    those of each channel (the first dimension of a code)."""

    samples: int
    mean: float
    std: float
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]


@torch.no_grad()
def moments(codec: Codec, batches: Iterable[Tensor]) -> LatentMoments:
    """The moments of the latents of x [B, *shape], at the codec's scale and on its device.

    Raises: ValueError where there is no sample.
    """
    count, numbers = 0, 0.0
    mean = squares = torch.zeros(0)
    for x in batches:
        z = codec.encode(x).z.double()
        flat = z.reshape(len(z), z.shape[1], -1).transpose(0, 1).flatten(1)  # [channels, *]
        if not flat.numel():
            continue
        middle, size = flat.mean(1), float(flat.shape[1])
        spread = (flat - middle.unsqueeze(1)).square().sum(1)
        if count:
            step = middle - mean
            squares = squares + spread + step.square() * (numbers * size / (numbers + size))
            mean = mean + step * (size / (numbers + size))
        else:
            mean, squares = middle, spread
        count, numbers = count + len(z), numbers + size
    if not count:
        raise ValueError("there are no samples whose latents have moments")
    variance = squares / numbers
    whole = mean.mean()
    # Within the channels, and between them.
    std = (variance.mean() + (mean - whole).square().mean()).sqrt()
    return LatentMoments(
        count, float(whole), float(std), tuple(mean.tolist()), tuple(variance.sqrt().tolist())
    )
