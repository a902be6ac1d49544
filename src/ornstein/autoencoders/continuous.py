"""Codes that are numbers: all of them, the k largest, or Gaussians.

    plain      z = a(h)
    top-k      z_j = h_j where h_j is among the k largest of its sample, else 0
    gaussian   z = μ + s ε,   KL(N(μ, s²) ‖ N(0, 1)) = ½ (μ² + s² − 1 − log s²) for each number

Plain and k-sparse codes have no prior. What stands in for one is a Gaussian with the mean and the
covariance that the codes had in training (P. Ghosh et al. 2019, "From variational to deterministic
autoencoders", arXiv:1903.12436, §4); of codes with a layout, the same at each place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ornstein.autoencoders.codec import Code
from ornstein.errors import ConfigError
from ornstein.noise import Noise

WATCHED = 16  # samples of each update whose codes are looked at, the first of the global batch
HORIZON = 1000  # updates: older codes count for less and less
FLAT = 30.0  # log variances stay within ±FLAT: beyond, float32 has nothing to say

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda h: h,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


class PlainModule(nn.Module):
    """h [B, units, *] -> z = a(h)."""

    def __init__(self, latent: tuple[int, ...], activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self.moments = Moments(latent[0])

    def forward(self, h: Tensor, noise: Noise | None = None) -> Code:
        z = _ACTIVATIONS[self.activation](h)
        return Code(z, stats={} if noise is None else self.moments.sums(z, noise))

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """Gaussian codes with the moments of those seen in training, within what a code can be."""
        z = self.moments.draw(noise, shape)
        low, high = {"sigmoid": (0, 1), "relu": (0, None), "tanh": (-1, 1)}.get(
            self.activation, (None, None)
        )
        return z if low is None else z.clamp(low, high)

    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Keep the moments of the codes."""
        self.moments.add(stats)


class TopKModule(nn.Module):
    """h [B, units, *] -> the k largest of each sample's numbers, the others 0.

    start: times k are kept at first, and k from half of the training on. evaluated: times k are
    kept in eval mode. Raises: ConfigError where there are fewer than k.
    """

    now: Tensor

    def __init__(
        self, latent: tuple[int, ...], k: int, start: float = 1.0, evaluated: float = 1.0
    ) -> None:
        super().__init__()
        units = math.prod(latent)
        if k > units:
            raise ConfigError(
                f"a code of {units} numbers has no {k} largest; write model.units={k} or more, "
                "or a smaller model.bottleneck.k"
            )
        self.k, self.start = k, min(units, round(k * start))
        self.evaluated = min(units, round(k * evaluated))
        self.register_buffer("now", torch.tensor(self.start))
        self.moments = Moments(latent[0])

    def forward(self, h: Tensor, noise: Noise | None = None) -> Code:
        flat = h.flatten(1)
        k = int(self.now) if self.training else self.evaluated
        kept = flat.topk(k, dim=1, sorted=False).indices
        # Values and gradients alike: what is not gathered has neither.
        z = torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).view_as(h)
        return Code(z, stats={} if noise is None else self.moments.sums(z, noise))

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """The k largest numbers of Gaussian codes with the moments of those seen in training."""
        code: Code = self(self.moments.draw(noise, shape))
        return code.z

    def anneal(self, progress: float) -> None:
        """Keep fewer as training goes on."""
        self.now.fill_(max(self.k, round(self.start + 2 * progress * (self.k - self.start))))

    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Keep the moments of the codes."""
        self.moments.add(stats)


class GaussianModule(nn.Module):
    """h [B, 2 units, *] -> a draw from N(μ, s²), where h holds μ and log s²; without noise, μ."""

    def __init__(self, latent: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, h: Tensor, noise: Noise | None = None) -> Code:
        fine = h.to(torch.promote_types(h.dtype, torch.float32))
        mean, log_variance = fine.chunk(2, dim=1)
        log_variance = log_variance.clamp(-FLAT, FLAT)
        std = torch.exp(0.5 * log_variance)
        kl = 0.5 * (mean.square() + std.square() - 1 - log_variance).flatten(1).sum(1)
        z = mean if noise is None else mean + std * noise.normal(0, mean.shape[1:], mean.dtype)
        return Code(z, kl, mean, std)

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """N(0, I)."""
        return noise.normal(0, shape)

    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Nothing: what is to be learned has a gradient."""


class Moments(nn.Module):
    """Mean [C] and second moments [C, C] of what was seen lately, the newest HORIZON updates or so.

    Its sums look at the first WATCHED samples of each global batch: that is enough over many
    updates, and nearly free.
    """

    mean: Tensor
    second: Tensor
    updates: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("second", torch.eye(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def sums(self, z: Tensor, noise: Noise) -> dict[str, Tensor]:
        """What `add` is to be given, summed over parts of the batch; z [B, C, *]."""
        watched = noise.ids[:WATCHED] < WATCHED  # in any split, those at the first positions
        rows = z.detach()[:WATCHED].float() * watched.view(-1, *[1] * (z.dim() - 1))
        flat = rows.movedim(1, -1).reshape(-1, z.shape[1])
        places = math.prod(z.shape[2:])
        return {
            "moments/count": watched.sum().float() * places,
            "moments/sum": flat.sum(0),
            "moments/outer": flat.T @ flat,
        }

    def add(self, stats: Mapping[str, Tensor]) -> None:
        """Take the sums of one update into account."""
        self.updates += 1
        share = 1 / self.updates.clamp(max=HORIZON).float()
        count = stats["moments/count"]
        self.mean.lerp_(stats["moments/sum"] / count, share)
        self.second.lerp_(stats["moments/outer"] / count, share)

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        """Gaussian numbers [B, *shape] with these moments, alike and independent at each place."""
        covariance = self.second.double() - torch.outer(self.mean, self.mean).double()
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()).T.to(self.mean.dtype)
        z: Tensor = noise.normal(0, shape).movedim(1, -1) @ root + self.mean
        return z.movedim(-1, 1)
