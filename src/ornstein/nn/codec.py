"""Encoders and decoders that mirror each other: dense ones, and residual convolutions.

    dense   x -> (linear, activation)* -> linear
    conv    h ← h + conv₂ silu norm conv₁ silu norm h;  halved by a convolution of stride 2,
            doubled by `UpsampleConv`

K. He et al. 2016, "Identity mappings in deep residual networks", arXiv:1603.05027. Pictures whose
sides cannot be halved become one row or column larger on the way in (by the padding) and are cut
on the way out.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.nn.layers import Recomputable, UpsampleConv, norm, zeroed

_ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}


def dense(widths: list[int], activation: str) -> nn.Sequential:
    """Linear layers between these widths, an activation between any two of them."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [_ACTIVATIONS[activation]()] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


@torch.no_grad()
def mirror(encoder: nn.Sequential, decoder: nn.Sequential, low: float) -> None:
    """Let the decoder start as the encoder turned round, and a sample that is `low` all over start
    as a code of zeros. Raises: ConfigError where their widths do not mirror."""
    there = [layer for layer in encoder if isinstance(layer, nn.Linear)]
    back = [layer for layer in decoder if isinstance(layer, nn.Linear)][::-1]
    for one, other in zip(there, back, strict=True):
        if one.weight.shape != other.weight.T.shape:
            raise ConfigError(
                "only nets that are each other's mirror can start so, with one feature for a unit "
                "and one output for a value; write model.nets.mirrored=false"
            )
        other.weight.copy_(one.weight.T)
        one.bias.zero_()
        other.bias.zero_()
    there[0].bias.copy_(-low * there[0].weight.sum(1))
    back[0].bias.fill_(low)


class DenseEncoder(nn.Module):
    """x [B, *shape] -> [B, features]."""

    worth_compiling = True

    def __init__(
        self, shape: tuple[int, ...], hidden: tuple[int, ...], features: int, activation: str
    ) -> None:
        super().__init__()
        self.net = dense([math.prod(shape), *hidden, features], activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.flatten(1))
        return out


class DenseDecoder(nn.Module):
    """z [B, units] -> [B, *shape]."""

    worth_compiling = True

    def __init__(
        self, units: int, hidden: tuple[int, ...], shape: tuple[int, ...], activation: str
    ) -> None:
        super().__init__()
        self.shape = shape
        self.net = dense([units, *hidden, math.prod(shape)], activation)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.net(z).view(-1, *self.shape)
        return out


def sizes(shape: tuple[int, ...], count: int, patch: int) -> list[tuple[int, int]]:
    """(H, W) at each of `count` sizes of images `shape` [C, H, W], the finest first."""
    found = [(-(-shape[1] // patch), -(-shape[2] // patch))]
    for _ in range(count - 1):
        height, width = found[-1]
        found.append((-(-height // 2), -(-width // 2)))
    return found


def reduced(shape: tuple[int, ...], count: int, patch: int) -> tuple[int, int]:
    """(h, w) of the coarsest size."""
    return sizes(shape, count, patch)[-1]


class ConvEncoder(nn.Module):
    """x [B, C, H, W] -> [B, features], or [B, features, h, w] where it is not flat."""

    worth_compiling = True

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, ...],
        blocks: int,
        features: int,
        flat: bool,
        patch: int = 1,
    ) -> None:
        super().__init__()
        height, width = sizes(shape, 1, patch)[0]
        # What a patch lacks at the right and at the bottom.
        self.pad = (0, width * patch - shape[2], 0, height * patch - shape[1])
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(shape[0] * patch**2, channels[0], 3, padding=1),
        ]
        for i, width in enumerate(channels):
            if i:
                layers.append(nn.Conv2d(channels[i - 1], width, 3, stride=2, padding=1))
            layers += [Residual(width) for _ in range(blocks)]
        layers += [norm(channels[-1]), nn.SiLU()]
        if flat:
            inside = channels[-1] * math.prod(reduced(shape, len(channels), patch))
            layers += [nn.Flatten(), nn.Linear(inside, features)]
        else:
            layers.append(nn.Conv2d(channels[-1], features, 1))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(F.pad(x, self.pad) if any(self.pad) else x)
        return out


class ConvDecoder(nn.Module):
    """z [B, units], or [B, units, h, w] where it is not flat -> [B, C, H, W]."""

    worth_compiling = True

    def __init__(
        self,
        units: int,
        channels: tuple[int, ...],
        blocks: int,
        shape: tuple[int, ...],
        flat: bool,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.size = shape[1:]
        found = sizes(shape, len(channels), patch)
        layers: list[nn.Module] = []
        if flat:
            inside = (channels[-1], *found[-1])
            layers += [nn.Linear(units, math.prod(inside)), nn.Unflatten(1, inside)]
        else:
            layers.append(nn.Conv2d(units, channels[-1], 1))
        for i in reversed(range(len(channels))):
            layers += [Residual(channels[i]) for _ in range(blocks)]
            if i:
                layers += [UpsampleConv(channels[i], channels[i - 1]), Cut(found[i - 1])]
        layers += [
            *(norm(channels[0]), nn.SiLU()),
            nn.Conv2d(channels[0], shape[0] * patch**2, 3, padding=1),
            *(nn.PixelShuffle(patch), Cut((shape[1], shape[2]))),
        ]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.net(z)
        return out


class Residual(Recomputable):
    """[B, channels, H, W] -> the same, the identity at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            *(norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, channels, 3, padding=1))),
        )

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.inside(h)
        return out


class Cut(nn.Module):
    """[B, C, H, W] -> its upper left part of this size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        height, width = self.size
        return h if h.shape[2:] == self.size else h[:, :, :height, :width]
