"""Laws of a hidden state in layers, each a Gaussian given the layers above it.

    p(z|c) = p(z^L|c) Π_{l<L} p(z^l | z^{l+1} ... z^L, c),    p(z^l|·) = N(μ_l, s_l²)

With L = 2 as in K. Gregor et al. 2019, arXiv:1806.03107, appendix D: z² is drawn first, then z¹
given z², and both make up the state. A state is [*, L · units], the top layer first, and c is
[*, given] with the same leading dimensions, of which the first is the batch.

The divergence of two such laws is in closed form where the layers above are given:

    KL(q ‖ p) = E_{z~q} Σ_l KL(q(z^l|z^{>l}) ‖ p(z^l|z^{>l}))

so that a draw of q estimates it with no noise of the bottom layer's, and none at all if L = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ornstein.nn.sequence import GatedMap
from ornstein.noise import Noise

FLAT = 15.0  # log standard deviations stay within ±FLAT: beyond, float32 has nothing to say


class Normal(NamedTuple):
    """N(mean, e^{2 log_std}) for each number, [*, units]."""

    mean: Tensor
    log_std: Tensor

    def draw(self, noise: Noise | None) -> Tensor:
        """μ + s ε; without noise, μ."""
        if noise is None:
            return self.mean
        eps = noise.normal(0, self.mean.shape[1:], self.mean.dtype)
        return self.mean + self.log_std.exp() * eps

    def nats(self, z: Tensor) -> Tensor:
        """−log N(z), summed over the units, [*]."""
        scaled = (z - self.mean) * torch.exp(-self.log_std)
        return (0.5 * scaled.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: Normal) -> Tensor:
        """KL(self ‖ other), summed over the units, [*]."""
        ratio = self.log_std - other.log_std
        apart = (self.mean - other.mean) * torch.exp(-other.log_std)
        return (0.5 * (torch.exp(2 * ratio) + apart.square() - 1) - ratio).sum(-1)


class Layered(NamedTuple):
    """The law of a state, the top layer first. layers: of each, its law given those above it,
    [*, 0] for the top one. units: numbers of each layer."""

    layers: tuple[Callable[[Tensor], Normal], ...]
    units: int
    none: Tensor

    def draw(self, noise: Noise | None) -> Tensor:
        """A state [*, layers · units]; without noise the means, layer by layer."""
        z = self.none
        for i, layer in enumerate(self.layers):
            keyed = None if noise is None else noise.child(f"layer {i}")
            z = torch.cat((z, layer(z).draw(keyed)), dim=-1)
        return z

    def nats(self, z: Tensor) -> Tensor:
        """−log p(z|c), [*]."""
        laws = self._given(z)
        return sum((law.nats(own) for law, own in laws), torch.zeros_like(z[..., 0]))

    def kl(self, other: Layered, z: Tensor) -> Tensor:
        """KL(self ‖ other) [*], of each layer given those above it as they are in z, a draw."""
        both = zip(self._given(z), other._given(z), strict=True)
        return sum((own.kl(law) for (own, _), (law, _) in both), torch.zeros_like(z[..., 0]))

    def _given(self, z: Tensor) -> list[tuple[Normal, Tensor]]:
        """Each layer's law given those above it in z, and that layer of z."""
        places = [i * self.units for i in range(len(self.layers))]
        return [
            (layer(z[..., :start]), z[..., start : start + self.units])
            for layer, start in zip(self.layers, places, strict=True)
        ]


class States(nn.Module):
    """c [*, given] -> the law of a state, by a gated map for each layer."""

    def __init__(self, given: int, layers: int, units: int, hidden: int) -> None:
        super().__init__()
        self.units = units
        self.maps = nn.ModuleList(
            GatedMap(given + i * units, hidden, 2 * units) for i in range(layers)
        )

    def forward(self, c: Tensor) -> Layered:
        def layer(number: int) -> Callable[[Tensor], Normal]:
            return lambda above: self._normal(number, torch.cat((c, above), dim=-1))

        return Layered(tuple(map(layer, range(len(self.maps)))), self.units, c[..., :0].float())

    def _normal(self, number: int, given: Tensor) -> Normal:
        out = self.maps[number](given)
        mean, log_std = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2, dim=-1)
        return Normal(mean, log_std.clamp(-FLAT, FLAT))
