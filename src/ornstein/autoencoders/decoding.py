"""How an autoencoder generates: a code from its prior, and what the decoder says of it.

    z ~ p(z),  x = E[x|z] or a draw from p(x|z)

Gaussian codes have a prior, and −log p(x) a bound (`autoencoders/bounds.py`). Codes of a codebook
are drawn place by place, each as often as it was used there, until a prior is trained on them; that
law is one, too: −log p(x) ≤ −log p(z) − log p(x|z), z being the code of x. Other codes are drawn
from a Gaussian with their moments, under which no sample of the data has a likelihood.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.autoencoders.codec import Codec
    from ornstein.data.info import DataInfo
    from ornstein.nats import Nats
    from ornstein.noise import Noise


class Decoding(Choice):
    """Generation by one pass of the decoder.

    x: whether a sample is the mean of p(x|z) or a draw from it, which has its noise. samples: K of
    the bound on −log p(x): 1 is the ELBO; null for codes that have no law.
    """

    kind: Literal["decoding"] = "decoding"
    x: Literal["mean", "draw"] = "mean"
    samples: int | None = Field(
        None, ge=1, le=1_000_000, description="K, draws of z of the bound; 1: the ELBO; null: none"
    )

    @property
    def steps(self) -> int:
        """One."""
        return 1

    @property
    def evaluations(self) -> int:
        """Passes of the decoder for a sample."""
        return 1

    @property
    def words(self) -> str:
        """The sampler in a word or two."""
        return f"prior, {self.x} of p(x|z)"

    @property
    def stem(self) -> str:
        """The same, as a part of a file's name."""
        return f"prior-{self.x}"

    def __call__(self, model: Codec, info: DataInfo, noise: Noise) -> Iterator[Tensor]:
        """Yield the samples, [B, *info.shape] at the model's scale."""
        parameters = model.decode(model.draw(noise.child("prior")))
        law = model.likelihood
        if self.x == "mean":
            yield law.mean(parameters)  # type: ignore[operator]
        else:
            yield law.sample(parameters, noise.child("x"))  # type: ignore[operator]

    @property
    def no_law(self) -> str | None:
        """Plain codes have no law; of others, `samples` says how closely it is bounded."""
        if self.samples is not None:
            return None
        return "no bound is asked for; for codes that have a law, write generation.samples=100"

    def likelihood(self, model: Codec, info: DataInfo, x: Tensor, noise: Noise) -> Nats:
        """A bound on −log p(x), x [B, *info.shape] at the model's scale; of whole numbers it is of
        their probability, of what was binarised of the binary picture.

        Raises: ConfigError where codes or x have no law.
        """
        from ornstein.autoencoders.bounds import nats

        if self.samples is None:
            raise ConfigError(self.no_law or "")
        return nats(model, info, x, noise, self.samples)

    def latent(self, model: Codec, info: DataInfo) -> tuple[int, ...]:
        """The shape of one code."""
        return model.latent

    def encode(self, model: Codec, info: DataInfo, x: Tensor) -> Tensor:
        """The likeliest codes z [B, *latent] of x."""
        with torch.no_grad():
            return model.encode(x).z

    def decode(self, model: Codec, info: DataInfo, z: Tensor) -> Tensor:
        """E[x|z], [B, *info.shape] at the model's scale."""
        with torch.no_grad():
            return model.mean(z)

    def reconstruct(self, model: Codec, info: DataInfo, x: Tensor) -> Tensor:
        """E[x|z] for the likeliest code of x [B, *info.shape], all at the model's scale."""
        with torch.no_grad():
            return model.reconstruct(x)
