"""A PixelCNN asked one place after the other, with everything kept that later places need again.

The logits of place p need h of p alone, once these are known:

    of the row      U a + V_h s and v, layer by layer, from the rows above, which are complete:
                    once a row, for which the last kernel // 2 rows of each layer's v are kept
    of the place    h of the last kernel // 2 places of the row, for each layer
    of all places   K and V of each attention

so that a sample costs one pass of the network and not one for each place. Sums are those of the
full pass in another order: logits are the same but for rounding. P. Ramachandran et al. 2017, "Fast
generation for convolutional autoregressive models", arXiv:1704.06001, where the idea is from, keep
the same states.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ornstein.errors import ConfigError
from ornstein.nn.pixelcnn import CausalAttention, GatedLayer, PixelCNNModule, gate
from ornstein.noise import Noise


def incremental(net: PixelCNNModule, s: Tensor, count: int) -> Generator[Tensor, Tensor, None]:
    """Yield logits [B, K] of each place in raster order, and be sent the codes int64 [B] there.

    s: the condition, [B or 1, C, h, w]. count: B. The network is to be in eval mode. Raises:
    ConfigError where ranks share its weights, of which each has a part.
    """
    assert not net.training, "dropout is not kept"
    if isinstance(net.position, DTensor):
        raise ConfigError(
            "codes are drawn with all weights at hand, which ranks share out here; draw from the "
            "run instead, or write optim.shard=off"
        )
    _, height, width = net.layout
    layers = [cast(GatedLayer, layer) for layer in net.layers]
    rows = [_Row.of(layer, count, width) for layer in layers]
    memories = {
        int(i): _Memory.of(cast(CausalAttention, one), count, height * width)
        for i, one in net.attention.items()
    }
    zero = s.new_zeros(count, net.channels)
    above = s.new_zeros(count, net.channels, width)  # e of the row above
    last = zero  # e of the place before
    for i in range(height):
        bases = []
        v = above
        for layer, row in zip(layers, rows, strict=True):
            v, base = row.next(layer, v, s[:, :, i : i + 1])
            bases.append(base)
        before = [[zero] * layer.reach for layer in layers]
        embedded = []
        for j in range(width):
            h = last
            for n, (layer, row) in enumerate(zip(layers, rows, strict=True)):
                seen = [*before[n], h]
                before[n] = seen[1:]
                b = torch.addmm(bases[n][j], torch.cat(seen, 1), row.right)
                h = h + _point(layer.out_h, gate(b))
                if n in memories:
                    attention = cast(CausalAttention, net.attention[str(n)])
                    h = memories[n].next(attention, h, i * width + j)
            codes = yield net.head(h)
            last = net.embed(codes)
            embedded.append(last)
        above = torch.stack(embedded, 2)


def drawn(net: PixelCNNModule, s: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
    """Codes int64 [B, h, w] from p(k)^(1/temperature) place by place, each by its own uniform
    number of its sample; temperature 1 is the network's law."""
    _, height, width = net.layout
    marks = noise.uniform(0, (height * width,), torch.float64).T.contiguous()
    places = incremental(net, s, marks.shape[1])
    logits, found = next(places), []
    for p in range(height * width):
        found.append(chosen(logits, marks[p], temperature))
        if p < height * width - 1:
            logits = places.send(found[p])
    return torch.stack(found, 1).view(-1, height, width)


def chosen(logits: Tensor, marks: Tensor, temperature: float) -> Tensor:
    """The codes int64 [B] at which the distribution functions of logits [B, K] pass marks [B] in
    (0, 1), float64."""
    reached = (logits.double() / temperature).softmax(1).cumsum(1)
    found = torch.searchsorted(reached, marks[:, None], right=True).squeeze(1)
    return found.clamp(max=logits.shape[1] - 1)  # 1 may be reached a little below 1


class _Row(NamedTuple):
    """Of a layer: its last rows of v [B, C, kernel // 2, w + 2 (kernel // 2)], zeros beside and
    above them, and the weights of h along the row, [(kernel // 2 + 1) C, 2C]."""

    kept: Tensor
    right: Tensor

    @classmethod
    def of(cls, layer: GatedLayer, count: int, width: int) -> _Row:
        """Before the first row."""
        r, weight = layer.reach, layer.right.weight  # [2C, C, 1, r + 1]
        kept = weight.new_zeros(count, weight.shape[1], r, width + 2 * r)
        return cls(kept, weight.squeeze(2).permute(2, 1, 0).flatten(0, 1).contiguous())

    def next(self, layer: GatedLayer, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """v of the layer's outputs, [B, C, w], and what its h is given, [w, B, 2C], of v of its
        inputs and s [B or 1, C, 1, w] of a row. The row is kept in place of the oldest."""
        r = layer.reach
        seen = torch.cat((self.kept, F.pad(v, (r, r)).unsqueeze(2)), 2)
        self.kept.copy_(seen[:, :, 1:])
        to_v, to_h = layer.given(s).chunk(2, 1)
        a = layer.down(seen)  # [B, 2C, 1, w]
        base = (layer.across(a) + to_h + _bias(layer.right)).squeeze(2).permute(2, 0, 1)
        if layer.out_v is not None:
            v = v + layer.out_v(gate(a + to_v)).squeeze(2)
        return v, base.contiguous()


class _Memory(NamedTuple):
    """K and V of an attention, [B, heads, P, C/heads], as far as places are known."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, attention: CausalAttention, count: int, places: int) -> _Memory:
        """Before the first place."""
        weight = attention.out.weight
        shape = (count, attention.heads, places, len(weight) // attention.heads)
        return cls(weight.new_empty(shape), weight.new_empty(shape))

    def next(self, attention: CausalAttention, h: Tensor, p: int) -> Tensor:
        """The attention's output [B, C] for h [B, C] of place p, the next one."""
        q, k, v = attention.projected(h.unsqueeze(1))
        self.keys[:, :, p], self.values[:, :, p] = k.squeeze(2), v.squeeze(2)
        keys, values = self.keys[:, :, : p + 1], self.values[:, :, : p + 1]
        attended = F.scaled_dot_product_attention(q, keys, values)
        out: Tensor = h + attention.out(attended.flatten(1))
        return out


def _point(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution at one place, [B, C] -> [B, C']."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias[:, None, None]
