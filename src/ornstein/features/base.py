"""What an extractor is: samples in, features out.

A distance of means and covariances is only as good as the space it is taken in, so the extractor
is part of every score: by name, and by the SHA-256 of its weights where it has any.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError


class Extractor(Protocol):
    """Anything that turns samples into features."""

    @property
    def name(self) -> str:
        """What it is called in every score; with 12 digits of `weights`, if it has weights."""
        ...

    @property
    def weights(self) -> str | None:
        """SHA-256 of its weights."""
        ...

    @property
    def accuracy(self) -> float | None:
        """The fraction of held-out samples whose class it names rightly, if it knows classes."""
        ...

    @property
    def published(self) -> bool:
        """Whether it is the network that published scores are measured with, which alone gives
        FID, KID and Inception Score by these names."""
        ...

    def features(self, x: np.ndarray) -> Tensor:
        """Features float64 [N, D] of samples [N, *shape] in the data's native values."""
        ...

    def probabilities(self, features: Tensor) -> Tensor | None:
        """Class probabilities float64 [N, K] for features [N, D]; None if it knows no classes."""
        ...


def chunks(count: int, size: int = 1024) -> list[slice]:
    """The parts in which `count` samples are looked at; one for none."""
    return [slice(i, i + size) for i in range(0, max(count, 1), size)]


def check_shape(x: np.ndarray, info: DataInfo) -> None:
    """Raises: ConfigError for samples of another shape than the data's."""
    if tuple(x.shape[1:]) != info.shape:
        raise ConfigError(
            f"{info.name} has samples of shape {list(info.shape)}, not {list(x.shape[1:])}"
        )
