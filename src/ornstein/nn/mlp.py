"""A residual network of vectors, for data of a few to a few hundred numbers.

    h ← h + W₂ dropout(silu(W₁ ((1 + a) norm(h) + b))),   (a, b) from the label, for each block

K. He et al., "Deep residual learning", 2015, arXiv:1512.03385; the label scales and shifts after
the norm as in E. Perez et al., "FiLM", 2017, arXiv:1709.07871. In two dimensions what a denoiser
has to say changes with the noise level from almost linear to sharp, and a scale can switch parts
of the network on and off.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.nn.cond import NO_COND, Cond
from ornstein.nn.embeddings import sinusoidal
from ornstein.nn.layers import Dropout, Recomputable, zeroed


class MLPModule(nn.Module):
    """(x [B, D], label float32 [B], cond) -> [B, out_features], zero at first.

    width: of the hidden vectors and of the label's. depth: the number of residual blocks.
    vector: width of `cond.vector`, mapped to the label's vector and added; None: it has its width.
    """

    worth_compiling = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        depth: int,
        dropout: float = 0.0,
        vector: int | None = None,
    ) -> None:
        super().__init__()
        self.label_width = width
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.vector = None if vector is None else nn.Linear(vector, width)
        self.labels = nn.Linear(width, 2 * depth * width)
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, out_features)))

    def forward(self, x: Tensor, label: Tensor, cond: Cond = NO_COND) -> Tensor:
        if any(c is not None for c in (cond.tokens, cond.image, cond.residuals)):
            raise ConfigError("a network of vectors takes its condition as a vector only")
        e = self.embed(sinusoidal(label, self.label_width).to(x.dtype))
        if cond.vector is not None:
            e = e + (cond.vector if self.vector is None else self.vector(cond.vector))
        parts = iter(self.labels(F.silu(e)).split(self.label_width, dim=1))
        h = self.first(x)
        for block in self.blocks:
            h = block(h, next(parts), next(parts))
        out: Tensor = self.last(h)
        return out


class Block(Recomputable):
    """(h, scale, shift), each [B, width] -> [B, width]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        # The label's scale and shift take the place of the norm's own.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.linear1 = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.linear2 = nn.Linear(width, width)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        u = self.norm(h) * (1 + scale) + shift
        out: Tensor = h + self.linear2(self.dropout(F.silu(self.linear1(u))))
        return out
