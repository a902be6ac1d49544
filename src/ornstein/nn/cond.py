"""The four ways in which a condition can enter a network."""

from typing import NamedTuple

from torch import Tensor


class Cond(NamedTuple):
    """A condition as networks take it; each field may be absent.

    vector: [B, D], added to the embedding of the noise label.
    tokens, mask: [B, N, D] and bool [B, N], attended.
    image: [B, C, H, W], concatenated to the input.
    residuals: feature maps added to the skip connections.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    image: Tensor | None = None
    residuals: tuple[Tensor, ...] | None = None


NO_COND = Cond()
