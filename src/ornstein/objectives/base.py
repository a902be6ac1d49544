"""The contract between a method and the trainer.

An objective is a function of (model, batch, context) that returns one loss *per sample*. The
trainer reduces over the global batch, Σ per_sample / B, so that accumulation and the number of
ranks change nothing; whatever else has to be reduced is returned as sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ornstein.data.info import Batch
    from ornstein.noise import Noise


class Context(NamedTuple):
    """Where training is: `step` (updates done), `progress` in [0, 1], and the randomness of this
    part of the global batch, the same for any number of ranks or micro-batches. totals: what `Look`
    found, summed over the global batch; None where this batch is all of it, or nobody looks."""

    step: int
    progress: float
    noise: Noise
    totals: Mapping[str, Tensor] | None = None


class Loss(NamedTuple):
    """per_sample: [B], what is minimised. metrics: name -> (sum, count), reported as sum/count
    over the global batch. stats: tensors that are summed over the global batch and handed to
    `after_step`, for what has no gradient."""

    per_sample: Tensor
    metrics: Mapping[str, tuple[Tensor, float]] = {}
    stats: Mapping[str, Tensor] = {}


class Objective(Protocol):
    """What is minimised. It is a frozen choice, or a module when it owns weights."""

    @property
    def range(self) -> tuple[float, float] | None:
        """The range in which bounded data must arrive; None for the data's own values."""

    def __call__(self, model: Any, batch: Batch, context: Context) -> Loss: ...


@runtime_checkable
class Look(Protocol):
    """An objective with a part that is no sum over samples, such as a function of a mean over the
    global batch: its sums are made in a pass of their own, without gradients, and handed to the
    objective as `context.totals`. An update that is one batch on one rank is spared that pass."""

    @property
    def looks(self) -> bool:
        """Whether there is such a part."""

    def look(self, model: Any, batch: Batch, context: Context) -> Mapping[str, Tensor]:
        """Sums over these samples."""


@runtime_checkable
class AfterStep(Protocol):
    """An objective with something to do after each update, without gradients: codebooks,
    restarts of dead codes, target networks. `stats` are summed over the global batch, and the
    context's noise is that of one sample, the same on all ranks."""

    def after_step(self, model: Any, stats: Mapping[str, Tensor], context: Context) -> None: ...
