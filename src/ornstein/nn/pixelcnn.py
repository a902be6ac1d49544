"""A gated PixelCNN: p(k) = Π_p p(k_p | k_<p, s) over the places of a layout in raster order.

    v⁰_ij = e(k_{i−1,j})          rows above            h⁰_p = e(k_{p−1})          one place back
    a = W_v * v,   v ← v + P_v g(a + V_v s)
    b = W_h * h,   h ← h + P_h g(b + U a + V_h s)       g(a₁, a₂) = tanh(a₁) σ(a₂)
    h ← h + W_o softmax(Q Kᵀ/√d over p' ≤ p) V          where attention is asked for
    log p(k_p = · | k_<p, s) = log softmax(head(h_p))

A. van den Oord, N. Kalchbrenner, O. Vinyals, L. Espeholt, A. Graves, K. Kavukcuoglu 2016,
"Conditional image generation with PixelCNN decoders", arXiv:1606.05328: two stacks, v over the rows
above and h along the row (§2.2, fig 2), so that no place of the rows above is in a blind spot;
gates (eq 2) that a condition s enters (eq 3 and 4). The attention is X. Chen, N. Mishra, M.
Rohaninejad, P. Abbeel 2017, "PixelSNAIL", arXiv:1712.09763: all earlier places in one step.

Nothing is masked. W_v and W_h reach up and left only, and what enters is shifted by one: v by a
row, h by a place of the raster, so that a row begins with what the one above ended with.
Convolutions alone reach `layers` · (kernel // 2) columns in the rows above. Unlike the paper's, v
has a residual path, too. s is a map of the layout: a vector for each place, one for the class, and
features of the codes of coarser layouts, which are all known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.nn.attention import head_count
from ornstein.nn.codec import Residual
from ornstein.nn.layers import Dropout, Recomputable, zeroed

Layout = tuple[int, int, int]
"""K, h and w of codes: how many there are to choose from, and the size of what they fill."""


def gate(a: Tensor, dim: int = 1) -> Tensor:
    """tanh(a₁) σ(a₂) of the two halves of a along `dim`."""
    first, second = a.chunk(2, dim)
    return first.tanh() * second.sigmoid()


class GatedLayer(Recomputable):
    """(v, h, s), [B, C, h, w] twice and [B or 1, M, h, w] -> (v, h).

    last: nobody asks for v after this layer, so that it stays as it is.
    """

    def __init__(
        self, channels: int, condition: int, kernel: int, dropout: float, last: bool
    ) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.down = nn.Conv2d(channels, 2 * channels, (self.reach + 1, kernel))
        self.right = nn.Conv2d(channels, 2 * channels, (1, self.reach + 1))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.given = nn.Conv2d(condition, 4 * channels, 1, bias=False)
        self.dropout = Dropout(dropout)
        self.out_v = None if last else nn.Conv2d(channels, channels, 1)
        self.out_h = nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r = self.reach
        to_v, to_h = self.given(s).chunk(2, 1)
        a = self.down(F.pad(v, (r, r, r, 0)))
        b = self.right(F.pad(h, (r, 0, 0, 0))) + self.across(a) + to_h
        if self.out_v is not None:
            v = v + self.out_v(gate(a + to_v))
        return v, h + self.out_h(self.dropout(gate(b)))


class CausalAttention(Recomputable):
    """h [B, P, C] in raster order -> the same; place p attends to the places up to p."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = head_count(channels, head_width)
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.projected(h)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = h + self.out(attended.transpose(1, 2).flatten(2))
        return out

    def projected(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V, each [B, heads, P, C/heads]."""
        q, k, v = self.qkv(self.norm(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class Coarser(nn.Module):
    """Codes int64 [B, h', w'] of a coarser layout -> features [B, M, h, w]: those of the place
    that covers each."""

    def __init__(self, layout: Layout, size: tuple[int, int], width: int, blocks: int = 2) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(layout[0], width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.inside = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.after = Residual(width)  # which knows the places that the finer layout has beside it

    def forward(self, codes: Tensor) -> Tensor:
        h = self.inside(self.first(self.embed(codes).movedim(-1, 1)))
        out: Tensor = self.after(F.interpolate(h, self.size, mode="nearest"))
        return out


class PixelCNNModule(nn.Module):
    """Codes k int64 [B, h, w], coarser ones and classes -> logits [B, K, h, w], equal at first.

    layout: (K, h, w) of k. coarser: of the layouts that are known. classes: how many there are; 0
    for none. kernel: odd, of both sides of what a convolution would see without the order.
    attention: whether places attend to earlier ones, in the middle and at the end of the layers.
    """

    worth_compiling = True

    def __init__(
        self,
        layout: Layout,
        coarser: Sequence[Layout] = (),
        classes: int = 0,
        *,
        channels: int,
        layers: int,
        kernel: int = 3,
        attention: bool = True,
        head_width: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layout, self.channels = layout, channels
        codes, *size = layout
        self.embed = nn.Embedding(codes, channels)
        self.position = nn.Parameter(0.1 * torch.randn(channels, *size))
        self.coarser = nn.ModuleList(Coarser(one, (size[0], size[1]), channels) for one in coarser)
        self.label = nn.Embedding(classes, channels) if classes else None
        self.layers = nn.ModuleList(
            GatedLayer(channels, channels, kernel, dropout, i == layers - 1) for i in range(layers)
        )
        at = {(layers + 1) // 2, layers} if attention else set()
        self.attention = nn.ModuleDict(  # by the number of the layer that comes before it
            {str(i - 1): CausalAttention(channels, head_width) for i in sorted(at)}
        )
        self.head = nn.Sequential(
            *(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.SiLU()),
            zeroed(nn.Linear(channels, codes)),
        )

    def condition(self, coarser: Sequence[Tensor] = (), label: Tensor | None = None) -> Tensor:
        """s [B or 1, C, h, w] of coarser codes, int64 [B, h', w'] each, and classes int64 [B]."""
        s = self.position.unsqueeze(0)
        for net, codes in zip(self.coarser, coarser, strict=True):
            s = s + net(codes)
        if self.label is not None:
            assert label is not None, "a network with classes is told them"
            s = s + self.label(label)[:, :, None, None]
        return s

    def forward(
        self, k: Tensor, coarser: Sequence[Tensor] = (), label: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K, h, w] of codes int64 [B, h, w]; those of a place depend on earlier ones,
        and on what `condition` takes."""
        return self.logits(self.embed(k).movedim(-1, 1), self.condition(coarser, label))

    def logits(self, e: Tensor, s: Tensor) -> Tensor:
        """The same of embedded codes e [B, C, h, w] and a condition s [B or 1, C, h, w]."""
        h = F.pad(e.flatten(2), (1, 0))[:, :, :-1].view(e.shape)
        v = F.pad(e, (0, 0, 1, 0))[:, :, :-1]
        for i, layer in enumerate(self.layers):
            v, h = layer(v, h, s)
            if str(i) in self.attention:
                attended = self.attention[str(i)](h.flatten(2).transpose(1, 2))
                h = attended.transpose(1, 2).reshape(h.shape)
        out: Tensor = self.head(h.flatten(2).transpose(1, 2))  # [B, P, K]
        return out.transpose(1, 2).reshape(len(out), -1, *e.shape[2:])
