"""The order of training samples, as a pure function of (seed, position).

Position p of the stream is sample number (p mod n) of a random order of the training split that
depends on (seed, epoch p // n) only, varied by random numbers of (seed, p). Nothing about it has
to be saved, and any number of ranks or workers that ask for parts of the same positions see the
same data.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ornstein.noise import Noise, permutation

if TYPE_CHECKING:
    from ornstein.data.augment import Augment
    from ornstein.data.info import Batch, Dataset


class Source(Protocol):
    """What the trainer asks for data: the samples at `position`, ..., `position + count - 1`."""

    def at(self, position: int, count: int) -> Batch: ...


class Stream:
    """The training split of a data set in its endless random order, at the scale of `scale`.

    augment: how samples are varied; None, or one that asks for nothing, leaves them as they are.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        scale: tuple[float, float] | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.dataset = dataset
        self.scale = scale
        self._seed = seed
        self._augment = augment if augment is not None and augment.wanted else None
        count = len(dataset.train)

        @lru_cache(maxsize=2)  # a batch may straddle two epochs
        def order(epoch: int) -> np.ndarray:
            chosen: np.ndarray = dataset.train[
                permutation(seed, "data order", epoch, count).numpy()
            ]
            return chosen

        self._order = order

    def at(self, position: int, count: int) -> Batch:
        batch = self.dataset.batch(self.ids(position, count), self.scale)
        if self._augment is None or count == 0:
            return batch
        noise = Noise.of(self._seed, "augment", range(position, position + count))
        return batch._replace(x=self._augment(batch.x, noise))

    def ids(self, position: int, count: int) -> np.ndarray:
        """The sample numbers at these positions, int64 [count]."""
        n = len(self.dataset.train)
        parts = []
        while count > 0:
            epoch, offset = divmod(position, n)
            taken = min(count, n - offset)
            parts.append(self._order(epoch)[offset : offset + taken])
            position, count = position + taken, count - taken
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
