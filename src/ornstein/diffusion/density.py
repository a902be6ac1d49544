"""The likelihood of the probability flow: the density of what it draws, followed back to noise.

In the coordinates of `diffusion/flow.py`, u = x/N at the time τ, a density obeys

    d log p_u/dτ = −∇·(du/dτ)      along a solution

(R. Chen et al. 2018, "Neural ordinary differential equations", arXiv:1806.07366, theorem 1; Y. Song
et al. 2021, arXiv:2011.13456, §4.3 and appendix D.2). From the smallest level, whose sample is
y = x/α, to the first one, where z = x/√(σ² + σ_d² α²) is drawn from N(0, I):

    −log p(y) = −log N(z; 0, I) − log |det ∂z/∂y|                            "prior" + "flow"
    log |det ∂z/∂y| = ∫ ∇·(du/dτ) dτ + D log(N/√(σ² + σ_d² α²)) at the first level
                                     + D log(α/N) at the last one

Both are exact up to the tolerance of the solver. p is the law of y, that is of what the flow draws
with the noise σ/α of the smallest level still in it: without x̂0 of the last step, which is a mean
and has no density.

The divergence is the trace of a Jacobian J. It takes D products vᵀJ with v the unit vectors, or
K of them with random v of E vvᵀ = I, of which vᵀJv has the mean tr J (M. Hutchinson 1990; W.
Grathwohl et al. 2019, "FFJORD", arXiv:1810.01367). A sample keeps its v on its whole way, so that
its log p is that of one smooth integrand, and errs by vᵀMv − tr M, where M = ∫ J dτ:

    variance for one v      2 ‖M'‖²_F                  v normal;  M' = (M + Mᵀ)/2
                            2 (‖M'‖²_F − Σ M'_dd²)     v of random signs, never more

Whole numbers, a bin of width w about each value, have probabilities instead. For any q(y|x)

    −log P(x) ≤ E_q [−log p(y) + log q(y|x) − log P(x|y)]                   "bins": the last two

which takes one draw of y, and so holds in the mean (L. Theis et al. 2016, "A note on the evaluation
of generative models", arXiv:1511.01844; J. Ho et al. 2019, "Flow++", arXiv:1902.00275):

    uniform   y uniform in the bin, P(x|y) = 1: a cost of −D log w, and what is published
    noise     y = x + (σ/α) ε, P(x|y) ∝ q(y|x) over all values, as in D. Kingma et al. 2021,
              "Variational diffusion models", arXiv:2107.00630, eq 16

Rounding is noise of variance w²/12. Such data have no details that are smaller, so their flow ends
at the level with σ/α = w/√12, or at the smallest if that is noisier: p is the law of what is drawn
down to there and rounded. Beyond, a model of 17 grey values spends thousands of evaluations on
spikes about them, and is charged for each error that it makes there.

With `noise` the network sees at the last level what it was trained on, and were p exact, the gap
would be that of P(x|y) to the true posterior, which vanishes with σ/α below w. That is why no flow
for q(y|x) is learned here (variational dequantisation; Y. Song et al. 2021, arXiv:2101.09258): what
it mends, that uniform noise is unlike the noise that the network knows, is mended without it, as
in K. Zheng et al. 2023, arXiv:2305.03935. Where the smallest level is noisier than a bin is wide,
`uniform` is the better bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.bound import Bins
from ornstein.diffusion.flow import LONGEST, norm_of, smallest_level, start_scale, time_of, velocity
from ornstein.diffusion.levels import Level, level_at, level_of_log_snr
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.runge_kutta import rms, solve
from ornstein.lazy import torch
from ornstein.nats import Nats

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise

SMALL = 12  # dimensions up to which the trace is exact if nothing else is said

Trace = Literal["auto", "exact", "rademacher", "gaussian"]


class Flow(Choice):
    """How the likelihood of the probability flow is computed, where steps follow it.

    trace: of the Jacobian: `exact`, from as many products as there are dimensions, or estimated
    with `probes` random vectors of signs (rademacher) or normal numbers; `auto` is exact up to 12
    dimensions and takes signs beyond. tolerance: of one step of the solver, in nats per dimension
    and, for the sample, relative to √(α² + σ²). dequantise: which noise whole numbers are given.
    """

    trace: Trace = "auto"
    probes: int = Field(1, ge=1, le=10_000, description="of a trace that is not exact")
    tolerance: float = Field(1e-3, gt=0, le=1)
    dequantise: Literal["uniform", "noise"] = Field(
        "uniform", description="of whole numbers: uniform in the bin, or Gaussian of the last level"
    )

    def kind_of(self, dimensions: int) -> Trace:
        """The trace that `auto` stands for."""
        if self.trace != "auto":
            return self.trace
        return "exact" if dimensions <= SMALL else "rademacher"


def flow_nats(
    denoise: Denoise,
    process: NoisingProcess,
    x: Tensor,
    noise: Noise,
    flow: Flow,
    *,
    first: Level | None = None,
    sigma_data: float = 1.0,
    bins: Bins | None = None,
) -> Nats:
    """−log p of x [B, *] at the model's scale under the flow, with its parts, float64 [B].

    Real numbers are taken for y themselves, and the result is exact; whole numbers, of which
    `bins` says the values, are dequantised, and it is a bound in the mean. first: the level where
    sampling starts, t = 1 if it is not given. Sample b depends on x[b] and its own noise only.
    Raises: NumericsError where the flow cannot be followed.
    """
    first, last = first or level_at(process, 1.0), last_level(process, bins)
    y, parts = x, {}
    if bins is not None:
        std = float(last.sigma / last.alpha)
        y, parts["bins"] = dequantised(x, noise.child("bins"), flow, bins, std)
    ends, keyed = (first, last), noise.child("probes")
    prior, volume, error = _log_density(denoise, process, y, keyed, flow, ends, sigma_data)
    return Nats({"prior": prior, "flow": volume, **parts}, exact=bins is None, error=error)


def last_level(process: NoisingProcess, bins: Bins | None) -> Level:
    """Where the flow of data with these bins ends: at noise of w/√12 or at the smallest level."""
    last = smallest_level(process)
    if bins is None or last.sigma / last.alpha >= bins.width / math.sqrt(12):
        return last
    return level_of_log_snr(process, -2 * math.log(bins.width / math.sqrt(12)))


def dequantised(
    x: Tensor, noise: Noise, flow: Flow, bins: Bins, std: float
) -> tuple[Tensor, Tensor]:
    """y [B, *] of values x [B, *], and log q(y|x) − log P(x|y), float64 [B].

    std: σ/α of the last level.
    """
    shape, size = x.shape[1:], x[0].numel()
    if flow.dequantise == "uniform":
        u = noise.uniform(0, shape, torch.float64) - 0.5
        cost = torch.full((len(x),), -size * math.log(bins.width), dtype=torch.float64)
        return x + (bins.width * u).to(x.dtype), cost.to(x.device)
    z = noise.normal(0, shape, torch.float64)
    log_q = -0.5 * z.square() - math.log(std) - 0.5 * math.log(2 * math.pi)
    # P(x|y) is a softmax of −(y − k)²/2σ² over all values k, of which only those near y count.
    y = x.double() + std * z
    count = round((bins.high - bins.low) / bins.width) + 1
    place = (y - bins.low) / bins.width
    nearest = place.round().clamp(0, count - 1)
    total = torch.zeros_like(place)
    reach = min(count - 1, math.ceil(9 * std / bins.width) + 1)
    for k in range(-reach, reach + 1):
        value = nearest + k
        weight = torch.exp(-0.5 * ((place - value) * (bins.width / std)).square())
        total += weight * ((value >= 0) & (value < count))
    log_p = -0.5 * z.square() - torch.log(total)
    return y.to(x.dtype), (log_q - log_p).flatten(1).sum(1)


def probes_of(kind: Trace, count: int, shape: torch.Size, noise: Noise) -> Tensor:
    """The vectors v, float64 [B, K, D]; for the exact trace, [1, D, D], the unit vectors."""
    size = math.prod(shape)
    if kind == "exact":
        return torch.eye(size, dtype=torch.float64, device=noise.ids.device).unsqueeze(0)
    if kind == "gaussian":
        return noise.normal(0, (count, size), torch.float64)
    return 2.0 * noise.integers(0, 2, (count, size)).double() - 1


def _log_density(
    denoise: Denoise,
    process: NoisingProcess,
    y: Tensor,
    noise: Noise,
    flow: Flow,
    ends: tuple[Level, Level],
    sigma_data: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """−log N(z; 0, I), −log |det ∂z/∂y| and the standard error of the probes, float64 [B]."""
    (first, last), shape, size = ends, y.shape[1:], y[0].numel()
    kind = flow.kind_of(size)
    probes = probes_of(kind, flow.probes, shape, noise)
    columns = 1 if kind == "exact" else flow.probes

    def slope(state: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Of u and, in the columns behind it, of the integral of vᵀJv for each v."""
        own = probes if len(probes) == 1 else probes[rows]
        with torch.enable_grad():
            u = state[:, :size].detach().requires_grad_()
            rate = velocity(denoise, process, u.view(-1, *shape), time, y.dtype).flatten(1)
            found = []
            for k in range(own.shape[1]):
                v = own[:, k].expand_as(rate)
                more = k + 1 < own.shape[1]
                (product,) = torch.autograd.grad(rate, u, v, retain_graph=more)
                found.append((product * v).sum(1, keepdim=True))
        trace = torch.cat(found, dim=1)
        return torch.cat((rate.detach(), trace.sum(1, True) if kind == "exact" else trace), dim=1)

    def length(error: Tensor) -> Tensor:
        return torch.maximum(rms(error[:, :size]), error[:, size:].mean(1).abs() / size)

    u = (last.alpha / norm_of(last) * y.double()).flatten(1)
    state = torch.cat((u, u.new_zeros(len(u), columns)), dim=1)
    end = solve(slope, state, time_of(last), time_of(first), flow.tolerance, length, LONGEST).y
    scale = start_scale(first, sigma_data) / norm_of(first)
    z, traces = end[:, :size] / scale, end[:, size:]
    volume = traces.mean(1) - size * (math.log(scale) + math.log(norm_of(last) / last.alpha))
    error = None
    if kind != "exact" and columns > 1:
        error = traces.std(1) / math.sqrt(columns)
    return 0.5 * (z.square().sum(1) + size * math.log(2 * math.pi)), -volume, error
