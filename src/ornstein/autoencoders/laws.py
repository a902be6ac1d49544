"""What the decoder's outputs mean: laws p(x|z) of x, value by value, at the model's scale.

    normal      −log N(x; m, s²) = ½ ((x − m)/s)² + log s + ½ log 2π               a density
    bernoulli   −log p = −u log σ(l) − (1 − u) log(1 − σ(l)), u = 0 or 1           a probability
    logistic    −log P = −log [σ((x + w/2 − m)/s) − σ((x − w/2 − m)/s)]            a probability

Nats are sums over the values of a sample, [B], and outputs are [B, multiplier · C, *]. A density of
whole numbers, w apart, bounds their probability once they are given uniform noise within their bins
(`bounds.py`); the other two need none. Everything here is float32 at least.

The difference of the logistic law has no digits left where both of its terms are near 0 or near 1.
With a = (x − w/2 − m)/s and b = a + w/s it is

    log [σ(b) − σ(a)] = −softplus(a) − softplus(−b) + log(1 − e^{−w/s})

which is exact to rounding everywhere, and so is its gradient. The first bin has no a, the last one
no b: they reach to infinity, and the probabilities add up to one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError
from ornstein.noise import Noise

NARROW = 20.0  # bins are at most so many scales wide: the mass of one is then all but 1 by e^-10


class NormalModule(nn.Module):
    """N(m, std²) for each value, m the decoder's outputs; a density at the model's scale.

    std: the same for all values, at the model's scale; None for one number that is learned and
    starts at the data's. That one has noise of w²/12, what rounding adds, below it where data are
    whole numbers, w apart: their density would otherwise grow without a bound.
    """

    density = True
    no_law: str | None = None

    def __init__(self, info: DataInfo, std: float | None) -> None:
        super().__init__()
        low, high = info.range or (0.0, 0.0)
        width = 0.0 if info.bins is None else (high - low) / (info.bins - 1)
        self.fixed, self.rounding = std, width**2 / 12
        if std is None:
            self.log_std = nn.Parameter(torch.tensor(math.log(info.std)))

    @property
    def std(self) -> Tensor:
        """The standard deviation, a number."""
        if self.fixed is not None:
            return torch.tensor(self.fixed, dtype=torch.float64)
        return (torch.exp(2 * self.log_std) + self.rounding).sqrt()

    def seen(self, x: Tensor, noise: Noise) -> Tensor:
        """x itself."""
        return x

    def nats(self, parameters: Tensor, x: Tensor) -> Tensor:
        """−log N(x; m, std²) in nats, [B]."""
        mean = fine(parameters)
        std = self.std.to(mean)
        z = (x - mean) / std
        nats = 0.5 * z.square().flatten(1).sum(1)
        return nats + mean[0].numel() * (torch.log(std) + 0.5 * math.log(2 * math.pi))

    def mean(self, parameters: Tensor) -> Tensor:
        """m."""
        return fine(parameters)

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """m + std ε."""
        mean = fine(parameters)
        return mean + self.std.to(mean) * noise.normal(0, mean.shape[1:], mean.dtype)


class BernoulliModule(nn.Module):
    """Each value is one end of the data's range or the other: P(high) = σ(l), l the outputs.

    The probability of a binary image, that is of x as `seen` makes it. Raises: ConfigError for data
    without a range.
    """

    density = False

    def __init__(self, info: DataInfo, binarise: Literal["random", "threshold", "none"]) -> None:
        super().__init__()
        if info.range is None:
            raise ConfigError(
                f"data {info.name!r} have no range, and a Bernoulli likelihood needs two ends of "
                "one; write model.likelihood=normal"
            )
        self.low, self.span = info.range[0], info.range[1] - info.range[0]
        self.binarise = binarise

    @property
    def no_law(self) -> str | None:
        """Why these nats are no −log p; None where they are."""
        if self.binarise == "none":
            return (
                "cross-entropy with grey values is no likelihood of anything; "
                "write model.likelihood.binarise=random"
            )
        return None

    def share(self, x: Tensor) -> Tensor:
        """u = (x − low)/(high − low)."""
        return (fine(x) - self.low) / self.span

    def seen(self, x: Tensor, noise: Noise) -> Tensor:
        """x [B, *] made binary, low or high: by a draw of its own for each value, or at ½."""
        if self.binarise == "none":
            return x
        u = self.share(x)
        cut = noise.masking(0, x.shape[1:]).to(u) if self.binarise == "random" else 0.5
        binary = (u > cut).to(x.dtype).mul_(self.span).add_(self.low)
        return binary.add_(x, alpha=0)  # what is not a number stays so

    def nats(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The cross-entropy of σ(l) with u in nats, [B]; −log P(x|z) where x is binary."""
        logits = fine(parameters)
        u = self.share(x).to(logits.dtype)
        nats = F.binary_cross_entropy_with_logits(logits, u, reduction="none")
        return nats.flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """low + (high − low) σ(l)."""
        return self.low + self.span * torch.sigmoid(fine(parameters))

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """low or high for each value."""
        chance = torch.sigmoid(fine(parameters))
        drawn = noise.uniform(0, chance.shape[1:], chance.dtype) < chance
        return self.low + self.span * drawn.to(chance.dtype)


class LogisticModule(nn.Module):
    """Whole numbers by a logistic law of location m and scale s, integrated over the bin of each:
    the probability of exactly these numbers.

    scale: `channel` learns a scale for each channel (for each place of a vector), `value` has the
    decoder say one for each value, in the second half of its channels. Both start at the data's
    spread. Raises: ConfigError for data that are no whole numbers.
    """

    density = False
    no_law: str | None = None

    def __init__(self, info: DataInfo, scale: Literal["channel", "value"]) -> None:
        super().__init__()
        if info.range is None or info.bins is None:
            raise ConfigError(
                f"data {info.name!r} are no whole numbers, and a discretised logistic likelihood "
                "needs the bins of some; write model.likelihood=normal"
            )
        self.low, self.high = info.range
        self.width = (self.high - self.low) / (info.bins - 1)
        self.start = math.log(info.std * math.sqrt(3) / math.pi)  # of a law with the data's std
        self.log_scale = None
        if scale == "channel":
            channels = (info.shape[0], *[1] * (len(info.shape) - 1))
            self.log_scale = nn.Parameter(torch.full(channels, self.start))

    def law(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, [B, C, *] or ready to broadcast to it."""
        found = fine(parameters)
        if self.log_scale is not None:
            location, log_scale = found, self.log_scale.to(found)
        else:
            location, log_scale = found.chunk(2, dim=1)
            log_scale = log_scale + self.start
        # No clamp, whose gradient would be 0 beyond it.
        return location, torch.exp(log_scale) + self.width / NARROW

    def seen(self, x: Tensor, noise: Noise) -> Tensor:
        """x itself."""
        return x

    def nats(self, parameters: Tensor, x: Tensor) -> Tensor:
        """−log P(x|z) in nats, [B]."""
        location, scale = self.law(parameters)
        half = 0.5 * self.width
        first, last = x < self.low + half, x > self.high - half
        below, above = (x - half - location) / scale, (x + half - location) / scale
        inside = torch.log(-torch.expm1(-self.width / scale)).expand_as(location)
        # −softplus(v) = logsigmoid(−v), which torch computes without a threshold.
        found = F.logsigmoid(-below).masked_fill(first, 0)
        found = found + F.logsigmoid(above).masked_fill(last, 0)
        return -(found + inside.masked_fill(first | last, 0)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of the law whose tails beyond the range lie at its ends, before it is rounded:
        low + ∫ P(X > t) dt over the range. Rounding changes it by half a bin at the very most."""
        location, scale = self.law(parameters)
        reach = [F.softplus((location - end) / scale) for end in (self.low, self.high)]
        return self.low + scale * (reach[0] - reach[1])

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """A value of the data for each."""
        location, scale = self.law(parameters)
        u = noise.uniform(0, location.shape[1:], location.dtype)
        place = (location + scale * torch.logit(u) - self.low) / self.width
        return (self.low + self.width * place.round()).clamp(self.low, self.high)


def fine(values: Tensor) -> Tensor:
    """float32 at least: half precision has no digits for sums over an image."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
