"""Finite scalar quantisation: a codebook that nobody learns, the points of a grid.

    y = tanh(h),   k_i = round((L_i − 1)(y_i + 1)/2) in 0 ... L_i − 1,   z_i = 2 k_i/(L_i − 1) − 1

Number i of a place takes one of L_i values between −1 and 1, both included, and the code is the
whole number Σ_i k_i Π_{j<i} L_j: K = Π L_i codes. Gradients go to y as if nothing were rounded.
F. Mentzer, D. Minnen, E. Agustsson, M. Tschannen 2023, "Finite scalar quantization: VQ-VAE made
simple", arXiv:2309.15505.

With an even number of levels 0 is none of them: the grid is half a step off. The paper's listing
rounds to whole steps, and moves the grid by half a step and h by a constant, so that h = 0 stays at
0; for two levels that constant is where tanh is flat. Here the grid is symmetric for any number of
levels, and the same as the paper's for odd ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ornstein.autoencoders.codec import Code
from ornstein.autoencoders.discrete import Discrete, through
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from ornstein.noise import Noise

MOST = 1 << 20  # codes, whose uses are counted


class FSQModule(Discrete):
    """features [B, D] or [B, D, h, w] -> z in [−1, 1], and its indices [B] or [B, h, w].

    levels: L_i, one for each of the D numbers of a place.
    Raises: ConfigError for another number of levels than D, or more than 2^20 codes.
    """

    steps: Tensor  # int64 [D], L_i − 1
    strides: Tensor  # int64 [D], Π_{j<i} L_j

    def __init__(self, latent: tuple[int, ...], levels: tuple[int, ...]) -> None:
        if latent[0] != len(levels):
            raise ConfigError(
                f"fsq has {len(levels)} levels for codes of {latent[0]} numbers; "
                f"write units={len(levels)}, or one level for each number"
            )
        if math.prod(levels) > MOST:
            raise ConfigError(
                f"fsq levels {list(levels)} make {math.prod(levels):,} codes; "
                f"choose fewer, for at most {MOST:,}"
            )
        super().__init__(latent, math.prod(levels))
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("steps", torch.tensor(levels) - 1, persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def forward(self, h: Tensor, noise: Noise | None = None) -> Code:
        """The code of features h [B, D, *places]; statistics with the noise of an update, and
        without it what the code costs by its law."""
        y = h.to(self.history.dtype).tanh()
        steps, strides = self._along(self.steps, h.ndim), self._along(self.strides, h.ndim)
        k = ((y.detach() + 1) * (steps / 2)).round().nan_to_num()
        indices = (k.long() * strides).sum(1)
        z = through(2 * k / steps - 1, y)
        if noise is None:
            return Code(z, self.code_nats(indices), indices=indices)
        return Code(z, indices=indices, stats=self.uses(indices))

    def lookup(self, indices: Tensor) -> Tensor:
        """z [B, D, *places] of indices int64 [B, *places]."""
        steps = self._along(self.steps, indices.ndim + 1)
        strides = self._along(self.strides, indices.ndim + 1)
        k = indices.unsqueeze(1).div(strides, rounding_mode="floor") % (steps + 1)
        return 2 * k.to(self.history.dtype) / steps - 1

    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Count what the update has used."""
        self.count(stats)

    @staticmethod
    def _along(numbers: Tensor, ndim: int) -> Tensor:
        """[D] -> [1, D, 1, ...] of `ndim` dimensions."""
        return numbers.view(1, -1, *(1,) * (ndim - 2))
