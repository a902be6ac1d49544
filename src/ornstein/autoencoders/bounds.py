"""What a Gaussian code says of log p(x): the evidence lower bound, and importance sampling.

    p(x) = ∫ p(x|z) p(z) dz,   p(z) = N(0, I),   q(z|x) = N(μ(x), s(x)²)              (notes eq 5)

    ELBO    log p(x) ≥ E_q log p(x|z) − KL(q(z|x) ‖ p(z))                          (notes eq 6-7)
    IWAE    log p(x) ≥ E log 1/K Σ_k w_k,   w_k = p(x|z_k) p(z_k)/q(z_k|x),   z_k ~ q(z|x)

(D. Kingma, M. Welling 2013, arXiv:1312.6114; D. Rezende et al. 2014, arXiv:1401.4082, §4.3 and app.
E; Y. Burda et al. 2015, "Importance weighted autoencoders", arXiv:1509.00519, theorem 1). The
bound rises with K and tends to log p(x) where the weights are bounded. "IWAE of K samples" and "log
p by importance sampling" are one estimator at different K; K = 1 is the ELBO, of which the KL
divergence is taken in closed form. What is here is −log p, in nats per sample.

The model's law of data with bins is P(x) = ∫ p(y) dy over the bin of each value. Where p(x|z) is a
density, y = x + w (u − ½) with u uniform is drawn as z is, and 1/q(y|x) = w^D joins the weights:
the same bound on P(x) for each K, and as tight in the end (L. Theis et al. 2016, arXiv:1511.01844,
is the case K = 1). The encoder sees x itself. A likelihood that is a probability needs none.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ornstein.autoencoders.codec import Code, Codec, Likelihood
from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError
from ornstein.nats import Nats
from ornstein.noise import Noise

VALUES = 1 << 20  # values of x that are decoded at a time, about


@torch.no_grad()
def nats(
    model: Codec, info: DataInfo, x: Tensor, noise: Noise, samples: int, values: int = VALUES
) -> Nats:
    """A bound on −log p(x) of x [B, *info.shape], at the model's scale as `info` is.

    samples: K. At 1 the parts are `reconstruction` and `kl`; else there is one, `importance`, whose
    standard error over the K draws is given, to first order. Of data with bins it is the
    probability of these values, with a part `bins` = −D log w where p(x|z) is a density; of data
    that are binarised, that of the binary image. A code that is known for certain has nothing to
    draw: its bound is −log p(x|z) + kl for every K. values: how many of x are decoded at a time;
    the result does not depend on it.

    Raises: ConfigError where the code has no law, or the likelihood is none.
    """
    law = cast("Likelihood", model.likelihood)
    if law.no_law is not None:
        raise ConfigError(law.no_law)
    seen = law.seen(x, noise.child("seen"))
    code = model.encode(seen)
    if code.kl is None:
        raise ConfigError(
            "plain codes have no law, and x has no likelihood; write model.bottleneck=gaussian"
        )
    width = _width(info) if law.density else None
    draws = _Draws(model, law, code, seen, width, noise)
    parts = {} if width is None else {"bins": _constant(-x[0].numel() * math.log(width), x)}
    if samples == 1 or code.std is None:
        _, likelihood = draws(0, 1)
        return Nats({"reconstruction": -likelihood[0], "kl": code.kl.double(), **parts}, False)
    # Σ w and Σ w², as logarithms.
    total, squares = _constant(-math.inf, x), _constant(-math.inf, x)
    block = max(1, values // x.numel())
    for first in range(0, samples, block):
        ratio, likelihood = draws(first, min(block, samples - first))
        weight = ratio + likelihood
        total = torch.logaddexp(total, weight.logsumexp(0))
        squares = torch.logaddexp(squares, (2 * weight).logsumexp(0))
    # The variance of the mean of w over its square, from the draws: that of its logarithm.
    spread = samples * torch.exp(squares - 2 * total) - 1
    error = (spread.clamp(min=0) / (samples - 1)).sqrt()
    return Nats({"importance": math.log(samples) - total, **parts}, False, error)


class _Draws(NamedTuple):
    """Draws of z, and of y where `width` is that of bins, for samples x [B, *]."""

    model: Codec
    law: Likelihood
    code: Code
    x: Tensor
    width: float | None
    noise: Noise

    def __call__(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """log p(z) − log q(z|x) and log p(x|z) of the draws `first` ... of each sample, float64
        [count, B]. Draw k of sample b depends on b's noise and k only."""
        y, z = self._tiled(self.x, count), self._tiled(self.code.z, count)
        ratio = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        if self.code.std is not None:
            std = self._tiled(self.code.std, count)
            eps = self.noise.child("z").ahead(first, count).normal(0, z.shape[1:], z.dtype)
            z = z + std * eps
            # Both laws are normal.
            terms = 0.5 * (eps.double().square() - z.double().square()) + std.double().log()
            ratio = terms.flatten(1).sum(1)
        if self.width is not None:
            keyed = self.noise.child("bins").ahead(first, count)
            y = y + self.width * (keyed.uniform(0, y.shape[1:], y.dtype) - 0.5)
        found = -self.law.nats(self.model.decode(z), y).double()
        return ratio.view(count, -1), found.view(count, -1)

    @staticmethod
    def _tiled(values: Tensor, count: int) -> Tensor:
        """[B, *] as [count · B, *]: the whole batch again and again."""
        return values.repeat(count, *[1] * (values.dim() - 1))


def _width(info: DataInfo) -> float | None:
    """What is between two neighbours of whole numbers, None for real ones."""
    if info.bins is None or info.range is None:
        return None
    return (info.range[1] - info.range[0]) / (info.bins - 1)


def _constant(value: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), value, dtype=torch.float64, device=x.device)
