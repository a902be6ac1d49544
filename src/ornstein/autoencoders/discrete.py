"""Bottlenecks whose codes are entries of a codebook: how often each is used, over an epoch.

    share used   #{i: n_i > 0}/K                 perplexity   exp(−Σ p_i log p_i),  p_i = n_i/Σ n

n_i counts the uses of code i by all samples of an epoch. Within a batch of few samples most codes
cannot be used, however well all of them are over the data, and the entropy of a few draws is below
that of their law: a batch has no usage of its own.

The counts, taken for each place of a code by itself, also give a law of codes,

    p(k) = Π_places p_place(k_place)

which stands in for a prior until one is trained. It knows how often codes are used where, and
nothing of what goes together.

A code may have several levels, each with a codebook and a layout of its own. All its indices in a
row, level by level, the coarsest first, and each in raster order, are its flat form [B, P].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ornstein.autoencoders.kmeans import counted

if TYPE_CHECKING:
    from ornstein.noise import Noise

MEMORY = 0.99  # of the law: what an update leaves of the counts before it
LARGEST = 1 << 22  # numbers of a law; a larger one is that of all places together


class Level(NamedTuple):
    """A codebook of `codes` entries and where they stand: size = (h, w), or () for one place."""

    codes: int
    size: tuple[int, ...]

    @property
    def places(self) -> int:
        """How many entries a sample has."""
        return math.prod(self.size)


@runtime_checkable
class Codebooks(Protocol):
    """A bottleneck whose codes are entries of codebooks; what a prior over them can rely on.

    epoch: samples of an epoch, over which usage is counted. With one level, indices are laid out as
    it is, [B, *size]; with several they are flat, [B, P].
    """

    epoch: int

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels, the coarsest first."""

    def lookup(self, indices: Tensor) -> Tensor:
        """z [B, *latent], which the decoder takes, of int64 indices."""

    def draw_indices(self, noise: Noise) -> Tensor:
        """Indices from a law that knows how often each is used where."""

    def code_nats(self, indices: Tensor) -> Tensor:
        """−log p(indices) by that law in nats, [B]."""

    def report(self) -> dict[str, Tensor]:
        """Shares used and perplexities over an epoch, by name."""


def split(flat: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """The indices of each level, [B, *size], of a flat code [B, P]."""
    assert flat.shape[1:] == (sum(one.places for one in levels),), "a code of other levels"
    parts = torch.split(flat, [one.places for one in levels], 1)
    return [part.reshape(len(flat), *one.size) for part, one in zip(parts, levels, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The flat code [B, P] of the indices of each level, [B, *size]; undoes `split`."""
    return torch.cat([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], 1)


def usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The share of codes that are used, in [0, 1], and their perplexity, in [1, K], of counts [K];
    0 and 1 where nothing was counted."""
    p = counts.double() / counts.sum().clamp(min=1)
    return (counts > 0).double().mean(), torch.special.entr(p).sum().exp()


def through(z: Tensor, h: Tensor) -> Tensor:
    """z to the digit, with the gradient of h, of the same shape (Y. Bengio et al. 2013,
    arXiv:1308.3432: the straight-through estimator)."""
    return z.detach() + (h - h.detach())


class Discrete(nn.Module):
    """What such bottlenecks share; each has a `forward` and a `lookup` of its own.

    latent: (D, *places), the shape of one z. codes: K. epoch: samples of an epoch, which whoever
    knows the data sets; with 0 the counts go on for ever.
    """

    history: Tensor  # float [places, K], recent uses by place, of [1, K] if that would be too large
    tally: Tensor  # int64 [K], uses since the epoch began
    seen: Tensor  # int64, samples since then
    whole: Tensor  # int64 [K], uses in the last whole epoch
    # Whole numbers, so that averages of weights copy them.

    def __init__(self, latent: tuple[int, ...], codes: int) -> None:
        super().__init__()
        self.latent, self.codes, self.epoch = latent, codes, 0
        self.places = math.prod(latent[1:])
        laws = self.places if self.places * codes <= LARGEST else 1
        self.register_buffer("history", torch.zeros(laws, codes))
        self.register_buffer("tally", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("whole", torch.zeros(codes, dtype=torch.int64))

    def lookup(self, indices: Tensor) -> Tensor:
        """z [B, D, *places] of indices int64 [B, *places]."""
        raise NotImplementedError

    @property
    def levels(self) -> tuple[Level, ...]:
        """The one level that there is."""
        return (Level(self.codes, self.latent[1:]),)

    @property
    def counts(self) -> Tensor:
        """Uses of each code in the last whole epoch, or in the first as far as it is: int64 [K]."""
        return torch.where(self.whole.any(), self.whole, self.tally)

    @property
    def used(self) -> Tensor:
        """The share of codes with `counts` above 0."""
        return usage(self.counts)[0]

    @property
    def perplexity(self) -> Tensor:
        """The perplexity of `counts`."""
        return usage(self.counts)[1]

    def report(self) -> dict[str, Tensor]:
        """`used` and `perplexity`."""
        used, perplexity = usage(self.counts)
        return {"used": used, "perplexity": perplexity}

    def law(self) -> Tensor:
        """p_place(k), [places, K], or [1, K] for all places, from recent updates; as if one more
        sample had been seen, that used all codes alike: nothing is impossible."""
        seen = self.history.sum(1, keepdim=True)
        return (self.history + 1 / self.codes) / (seen + 1)

    @torch.no_grad()
    def draw_indices(self, noise: Noise) -> Tensor:
        """Codes from the law, each place by itself, int64 [B, *places]."""
        reached = self.law().double().cumsum(1)
        marks = noise.uniform(0, (self.places,), torch.float64)
        if len(reached) == 1:
            found = torch.searchsorted(reached[0], marks, right=True)
        else:
            found = torch.searchsorted(reached, marks.T.contiguous(), right=True).T
        return found.clamp(max=self.codes - 1).reshape(-1, *self.latent[1:])

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """z [B, *shape], shape = (D, *places), from the law, each place by itself: what stands in
        for a prior until one is trained."""
        assert shape == self.latent, f"codes have the shape {self.latent}, not {shape}"
        return self.lookup(self.draw_indices(noise))

    def code_nats(self, indices: Tensor) -> Tensor:
        """−log p(indices) by the law, in nats, [B], for int64 [B, *places]."""
        places = indices.reshape(len(indices), math.prod(indices.shape[1:]))
        costs = self.law().log().neg()
        rows = torch.arange(places.shape[1], device=indices.device) % len(costs)
        return costs[rows, places].sum(1)

    def uses(self, indices: Tensor) -> dict[str, Tensor]:
        """Statistics of a batch that `count` takes, summed: indices int64 [B, *places]."""
        rows = len(self.history)
        places = torch.arange(self.places, device=indices.device) % rows
        flat = (indices.reshape(-1, self.places) + places * self.codes).view(-1)
        samples = torch.full((), len(indices), dtype=torch.int64, device=indices.device)
        return {
            "codes": counted(flat, rows * self.codes).view(rows, self.codes),
            "samples": samples,
        }

    @torch.no_grad()
    def count(self, stats: Mapping[str, Tensor]) -> None:
        """Count what an update has used: `uses`, summed over the global batch. An epoch ends with
        the update that completes it."""
        self.history.mul_(MEMORY).add_(stats["codes"])
        self.tally += stats["codes"].sum(0)
        self.seen += stats["samples"]
        if self.epoch:
            ended = self.seen >= self.epoch
            self.whole.copy_(torch.where(ended, self.tally, self.whole))
            self.tally.masked_fill_(ended, 0)
            self.seen.remainder_(self.epoch)
