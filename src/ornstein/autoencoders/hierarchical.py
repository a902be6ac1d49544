"""Two levels of codes, the coarse one first: what VQ-VAE-2 has between its encoder and decoder.

    top      e_t = nearest(down(h))                       at half the size of the features h
             u   = up(e_t)                                at their size again
    bottom   e_b = nearest(A h + B u)                     what the top leaves to be said
    z        = (e_b, u)                                   the decoder is given both levels

(notes fig 1-10; A. Razavi, A. van den Oord, O. Vinyals 2019, "Generating diverse high-fidelity
images with VQ-VAE-2", arXiv:1906.00446, §3.1 and algorithm 1: h_top = E_top(x), h_bottom =
E_bottom(x, e_top), x̂ = D(e_top, e_bottom).) Each `nearest` is a vector quantiser by notes eq 11-13,
with its own codebook, costs and gradients, which pass straight through both: the decoder's reach
the top by u and through e_b, and so does the bottom's commitment. The paper does not say by which
net the decoder sees the top; here `up` serves both.

The coarse level starts first. Until its vectors are there u comes from features as they are, and a
k-means of the bottom's, which depend on u, would be of features that soon are others. So the bottom
gives no statistics until the top has started, and starts by the next update's. This says nothing
of how an update is shared out over micro-batches and ranks, nor does anything else in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ornstein.autoencoders.codec import Code
from ornstein.autoencoders.discrete import Level, joined, split
from ornstein.errors import ConfigError
from ornstein.nn.codec import Cut, Residual
from ornstein.nn.layers import UpsampleConv, norm

if TYPE_CHECKING:
    from ornstein.autoencoders.bottlenecks import VQ
    from ornstein.autoencoders.quantizers import VQModule
    from ornstein.noise import Noise


class HierarchyModule(nn.Module):
    """features [B, 2D, h, w] -> z [B, 2D, h, w], its indices flat [B, P], and what they cost.

    P = ⌈h/2⌉ ⌈w/2⌉ + h w, the top's first. Penalties, statistics and what is reported are those of
    both quantisers, `commitment/top` and so on. latent: (2D, h, w). top, bottom: the quantisers as
    they are chosen. channels, blocks: of the nets between the levels.
    Raises: ConfigError for codes without a layout, or of an odd number of units.
    """

    def __init__(
        self, latent: tuple[int, ...], top: VQ, bottom: VQ, channels: int, blocks: int
    ) -> None:
        if len(latent) != 3:
            raise ConfigError(
                "a hierarchy needs codes that keep the layout of a picture; write "
                "model.nets.kind=conv model.nets.flat=false, or model.bottleneck.kind=vq"
            )
        if latent[0] % 2:
            raise ConfigError(
                f"a hierarchy gives half of a code's units to each of its two levels, and "
                f"{latent[0]} is odd; write model.units={latent[0] + 1}"
            )
        super().__init__()
        units, (height, width) = latent[0] // 2, latent[1:]
        coarse = (math.ceil(height / 2), math.ceil(width / 2))
        self.latent = latent
        self.down = Net(
            nn.Conv2d(latent[0], channels, 3, stride=2, padding=1),
            *(Residual(channels) for _ in range(blocks)),
            *(norm(channels), nn.SiLU(), nn.Conv2d(channels, units, 1)),
        )
        self.up = Net(
            nn.Conv2d(units, channels, 1),
            *(Residual(channels) for _ in range(blocks)),
            *(UpsampleConv(channels, units), Cut((height, width))),
        )
        self.merge = Net(nn.Conv2d(latent[0] + units, units, 1))  # (A, B) of the bottom's features
        self.top, self.bottom = top.build((units, *coarse)), bottom.build((units, height, width))

    @property
    def levels(self) -> tuple[Level, ...]:
        """The top and the bottom."""
        return (*self.top.levels, *self.bottom.levels)

    @property
    def epoch(self) -> int:
        """Samples of an epoch, over which usage is counted."""
        return self.top.epoch

    @epoch.setter
    def epoch(self, samples: int) -> None:
        self.top.epoch = self.bottom.epoch = samples

    def forward(self, h: Tensor, noise: Noise | None = None) -> Code:
        """The code of features h [B, 2D, h, w]; statistics with the noise of an update, and
        without it what the code costs by its law."""
        top = self.top(self.down(h), noise)
        u = self._given(top.z)
        bottom = self.bottom(self.merge(torch.cat((h, u), 1)), noise)
        kl = None if top.kl is None or bottom.kl is None else top.kl + bottom.kl
        costs: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        for name, code in (("top", top), ("bottom", bottom)):
            costs |= {f"{of}/{name}": cost for of, cost in code.penalties.items()}
            if name == "top" or self.top.has_started():
                stats |= {f"{name}/{of}": value for of, value in code.stats.items()}
        return Code(
            torch.cat((bottom.z, u), 1),
            kl,
            indices=joined((top.indices, bottom.indices)),
            penalties=costs,
            stats=stats,
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """z [B, 2D, h, w] of flat indices int64 [B, P]."""
        top, bottom = split(indices, self.levels)
        e_bottom = self.bottom.lookup(bottom).contiguous()
        return torch.cat((e_bottom, self._given(self.top.lookup(top))), 1)

    def draw_indices(self, noise: Noise) -> Tensor:
        """Codes from the laws of both levels, each place by itself, int64 [B, P]."""
        drawn = [level.draw_indices(noise.child(name)) for name, level in self._named()]
        return joined(drawn)

    @torch.no_grad()
    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """z [B, *shape], shape = (2D, h, w), of such codes: what stands in for a prior until one is
        trained."""
        assert shape == self.latent, f"codes have the shape {self.latent}, not {shape}"
        return self.lookup(self.draw_indices(noise))

    def code_nats(self, indices: Tensor) -> Tensor:
        """−log p(indices) by the laws of both levels, in nats, [B], for flat int64 [B, P]."""
        top, bottom = split(indices, self.levels)
        return self.top.code_nats(top) + self.bottom.code_nats(bottom)

    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Eq 13, restarts and counts of each level, or its start. stats: summed over the global
        batch. noise: of one sample, the same on all ranks."""
        for name, level in self._named():
            mark = f"{name}/"
            own = {k.removeprefix(mark): v for k, v in stats.items() if k.startswith(mark)}
            if own:
                level.after_step(own, noise.child(name))

    def report(self) -> dict[str, Tensor]:
        """`used/top`, `perplexity/top`, and the same of the bottom."""
        found = {name: level.report() for name, level in self._named()}
        return {f"{of}/{name}": value for name, own in found.items() for of, value in own.items()}

    def _given(self, e_top: Tensor) -> Tensor:
        """u, from vectors laid out in one way, so that convolutions always round alike."""
        u: Tensor = self.up(e_top.clone(memory_format=torch.contiguous_format))
        return u

    def _named(self) -> tuple[tuple[str, VQModule], ...]:
        return ("top", self.top), ("bottom", self.bottom)


class Net(nn.Sequential):
    """Layers that are compiled, and put together where ranks share the weights, as one."""

    worth_compiling = True
