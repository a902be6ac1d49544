"""A codec: what is seen becomes a code, and a code becomes a law of what may have been seen.

    x  --encoder-->  h  --bottleneck-->  z  --decoder-->  p(x|z)

Every autoencoder is one of these. The nets say how features are found; the bottleneck says what a
code may be (any numbers, a few of them, Gaussians, entries of a codebook), and what it costs; the
likelihood says what the decoder's outputs mean. x is at the model's scale, [−1, 1] for bounded
data, and z is [B, units] or [B, units, h, w].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ornstein.noise import Noise


class Code(NamedTuple):
    """What a bottleneck makes of features; leading dimension B.

    z: what the decoder gets. kl: KL(q(z|x) ‖ p(z)) in nats, [B], where the code is a law; of an
    entry of a codebook −log p(z), once it is not trained any more.
    mean, std: of q(z|x), like z, where it is Gaussian. indices: int64 [B, *places], where z is
    made of a codebook; of several, flat [B, P] (`discrete.joined`). penalties: name -> [B],
    weighted, to be minimised. stats: sums over the samples, of which `after_step` gets the sums
    over the global batch.
    """

    z: Tensor
    kl: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    indices: Tensor | None = None
    penalties: Mapping[str, Tensor] = {}
    stats: Mapping[str, Tensor] = {}


class Bottleneck(Protocol):
    """A module between encoder and decoder."""

    def __call__(self, h: Tensor, noise: Noise | None = None) -> Code:
        """The code of features h [B, features, *]; without noise the likeliest one."""

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """Codes z [B, *shape] from the prior, or from what stands in for one."""

    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Whatever is learned without a gradient, after each update. stats: summed over the global
        batch. noise: of one sample, the same on all ranks, another at each update."""


@runtime_checkable
class Anneals(Protocol):
    """A bottleneck that changes as training goes on."""

    def anneal(self, progress: float) -> None:
        """Be as is right at this share of the training; asked after each update."""


class Likelihood(Protocol):
    """A module that says what the decoder's outputs mean."""

    @property
    def density(self) -> bool:
        """Whether p(x|z) is a density of real numbers, and no probability."""

    @property
    def no_law(self) -> str | None:
        """Why `nats` is no −log p(x|z), in a sentence; None where it is."""

    def seen(self, x: Tensor, noise: Noise) -> Tensor:
        """x as the model is to see it: binarised, where that is what is modelled."""

    def nats(self, parameters: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z) in nats, [B], from the decoder's outputs [B, multiplier · C, *]."""

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z], [B, C, *], at the model's scale."""

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """A draw from p(x|z), [B, C, *], at the model's scale."""


class Codec(nn.Module):
    """encoder, bottleneck, decoder and likelihood; `latent` is the shape of one z."""

    def __init__(
        self,
        encoder: nn.Module,
        bottleneck: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        latent: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.bottleneck, self.likelihood = bottleneck, likelihood
        self.latent = latent

    def encode(self, x: Tensor, noise: Noise | None = None) -> Code:
        """The code of x [B, *shape]: a draw where it is random, the likeliest one without noise."""
        code: Code = self.bottleneck(self.encoder(x), noise)
        return code

    def decode(self, z: Tensor) -> Tensor:
        """The parameters of p(x|z), [B, multiplier · C, *], of z [B, *latent]."""
        out: Tensor = self.decoder(z)
        return out

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], [B, *shape]."""
        return self.likelihood.mean(self.decode(z))  # type: ignore[no-any-return, operator]

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] for the likeliest code of x [B, *shape]."""
        return self.mean(self.encode(x).z)

    @torch.no_grad()
    def draw(self, noise: Noise) -> Tensor:
        """Codes z [B, *latent] from the prior, or from what stands in for one."""
        return self.bottleneck.draw(noise, self.latent)  # type: ignore[no-any-return, operator]
