"""A discriminator of patches: for each square of some pixels, does it come from the data?

    x -> conv, LeakyReLU -> (conv, norm, LeakyReLU)* -> conv -> one number for each patch

P. Isola et al. 2017, "Image-to-image translation with conditional adversarial networks",
arXiv:1611.07004, §3.2 and appendix 6.1.2: 4 × 4 convolutions, all but the last two of stride 2.
With 64, 128, 256, 512 channels a patch has 70 pixels a side, which is the paper's. Norms are of
groups within a sample and not of batches, so that a sample's loss does not depend on the others.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.nn.layers import norm

KERNEL, SLOPE, SPREAD = 4, 0.2, 0.02


class PatchDiscriminator(nn.Module):
    """Images [B, C, H, W] -> [B, 1, h, w], above 0 where a patch looks like the data.

    channels: of each convolution but the last; all but the last of them halve the picture.
    Raises: ConfigError for images of which nothing would be left.
    """

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        strides = [*[2] * (len(channels) - 1), 1, 1]
        widths = [shape[0], *channels, 1]
        size = list(shape[1:])
        layers: list[nn.Module] = []
        for i, ((before, after), stride) in enumerate(zip(pairwise(widths), strides, strict=True)):
            if i:
                layers += [norm(before)] if i > 1 else []
                layers.append(nn.LeakyReLU(SLOPE))
            layers.append(nn.Conv2d(before, after, KERNEL, stride, padding=1))
            size = [(side + 2 - KERNEL) // stride + 1 for side in size]
        if min(size) < 1:
            raise ConfigError(
                f"of images of {shape[1]} x {shape[2]} pixels nothing is left after "
                f"{len(channels) + 1} convolutions of a discriminator; write fewer "
                "objective.adversarial.channels"
            )
        self.net = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):  # as published
                nn.init.normal_(layer.weight, 0.0, SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def reach(count: int) -> int:
    """The side in pixels of the patches that a discriminator of `count` channels judges."""
    side = 1
    for stride in (1, 1, *[2] * (count - 1)):
        side = (side - 1) * stride + KERNEL
    return side
