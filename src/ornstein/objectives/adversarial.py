"""An adversarial term: reconstructions that a discriminator of patches takes for data.

    L = L_codec + w D · (−mean d_sg[θ](x̂))  +  ½ mean relu(1 − d_θ(x)) + ½ mean relu(1 + d_θ(sg[x̂]))

d has a number for each patch, means are over the patches of a sample, D is how many values a sample
has, and sg stops the gradient. P. Esser et al. 2021, "Taming transformers for high-resolution image
synthesis", arXiv:2012.09841, §3.2; R. Rombach et al. 2022, arXiv:2112.10752, §3.1 and appendix G;
the hinge loss is that of J. Lim, J. Ye 2017, arXiv:1705.02894.

Both players are in one loss, with one backward pass and one optimizer: the codec's gradient is that
of its own terms exactly, since weights θ are constants there, and the discriminator's that of the
hinge loss, since x̂ is a constant there. The papers choose w anew in each update, as the ratio of
two gradients at the decoder's last layer. That takes a second backward pass, and w here is fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from ornstein.choice import Choice
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo
    from ornstein.objectives.adversarial_loss import AdversarialLoss


class Adversarial(Choice):
    """A patch discriminator, which the objective owns and trains.

    channels: of its convolutions; with n of them it judges squares of 16, 34 or 70 pixels a side
    for n = 2, 3, 4. weight: w, nats for each value of a sample. start: after which share of the
    training both terms count; before, the codec has nothing that is worth judging. (A length in
    minutes is measured without them where `start` is above 0.)
    """

    channels: tuple[int, ...] = Field((32, 64), description="of its convolutions, the first first")
    weight: float = Field(0.01, ge=0, description="w, nats for each value of a sample")
    start: float = Field(0.5, ge=0, lt=1, description="share of the training")

    @field_validator("channels")
    @classmethod
    def _some(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not channels or not all(1 <= width <= 8192 for width in channels):
            raise ValueError(f"at least one convolution, of 1 to 8192 channels; got {channels}")
        return channels

    def build(self, info: DataInfo) -> AdversarialLoss:
        """The term with its discriminator. Raises: ConfigError for data that are no images, or are
        too small."""
        from ornstein.objectives.adversarial_loss import AdversarialLoss

        if info.kind != "image":
            raise ConfigError(
                f"a discriminator of patches is for images, and {info.name} holds {info.kind} "
                "data; write objective.adversarial=null"
            )
        return AdversarialLoss(self, info.shape)
