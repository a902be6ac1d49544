"""The U-Net of DDPM: a network of images that sees them at several resolutions at once.

    down    at each level `blocks` residual blocks; a convolution of stride 2 leads to the next
    middle  block, attention, block
    up      at each level blocks + 1 residual blocks, each of which takes over one feature map of
            the way down ("skip") by concatenation; ×2 and a convolution lead to the level above
    block   x + conv(dropout(silu(norm(conv(silu(norm(x))) + label))))

J. Ho, A. Jain, P. Abbeel, "Denoising diffusion probabilistic models", 2020, arXiv:2006.11239,
appendix B; after O. Ronneberger et al., "U-Net", 2015, arXiv:1505.04597. With base 128, levels
(1, 2, 2, 2), 2 blocks and attention at 16×16 it has the published 35,746,307 parameters.

Where we differ: norms have at least 8 channels a group; one linear map serves the labels of all
blocks (a block has no label weights of its own, their number is the same); stride 2 pads both
sides, so that H pixels become ⌈H/2⌉ for any H ≥ 1, and on the way up a row or column too many is
cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.errors import ConfigError
from ornstein.nn.attention import SelfAttention
from ornstein.nn.cond import NO_COND, Cond
from ornstein.nn.embeddings import sinusoidal
from ornstein.nn.layers import Dropout, Recomputable, UpsampleConv, norm, zeroed


class UNetModule(nn.Module):
    """(x [B, C, H, W], label float32 [B], cond) -> [B, out_channels, H, W], zero at first.

    in_channels, out_channels: of x and of the result.
    channels: width of each level, finest first; the label's vector is four times the first.
    attention: at which reductions of the input (1, 2, 4, …) each block is followed by attention.
    image: channels of `cond.image`, concatenated to x. residuals: `cond.residuals` has one map
        for each skip in the order in which they arise, then one for the middle.
    vector: width of `cond.vector`, mapped to the label's vector and added; None: it has its width.
    patch: side of the squares of pixels that the first level sees as one; cheaper by its square
        (E. Hoogeboom et al., "Simple diffusion", 2023, arXiv:2301.11093, §3.2).
    """

    worth_compiling = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...],
        blocks: int = 2,
        attention: tuple[int, ...] = (),
        middle_attention: bool = True,
        head_width: int = 64,
        dropout: float = 0.0,
        image: int = 0,
        vector: int | None = None,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.image = image
        self.patch = patch
        self.base = channels[0]
        self.label_width = 4 * self.base
        self.embed = nn.Sequential(
            nn.Linear(self.base, self.label_width),
            nn.SiLU(),
            nn.Linear(self.label_width, self.label_width),
        )
        self.vector = None if vector is None else nn.Linear(vector, self.label_width)

        def layer(inside: int, outside: int, attend: bool) -> Layer:
            return Layer(inside, outside, dropout, head_width if attend else None)

        pixels = patch * patch
        self.first = nn.Conv2d((in_channels + image) * pixels, self.base, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [self.base]
        for level, width in enumerate(channels):
            for _ in range(blocks):
                self.down.append(layer(skips[-1], width, 2**level in attention))
                skips.append(width)
            if level < len(channels) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)

        width = channels[-1]
        self.middle = nn.ModuleList(
            (layer(width, width, middle_attention), layer(width, width, False))
        )

        self.up = nn.ModuleList()
        for level, outside in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(layer(width + skips.pop(), outside, 2**level in attention))
                width = outside
            if level > 0:
                self.up.append(UpsampleConv(width, width))
        self.last = nn.Sequential(
            norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, out_channels * pixels, 3, padding=1))
        )

        layers = itertools.chain(self.down, self.middle, self.up)
        self.label_parts = [item.outside for item in layers if isinstance(item, Layer)]
        self.labels = nn.Linear(self.label_width, sum(self.label_parts))
        for weight in self.parameters():
            if weight.dim() == 4:  # as `encode` orders what they meet: none is copied in a step
                ordered = torch.empty_like(weight.data, memory_format=torch.channels_last)
                weight.data = ordered.copy_(weight.data)

    def forward(self, x: Tensor, label: Tensor, cond: Cond = NO_COND) -> Tensor:
        if cond.tokens is not None:
            raise ConfigError("a U-Net cannot attend to tokens; give its condition as a vector")
        parts = self.label_maps(x, label, cond)
        skips, middle = self.encode(x, parts, cond)
        if cond.residuals is not None:
            *for_skips, for_middle = cond.residuals
            skips = [s + r for s, r in zip(skips, for_skips, strict=True)]
            middle = middle + for_middle
        out = F.pixel_shuffle(self.decode(skips, middle, parts), self.patch)
        if out.shape[2:] == x.shape[2:]:
            return out
        return out[:, :, : x.shape[2], : x.shape[3]].clone()  # sharded networks return no views

    def folded(self, x: Tensor) -> Tensor:
        """The pixels of each patch as channels; the image is completed with zeros to whole ones."""
        down, right = (-size % self.patch for size in x.shape[2:])
        return F.pixel_unshuffle(F.pad(x, (0, right, 0, down)), self.patch)

    def label_maps(self, x: Tensor, label: Tensor, cond: Cond) -> Iterator[Tensor]:
        """What the label and `cond.vector` add inside each block, [B, C, 1, 1], in order."""
        e = self.embed(sinusoidal(label, self.base).to(x.dtype))
        if cond.vector is not None:
            e = e + (cond.vector if self.vector is None else self.vector(cond.vector))
        return iter(self.labels(F.silu(e))[:, :, None, None].split(self.label_parts, dim=1))

    def encode(
        self, x: Tensor, parts: Iterator[Tensor], cond: Cond = NO_COND
    ) -> tuple[list[Tensor], Tensor]:
        """The way down and the middle: all skips, finest first, and the middle's feature map."""
        if (self.image > 0) != (cond.image is not None):
            raise ConfigError(
                f"this U-Net was built for a condition image of {self.image} channels; "
                + ("it needs cond.image" if self.image else "it takes no cond.image")
            )
        h = self.folded(x if cond.image is None else torch.cat((x, cond.image), dim=1))
        # Channels side by side in memory: convolutions take a quarter to a half less time, on a
        # processor too, and attention's tokens are there as they stand. All that follows keeps
        # this order. Behind the first convolution, since one channel has both orders at once.
        h = self.first(h).contiguous(memory_format=torch.channels_last)
        skips = [h]
        for item in self.down:
            h = item(h, next(parts)) if isinstance(item, Layer) else item(h)
            skips.append(h)
        for item in self.middle:
            h = item(h, next(parts))
        return skips, h

    def decode(self, skips: list[Tensor], h: Tensor, parts: Iterator[Tensor]) -> Tensor:
        """The way up, which uses each skip once, and the output convolution."""
        skips = list(skips)
        for item in self.up:
            if isinstance(item, Layer):
                h = item(h, next(parts), skips.pop())
            else:
                height, width = skips[-1].shape[2:]  # may be odd
                h = item(h)[:, :, :height, :width]
        out: Tensor = self.last(h)
        return out


class Layer(Recomputable):
    """A residual block that is told the label, followed by attention where there is any.

    (x [B, C, H, W], label [B, outside, 1, 1], skip [B, inside − C, H, W] where there is one) ->
    [B, outside, H, W]; at first, the shortcut.
    """

    def __init__(self, inside: int, outside: int, dropout: float, head_width: int | None) -> None:
        super().__init__()
        self.outside = outside
        self.norm1 = norm(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = norm(outside)
        self.dropout = Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outside, outside, 3, padding=1))
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        self.attention = SelfAttention(outside, head_width) if head_width else nn.Identity()

    def forward(self, x: Tensor, label: Tensor, skip: Tensor | None = None) -> Tensor:
        x = x if skip is None else torch.cat((x, skip), dim=1)
        h = self.conv1(F.silu(self.norm1(x))) + label
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.attention(self.shortcut(x) + h)
        return out
