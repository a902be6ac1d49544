"""The prior over codes at work: what codes cost, and codes that are drawn.

    −log p(k|y) = Σ_levels −log p(k_level | k_coarser, y)
    −log p(k) = −log Σ_y p(y) p(k|y),   p(y) = 1/#y

Each run trains one level and refers to the run of the level before, which refers to the one before
that. Codes are flat, [B, P]: the levels one after the other, the coarsest first, each in raster
order. Those of levels that are finer than a prior's own may follow, and are not looked at.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.autoencoders.discrete import Level, joined, split
from ornstein.errors import ConfigError
from ornstein.nn.frozen import Frozen
from ornstein.nn.pixelcnn import Layout, PixelCNNModule
from ornstein.nn.raster import drawn

if TYPE_CHECKING:
    from ornstein.autoencoders.prior import PixelCNN
    from ornstein.noise import Noise


class CodePriorModule(nn.Module):
    """p of the last of some levels, given the others.

    levels: the coarsest first. classes: how many there are; 0 where they are not known to it.
    given: the prior of the level before, of which there is none at level 0. codec: the SHA-256 of
    the weights of the codec whose codes these are, or nothing.
    """

    def __init__(
        self,
        levels: tuple[Level, ...],
        network: PixelCNN,
        classes: int,
        given: CodePriorModule | None,
        codec: str,
    ) -> None:
        super().__init__()
        self.levels, self.classes, self.codec = levels, classes, codec
        self.places = sum(one.places for one in levels)
        self.frozen = None if given is None else Frozen(given)
        *coarser, own = map(_layout, levels)
        self.network = PixelCNNModule(own, coarser, classes, **network.model_dump())

    @property
    def given(self) -> CodePriorModule | None:
        """The prior of the level before, on this device."""
        if self.frozen is None:
            return None
        device = self.network.position.device
        return cast(CodePriorModule, self.frozen.on(device))

    def nats(self, flat: Tensor, label: Tensor | None, temperature: float = 1.0) -> Tensor:
        """−log p(k_level | k_coarser, label) in nats, [B], of codes [B, P]; NaN for samples with
        anything but codes. label: int64 [B], of which only a prior with classes takes notice.
        """
        known, valid = self._codes(flat)
        *coarser, own = known
        logits = self.network(own, coarser, label if self.classes else None)
        logits = logits.float() / temperature
        nats = F.cross_entropy(logits, own, reduction="none").flatten(1).sum(1)
        return torch.where(valid, nats, torch.nan)

    def terms(self, flat: Tensor, label: Tensor | None, temperature: float = 1.0) -> list[Tensor]:
        """`nats` of each level up to its own, the coarsest first, float64 [B]."""
        before = [] if self.given is None else self.given.terms(flat, label, temperature)
        return [*before, self.nats(flat, label, temperature).double()]

    @torch.no_grad()
    def parts(
        self, flat: Tensor, label: int | None = None, temperature: float = 1.0
    ) -> list[Tensor]:
        """−log p(k_level | k_coarser), float64 [B] for each level, the coarsest first.

        label: the class that is given; None for p(y) uniform, in which each p(k_level | k_coarser)
        is a mixture with weights p(y | k_coarser). Raises: ConfigError for a class that is none.
        """
        if label is None and not self.most:
            return self.terms(flat, None, temperature)
        options = range(self.most) if label is None else [self.checked(label)]
        # nats of all levels up to each, [#y, levels, B]
        sums = torch.stack(
            [
                torch.stack(self.terms(flat, flat.new_full((len(flat),), y).long(), temperature))
                for y in options
            ]
        ).cumsum(1)
        totals = math.log(len(options)) - (-sums).logsumexp(0)
        return list(totals.diff(dim=0, prepend=totals.new_zeros(1, len(flat))))

    @torch.no_grad()
    def draw(self, noise: Noise, label: int | None = None, temperature: float = 1.0) -> Tensor:
        """Codes int64 [B, P] of all levels up to its own, of a class or of any, each as often.

        Raises: ConfigError for a class that is none.
        """
        y = None
        if label is not None:
            y = torch.full_like(noise.ids, self.checked(label))
        elif self.most:
            y = noise.child("label").integers(0, self.most)
        return self._drawn(noise, y, temperature)

    @property
    def most(self) -> int:
        """How many classes there are, to this prior or to the one before."""
        return self.classes or (0 if self.given is None else self.given.most)

    def checked(self, label: int) -> int:
        """The class. Raises: ConfigError where it is none, or none is known."""
        if not self.most:
            raise ConfigError("this prior knows no classes; write generation.label=null")
        if not 0 <= label < self.most:
            raise ConfigError(
                f"classes are numbered from 0 to {self.most - 1}; got generation.label={label}"
            )
        return label

    def _drawn(self, noise: Noise, label: Tensor | None, temperature: float) -> Tensor:
        own, coarser = self.levels[-1], []
        if self.given is not None:
            before = self.given._drawn(noise, label, temperature)
            coarser = split(before, self.levels[:-1])
        s = self.network.condition(
            [_grid(part) for part in coarser], label if self.classes else None
        )
        found = drawn(self.network, s, noise.child(f"level {len(coarser)}"), temperature)
        return joined([*coarser, found.view(-1, *own.size)])

    def _codes(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        """Codes [B, h, w] of each level, and whether those of a sample are codes, bool [B]."""
        parts = split(flat[:, : self.places], self.levels)
        known = []
        valid = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        for part, level in zip(parts, self.levels, strict=True):
            codes = part.nan_to_num().round().clamp(0, level.codes - 1).long()
            valid = valid & (codes == part).view(len(flat), -1).all(1)
            known.append(_grid(codes))
        return known, valid


def _layout(level: Level) -> Layout:
    """(K, h, w) of a level; one place is a layout, too."""
    height, width = level.size or (1, 1)
    return level.codes, height, width


def _grid(codes: Tensor) -> Tensor:
    """[B, *size] -> [B, h, w]."""
    return codes if codes.dim() == 3 else codes[:, None, None]
