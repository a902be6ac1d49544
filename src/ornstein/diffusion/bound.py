"""The variational bound: what a chain of Gaussian steps needs at most to say a sample.

    −log p(x0) ≤ L_T + Σ_{t>1} L_{t−1} + L_0                     (notes eq 24-26 and 1.4-1.6)

    L_T      KL(q(x_T|x0) ‖ p(x_T)),  p(x_T) the noise that sampling starts from
    L_{t−1}  E KL(q(x_s|x_t, x0) ‖ p(x_s|x_t)) for each pair s < t of neighbours of the grid
    L_0      E −log p(x0|x_1), an integral over the bin of each value (notes eq 1.12)

Both Gaussians of a pair are known by their noise levels. With SNR = α²/σ², the reverse variance
β^v β̃^(1−v) (notes eq 35) and x̂0 the estimate at x_t, the mean and the variances cancel into

    L_{t−1} = ½ Σ_d [ v r − 1 + e^{−v r} (1 + ΔSNR (x̂0 − x0)²) ]
    r = log β/β̃ = 2 log(σ_t/σ_s),   ΔSNR = SNR(s) − SNR(t)

for every process and every pair: at v = 0 the familiar ½ ΔSNR ‖x̂0 − x0‖² (D. Kingma et al. 2021,
"Variational diffusion models", arXiv:2107.00630, eq 14). Nothing is subtracted that nearly
cancels, so single precision will do.

On the last pair β̃ is 0, and the variance of the decoder lies between β̃ of the pair before and β
of its own (A. Nichol, P. Dhariwal 2021, arXiv:2102.09672; J. Ho et al. 2020, arXiv:2006.11239,
take the ends, v = 0 and v = 1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level, expand
from ornstein.diffusion.prediction import Denoise
from ornstein.lazy import torch
from ornstein.nats import Nats

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import DataInfo
    from ornstein.noise import Noise

_BEYOND = 1e15  # standard deviations: infinity whose gradients stay finite


class Chain(NamedTuple):
    """The pairs of a grid, noisiest first, as float64 [T]: all that the bound asks of them.

    level: the noisier level of each pair. log_ratio: r; gain: ΔSNR; both 0 for the last pair.
    small, large: the variances of the decoder at v = 0 and v = 1, float.
    """

    level: Level
    log_ratio: Tensor
    gain: Tensor
    small: float
    large: float


class Bins(NamedTuple):
    """Equally spaced values from `low` to `high` at the model's scale, `width` apart."""

    low: float
    high: float
    width: float


def bins_of(info: DataInfo) -> Bins | None:
    """The values that data can take at the model's scale, or None for real numbers."""
    if info.bins is None or info.range is None:
        return None
    low, high = info.range
    return Bins(low, high, (high - low) / (info.bins - 1))


def chain_of(levels: Levels) -> Chain:
    """The pairs of a grid that ends in `CLEAN`."""
    t = levels[:-1]
    alpha, sigma = (torch.tensor([level[k] for level in t], dtype=torch.float64) for k in (1, 2))
    ends = torch.zeros(1, dtype=torch.float64)
    snr = (alpha / sigma) ** 2
    large = t[-1].sigma ** 2
    # β̃ = β σ_s²/σ_t² of the pair before; a chain of one step has none.
    before = 1 - float(snr[-2] / snr[-1]) if len(t) > 1 else 1.0
    return Chain(
        Level(torch.tensor([level.t for level in t], dtype=torch.float64), alpha, sigma),
        torch.cat((2 * torch.log(sigma[:-1] / sigma[1:]), ends)),
        torch.cat((snr[1:] - snr[:-1], ends)),
        float(large * before),
        float(large),
    )


def kl_nats(
    error: Tensor, spread: Tensor | float, log_ratio: Tensor | float, gain: Tensor | float
) -> Tensor:
    """L_{t−1} in nats, [B]: the KL divergence of the two Gaussians of a pair.

    error: x̂0 − x0, [B, *]. spread: v, a number or [B, *]. log_ratio, gain: of the pair, numbers or
    ready to broadcast to `error`.
    """
    v = torch.as_tensor(spread * log_ratio, dtype=error.dtype, device=error.device)
    terms = v + torch.expm1(-v) + torch.exp(-v) * gain * error.square()
    return 0.5 * terms.expand_as(error).flatten(1).sum(1)


def decoder_nats(
    x0: Tensor, mean: Tensor, spread: Tensor | float, chain: Chain, bins: Bins | None
) -> Tensor:
    """L_0 in nats, [B]: −log p(x0|x_1) of N(mean, large^v small^(1−v)), bin by bin.

    The bins at the ends reach to infinity, so that the bins' probabilities add up to one (notes
    eq 1.12). Without bins it is a density.
    """
    log_small, log_large = math.log(chain.small), math.log(chain.large)
    log_std = 0.5 * torch.as_tensor(log_small + spread * (log_large - log_small)).to(x0)
    z = (x0 - mean) * torch.exp(-log_std)
    if bins is None:
        nats = 0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)
        return nats.flatten(1).sum(1)
    half = 0.5 * bins.width * torch.exp(-log_std)
    # The normal law is symmetric: on the side where both ends are negative nothing cancels.
    flip = torch.where(z > 0, -1.0, 1.0)
    first, last = x0 < bins.low + bins.width / 2, x0 > bins.high - bins.width / 2
    outer = torch.where(flip < 0, last, first)  # the end below, after the flip, is infinite
    inner = torch.where(flip < 0, first, last)
    low = torch.where(outer, -_BEYOND, flip * z - half)
    high = torch.where(inner, _BEYOND, flip * z + half)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    below = (log_low - log_high).clamp(max=-1e-30)  # smaller numbers may be flushed to zero
    mass = log_high + torch.log(-torch.expm1(below))
    # Of a bin much narrower than the Gaussian both ends look alike; its height says enough.
    narrow = -0.5 * z.square() + torch.log(2 * half) - 0.5 * math.log(2 * math.pi)
    log_p = torch.where((2 * half < 1e-3) & ~outer & ~inner, narrow, mass)
    return -log_p.flatten(1).sum(1)


def prior_nats(x0: Tensor, level: Level, sigma_data: float) -> Tensor:
    """L_T in nats, [B]: KL(N(α x0, σ²) ‖ N(0, σ² + σ_d² α²)), what sampling starts from."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    variance = sigma**2 + (sigma_data * alpha) ** 2
    mean = (alpha * x0).flatten(1).square().sum(1) / variance
    ratio = sigma**2 / variance
    return 0.5 * (mean + x0[0].numel() * (ratio - 1 - math.log(ratio)))


def bound(
    denoise: Denoise,
    levels: Levels,
    x0: Tensor,
    noise: Noise,
    *,
    spread: float = 0.0,
    sigma_data: float = 1.0,
    bins: Bins | None = None,
) -> Nats:
    """The bound for the samples x0 [B, *] at the model's scale, one draw of noise for each pair.

    levels: the grid, any number of steps. spread: v where the network predicts none; 0 is the
    variance β̃, 1 is β. sigma_data: of the start, as in `Sampling`. Parts: `L_T`, `L_t`, the sum
    over the pairs, and `L_0`, each float64 [B]. It asks the network once for every step.
    """
    chain = chain_of(levels)
    exact = x0.double()
    kl = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for i, level in enumerate(levels[:-1]):
        eps = noise.at(i).normal(0, x0.shape[1:], x0.dtype)
        with torch.no_grad():
            prediction = denoise(level.alpha * x0 + level.sigma * eps, level)
        v = spread if prediction.spread is None else prediction.spread.double()
        error = prediction.x0.double() - exact
        if i < len(levels) - 2:
            kl += kl_nats(error, v, chain.log_ratio[i].item(), chain.gain[i].item())
    last = decoder_nats(exact, exact + error, v, chain, bins)
    return Nats(
        {"L_T": prior_nats(exact, levels[0], sigma_data), "L_t": kl, "L_0": last}, exact=False
    )


def drawn(chain: Chain, row: Tensor, x0: Tensor, eps: Tensor) -> tuple[Tensor, Level]:
    """x_t and its level for one pair of the chain per sample, `row` int64 [B]."""
    level = Level(*(torch.as_tensor(c).to(row.device)[row] for c in chain.level))
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps, level


def term_nats(
    x0: Tensor,
    estimate: Tensor,
    spread: Tensor | float,
    chain: Chain,
    row: Tensor,
    bins: Bins | None,
) -> Tensor:
    """The term of one pair per sample in nats, [B]: L_{t−1}, or L_0 for the last row."""
    r, gain = (expand(c.to(row.device)[row], x0) for c in (chain.log_ratio, chain.gain))
    kl = kl_nats(estimate - x0, spread, r, gain)
    last = row == len(chain.gain) - 1
    # Far from the data the decoder would see absurd errors; their gradients are not wanted.
    mean = torch.where(last.view(-1, *[1] * (x0.dim() - 1)), estimate, x0)
    return torch.where(last, decoder_nats(x0, mean, spread, chain, bins), kl)
