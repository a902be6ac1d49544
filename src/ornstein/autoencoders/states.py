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

    def at(self, eps: Tensor | None) -> Tensor:
        """μ + s ε; without ε, μ."""
        return self.mean if eps is None else self.mean + self.log_std.exp() * eps

    def nats(self, z: Tensor) -> Tensor:
        """−log N(z), summed over the units, [*]."""
        scaled = (z - self.mean) * torch.exp(-self.log_std)
        return (0.5 * scaled.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: Normal) -> Tensor:
        """KL(self ‖ other), summed over the units, [*]."""
        ratio = self.log_std - other.log_std
        apart = (self.mean - other.mean) * torch.exp(-other.log_std)
        return (0.5 * (torch.exp(2 * ratio) + apart.square() - 1) - ratio).sum(-1)


class Layered:
    """The law of a state, the top layer first. layers: of each, its law given those above it, which
    are [*, 0] for the top one. units: numbers of each layer. none: [*, 0].

    It remembers its last draw, whose density and divergences ask the layers no second time.
    """

    def __init__(
        self, layers: tuple[Callable[[Tensor], Normal], ...], units: int, none: Tensor
    ) -> None:
        self.layers, self.units, self.none = layers, units, none
        self._drawn: tuple[Tensor, list[Normal]] | None = None

    def draw(self, noise: Noise | None) -> Tensor:
        """A state [*, layers · units]; without noise the means, layer by layer."""
        if noise is None:
            return self.at(None)
        size = len(self.layers) * self.units
        return self.at(noise.normal(0, (*self.none.shape[1:-1], size), self.none.dtype))

    def at(self, eps: Tensor | None) -> Tensor:
        """The state that standard normal numbers eps, as many as it has, are turned into; without
        them the means, layer by layer."""
        z, laws = self.none, []
        parts = [None] * len(self.layers) if eps is None else self._split(eps)
        for layer, part in zip(self.layers, parts, strict=True):
            laws.append(layer(z))
            z = torch.cat((z, laws[-1].at(part)), dim=-1)
        self._drawn = z, laws
        return z

    def nats(self, z: Tensor) -> Tensor:
        """−log p(z|c), [*]."""
        parts = zip(self._given(z), self._split(z), strict=True)
        return sum((law.nats(own) for law, own in parts), torch.zeros_like(z[..., 0]))

    def kl(self, other: Layered, z: Tensor) -> Tensor:
        """KL(self ‖ other) [*], of each layer given those above it as they are in z, a draw."""
        both = zip(self._given(z), other._given(z), strict=True)
        return sum((own.kl(law) for own, law in both), torch.zeros_like(z[..., 0]))

    def _given(self, z: Tensor) -> list[Normal]:
        """Each layer's law given those above it in z."""
        if self._drawn is not None and self._drawn[0] is z:
            return self._drawn[1]
        return [layer(z[..., : i * self.units]) for i, layer in enumerate(self.layers)]

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        """The layers of a state, the top one first."""
        return torch.split(z, self.units, dim=-1)


class States(nn.Module):
    """c [*, given] -> the law of a state, by a gated map for each layer.

    A law may be said around another one, as its change: with N(m, s²) a layer of that one and
    (δ, γ) the map's outputs, it is N(m + s δ, (s e^γ)²). Of a posterior around its prior the
    divergence is then ½ (δ² + e^{2γ} − 1) − γ, whatever the prior is. Around a state z it is
    N(z + δ, e^{2γ}).
    """

    def __init__(self, given: int, layers: int, units: int, hidden: int) -> None:
        super().__init__()
        self.units = units
        self.maps = nn.ModuleList(
            GatedMap(given + i * units, hidden, 2 * units) for i in range(layers)
        )

    def forward(self, c: Tensor, around: Layered | Tensor | None = None) -> Layered:
        def base(number: int, above: Tensor) -> Normal | None:
            if isinstance(around, Layered):
                return around.layers[number](above)
            if around is None:
                return None
            own = torch.split(around, self.units, dim=-1)[number]
            return Normal(own, torch.zeros_like(own))

        def layer(number: int) -> Callable[[Tensor], Normal]:
            def law(above: Tensor) -> Normal:
                found = self._normal(number, torch.cat((c, above), dim=-1))
                known = base(number, above)
                return found if known is None else _changed(known, found)

            return law

        return Layered(tuple(map(layer, range(len(self.maps)))), self.units, c[..., :0].float())

    def _normal(self, number: int, given: Tensor) -> Normal:
        out = self.maps[number](given)
        mean, log_std = out.to(torch.promote_types(out.dtype, torch.float32)).chunk(2, dim=-1)
        return Normal(mean, log_std.clamp(-FLAT, FLAT))


def _changed(law: Normal, by: Normal) -> Normal:
    log_std = (law.log_std + by.log_std).clamp(-FLAT, FLAT)
    return Normal(law.mean + law.log_std.exp() * by.mean, log_std)
