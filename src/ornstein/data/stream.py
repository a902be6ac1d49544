"""The order of training samples, as a pure function of (seed, position).

Position p of the stream is sample number (p mod n) of a random order of the training split that
depends on (seed, epoch p // n) only, varied by random numbers of (seed, p). Nothing about it has
to be saved, and any number of ranks or workers that ask for parts of the same positions see the
same data. The order is never written out, some thousand places of it are looked up at a time, see
`noise.Shuffle`: that of ten million samples takes no more memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from ornstein.noise import Noise, Shuffle

if TYPE_CHECKING:
    from ornstein.data.augment import Augment
    from ornstein.data.info import Batch, Dataset


BLOCK = 4096
"""How many places of the order are looked up at once: one by one, each would take longer."""


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
        def order(epoch: int) -> Shuffle:
            return Shuffle.of(seed, "data order", epoch, count)

        @lru_cache(maxsize=2)
        def block(epoch: int, number: int) -> np.ndarray:
            places = torch.arange(number * BLOCK, min((number + 1) * BLOCK, count))
            chosen: np.ndarray = dataset.train[order(epoch)(places).numpy()]
            return chosen

        self._block = block

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
            epoch, place = divmod(position, n)
            number, offset = divmod(place, BLOCK)
            parts.append(self._block(epoch, number)[offset : offset + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
