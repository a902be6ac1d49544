"""What a likelihood is measured in: nats per sample, and bits per dimension.

    −log p(x)  in nats of one sample, always; with its parts, where it is a sum
    bits/dim = nats / (D ln 2)

For data of whole numbers (8-bit images) p is a probability of exactly these numbers, so that no
bin width appears. For real numbers it is a density of them in the units that they are stored in,
and its bits/dim may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import DataInfo
    from ornstein.noise import Noise


class Nats(NamedTuple):
    """parts: what −log p(x), or a bound on it, is the sum of; by name, in nats, float64 [B].
    exact: whether it is −log p(x) itself, up to numerical error, and no bound. error: the standard
    error [B] of each sample's total, where random probes or draws estimate a part and say how
    well."""

    parts: Mapping[str, Tensor]
    exact: bool
    error: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """−log p(x) or its bound, in nats, [B]."""
        total, *rest = self.parts.values()
        for part in rest:
            total = total + part
        return total


@runtime_checkable
class Likelihood(Protocol):
    """A way of generating whose samples may have a law that can be computed, or bounded."""

    @property
    def no_law(self) -> str | None:
        """Why there is no such law, in a sentence; None where there is one."""

    def likelihood(self, model: Any, info: DataInfo, x: Tensor, noise: Noise) -> Nats:
        """−log p of x [B, *info.shape], which is at the model's scale, as `info` is.

        Where `info.bins` says that the values are discrete, p is the probability of these values;
        otherwise the density at the model's scale. Raises: ConfigError with `no_law` as its
        sentence, where it says why not.
        """


def bits_per_dim(nats: float, shape: tuple[int, ...]) -> float:
    """Nats per sample as bits per dimension, for samples of this shape."""
    return nats / (math.prod(shape) * math.log(2))
