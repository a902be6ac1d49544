"""A perceptual term: reconstructions that a network of features sees as it sees the data.

    L = L_codec + w D · d(x, x̂),       x̂ = E[x|z],  d of `nn/perceptual.py`

D is how many values a sample has, so that w is nats for each of them, whatever the size: in the
loss of P. Esser et al. 2021, arXiv:2012.09841, and R. Rombach et al. 2022, arXiv:2112.10752, too, d
is added to the error of each value.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from ornstein.choice import Choice

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo
    from ornstein.nn.perceptual import PerceptualDistance


class Perceptual(Choice):
    """A distance between features of a network that is on this machine; nothing is downloaded.

    features: `random`, convolutions with random weights, or the path of a safetensors file, see
    `nn/perceptual.py`: of a VGG network, or a classifier of your data as
    `ornstein.features.perceptual.write` keeps it. The run keeps what it was trained with. weight:
    w, nats for each value of a sample.
    """

    features: str = Field("random", min_length=1, description="random, or a safetensors file")
    weight: float = Field(0.1, ge=0, description="w, nats for each value of a sample")

    @field_validator("features")
    @classmethod
    def _from_anywhere(cls, features: str) -> str:
        # A run is opened from other folders than the one that it was made in.
        if features == "random":
            return features
        try:
            return str(Path(features).expanduser().absolute())
        except (OSError, RuntimeError) as error:  # ~nobody, or the folder that we are in is gone
            raise ValueError(f"{features!r} is not a path: {error}") from error

    def build(self, info: DataInfo) -> PerceptualDistance:
        """d(x, y) of images at the model's scale, as `info` is.

        Raises: ConfigError for a file that holds no such network, and data that it cannot see.
        """
        from ornstein.nn.perceptual import PerceptualDistance, random_features, read_features

        if self.features == "random":
            return PerceptualDistance(random_features(info))
        return PerceptualDistance(read_features(Path(self.features), info))
