"""The objectives of models of sequences: jumps between two times, and whole sequences.

    jumps       −J of notes eq 14 at t₁ < t₂, in nats: a bound on −log p(x_t₂|x_≤t₁)
    sequence    the bound on −log p(x_1 ... x_T), step by step

The length of a jump is uniform in 1 ... J, and t₁ is then uniform in 0 ... T − length, where t₁ = 0
is the belief about no past (K. Gregor et al. 2019, arXiv:1806.03107, §5; `autoencoders/jumps.py`
has the theory). A sequence gives several pairs: what costs time is the belief, which they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ornstein.choice import Choice, Load
from ornstein.errors import ConfigError
from ornstein.lazy import torch
from ornstein.objectives.base import Context, Loss

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.autoencoders.jumps import Terms
    from ornstein.autoencoders.rollout import StateModel
    from ornstein.autoencoders.tdvae_model import TDVAEModule
    from ornstein.data.info import Batch, DataInfo
    from ornstein.noise import Noise


class Jumps(Choice):
    """−J averaged over `pairs` of times of each sequence; nats per jump.

    Metrics: `nats`, `kl` and `jump`, its three parts.
    """

    kind: Literal["jumps"] = "jumps"
    pairs: int = Field(8, ge=1, le=1000, description="of times, of each sequence at each update")

    @property
    def range(self) -> tuple[float, float]:
        """The range in which bounded data must arrive."""
        return (-1.0, 1.0)

    def build(self, model: Any, info: DataInfo, load: Load) -> Jumps:
        """The objective itself. Raises: ConfigError for a model that makes no jumps."""
        from ornstein.autoencoders.tdvae_model import TDVAEModule

        if not isinstance(model, TDVAEModule):
            raise ConfigError(
                "this model goes step by step and has no jumps to learn; write "
                "objective.kind=sequence, or model.kind=td_vae"
            )
        return self

    def __call__(self, model: TDVAEModule, batch: Batch, context: Context) -> Loss:
        """The loss of one sequence each."""
        from ornstein.autoencoders.jumps import bound

        noise = context.noise
        x = model.law.seen(batch.x, noise.child("binarise"))
        b = model.beliefs(x)
        first, jump = times(noise.child("times"), x.shape[1], model.reach, self.pairs)
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        later = first + jump
        frames = x[rows, later - 1]
        terms = bound(model, b[rows, first], b[rows, later], frames, jump, noise.child("states"))
        return _loss(terms._replace(**{k: v.mean(1) for k, v in terms._asdict().items()}))


class WholeSequence(Choice):
    """The bound on −log p(x) of whole sequences; nats per sequence.

    Metrics: `nats`, `kl` and `jump`, its parts (`jump` is zero for a model that filters).
    """

    kind: Literal["sequence"] = "sequence"

    @property
    def range(self) -> tuple[float, float]:
        """The range in which bounded data must arrive."""
        return (-1.0, 1.0)

    def build(self, model: Any, info: DataInfo, load: Load) -> WholeSequence:
        """The objective itself."""
        return self

    def __call__(self, model: StateModel, batch: Batch, context: Context) -> Loss:
        """The loss of one sequence each."""
        x = model.law.seen(batch.x, context.noise.child("binarise"))
        return _loss(model.bound(x, x, context.noise.child("states")))


def times(noise: Noise, frames: int, reach: int, pairs: int) -> tuple[Tensor, Tensor]:
    """t₁ and t₂ − t₁ of `pairs` jumps in each sequence of so many frames, int64 [B, pairs]."""
    jump = 1 + noise.integers(0, reach, (pairs,))
    first = (noise.bits(1, pairs) * (frames - jump + 1)) >> 32
    return first, jump


def _loss(terms: Terms) -> Loss:
    parts = terms._asdict()
    count = float(len(terms.nats))
    total = terms.nats + terms.kl + terms.jump
    return Loss(total, {name: (value.detach().sum(), count) for name, value in parts.items()})
