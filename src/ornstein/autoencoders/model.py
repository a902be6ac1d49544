"""The autoencoder as it is chosen: nets, a bottleneck and a likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.autoencoders.bottlenecks import FSQ, BottleneckChoice, Gaussian, Hierarchy
from ornstein.autoencoders.likelihoods import LikelihoodChoice, Normal
from ornstein.choice import Choice, Load
from ornstein.nn.codecnets import CodecNet, Conv, Dense

if TYPE_CHECKING:
    from ornstein.autoencoders.codec import Codec
    from ornstein.data.info import DataInfo, Measure


class Autoencoder(Choice):
    """nets + bottleneck + likelihood, a `Codec` once it is built.

    nets: null for some that suit the data's shape. units: numbers of a code, or of each of its
    places where the nets keep the picture's layout; with `fsq`, as many as it has levels.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    nets: CodecNet | None = None
    units: int = Field(32, ge=1, le=1_000_000, description="numbers of a code, or of a place of it")
    bottleneck: BottleneckChoice = Gaussian()
    likelihood: LikelihoodChoice = Normal()

    def fitted(self, info: DataInfo, farthest: Measure | None = None) -> Autoencoder:
        """This choice with the nets filled in, if they were left to the data."""
        units = len(self.bottleneck.levels) if isinstance(self.bottleneck, FSQ) else self.units
        flat = not isinstance(self.bottleneck, Hierarchy)
        nets = self.nets or (Conv(flat=flat) if len(info.shape) == 3 else Dense())
        return self.model_copy(update={"nets": nets, "units": units})

    def build(self, info: DataInfo, load: Load) -> Codec:
        """The untrained model. Raises: ConfigError for parts that do not go together."""
        from ornstein.autoencoders.codec import Codec

        fitted = self.fitted(info)
        assert fitted.nets is not None
        features = fitted.units * self.bottleneck.features
        encoder, decoder, latent = fitted.nets.build(
            info.shape,
            fitted.units,
            features,
            self.likelihood.multiplier,
            info.range[0] if info.range else 0.0,
        )
        return Codec(
            encoder, self.bottleneck.build(latent), decoder, self.likelihood.build(info), latent
        )
