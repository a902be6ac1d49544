"""Noising processes: which share of data and of noise a sample holds at each time.

    x = α(t) x0 + σ(t) ε            t in (0, 1], 0 toward data, 1 noise; α²/σ² decreases

is all that a process says, with the inverse of its log-SNR. The rest follows, once for all:

    log_snr           λ = 2 log(α/σ)
    rates             α̇, σ̇, the derivatives of the two lines by automatic differentiation
    transition        x_t = α_{t|s} x_s + σ_{t|s} ε;  α_{t|s} = α_t/α_s,
                      σ²_{t|s} = σ_t² − α²_{t|s} σ_s²
    drift_diffusion   dx = f x dt + g dw;  f = α̇/α, g² = 2σ (σ̇ − f σ)      (notes eq 1.19)

Times are float64 tensors and so are α and σ. The notes' step i of T is t = i/T.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, model_validator

from ornstein.choice import Choice
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class NoisingProcess(Protocol):
    """What all processes offer; they are pure functions of time, hashable and comparable."""

    def __hash__(self) -> int: ...

    @property
    def smallest(self) -> float:
        """The smallest time at which a network is asked; toward data there is only t = 0."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α(t), σ(t)."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which 2 log(α/σ) has this value."""


class VP(Choice):
    """Variance preserving with β(t) linear in t, the continuous form of DDPM's table.

    log α = −¼ t² (β_max − β_min) − ½ t β_min,  σ² = 1 − α².
    Y. Song et al. 2021, "Score-based generative modeling through stochastic differential
    equations", arXiv:2011.13456, eq 32-33.
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    smallest: float = Field(1e-3, gt=0, lt=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _log_alpha(t, self.beta_min, self.beta_max)
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def time(self, log_snr: Tensor) -> Tensor:
        log_alpha = 0.5 * torch.nn.functional.logsigmoid(log_snr)
        return _time_of_log_alpha(log_alpha, self.beta_min, self.beta_max)


class SubVP(Choice):
    """Sub-VP: α as in `VP`, and σ = 1 − α², below VP's at every time (arXiv:2011.13456, eq 29)."""

    kind: Literal["sub_vp"] = "sub_vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    smallest: float = Field(1e-3, gt=0, lt=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _log_alpha(t, self.beta_min, self.beta_max)
        return torch.exp(log_alpha), -torch.expm1(2 * log_alpha)

    def time(self, log_snr: Tensor) -> Tensor:
        # r = σ/α = (1 − α²)/α, so α is the positive root of α² + r α − 1, without cancellation.
        r = torch.exp(-0.5 * log_snr)
        log_alpha = torch.log(2 / (r + torch.sqrt(r**2 + 4)))
        return _time_of_log_alpha(log_alpha, self.beta_min, self.beta_max)


class Cosine(Choice):
    """α = cos(πt/2), σ = sin(πt/2): the continuous cosine schedule, with zero terminal SNR.

    A. Nichol, P. Dhariwal 2021, "Improved denoising diffusion probabilistic models",
    arXiv:2102.09672, eq 17 without its offset; `Tabulated("cosine")` is the published table.
    `shift` multiplies σ/α at every time: large images need more noise to be noisy, side/64 times
    as much (E. Hoogeboom et al. 2023, "Simple diffusion", arXiv:2301.11093, eq 5).
    """

    kind: Literal["cosine"] = "cosine"
    shift: float = Field(1.0, ge=1e-3, le=1000)
    smallest: float = Field(1e-3, gt=0, lt=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin(π(1−t)/2) is cos(πt/2), and exactly 0 at t = 1.
        alpha, sigma = torch.sin(0.5 * math.pi * (1 - t)), torch.sin(0.5 * math.pi * t)
        norm = torch.sqrt(alpha**2 + (self.shift * sigma) ** 2)
        return alpha / norm, self.shift * sigma / norm

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-0.5 * log_snr) / self.shift) * (2 / math.pi)


class VE(Choice):
    """Variance exploding: α = 1, σ = σ_min (σ_max/σ_min)^t.

    Arxiv:2011.13456, eq 30 (σ_min 0.01); with σ from 0.002 to 80 it is the family of T. Karras
    et al. 2022, "Elucidating the design space of diffusion-based generative models" (EDM),
    arXiv:2206.00364, whose levels and grids are given in σ. At t = 0 the noise is σ_min.
    """

    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(0.01, gt=0)
    sigma_max: float | None = Field(
        50.0,
        gt=0,
        description="null: the largest distance between two training samples, as NCSNv2 has it",
    )

    @model_validator(mode="after")
    def _increasing(self) -> VE:
        if self.sigma_max is not None and self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"sigma_max ({self.sigma_max:g}) must be above sigma_min ({self.sigma_min:g})"
            )
        return self

    @property
    def smallest(self) -> float:
        return 0.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma_min * torch.exp(t * self._span)
        return torch.ones_like(t), sigma

    def time(self, log_snr: Tensor) -> Tensor:
        log_sigma = -0.5 * log_snr
        return (log_sigma - math.log(self.sigma_min)) / self._span

    @property
    def _span(self) -> float:
        """ln(σ_max/σ_min). Raises: ConfigError where σ_max is left to data that is not known."""
        if self.sigma_max is None:
            raise ConfigError(
                "this process's sigma_max is left to the data, which is not known here; write it: "
                "process.sigma_max=50, say, or what `ornstein inspect DATA` prints"
            )
        return math.log(self.sigma_max / self.sigma_min)


class Straight(Choice):
    """Straight paths, α = 1 − t, σ = t: flow matching and rectified flow.

    Y. Lipman et al. 2023, "Flow matching for generative modeling", arXiv:2210.02747;
    X. Liu et al. 2023, "Flow straight and fast", arXiv:2209.03003. `shift` multiplies σ/α at every
    time, t ↦ shift·t/(1 + (shift − 1) t), as larger images ask for (P. Esser et al. 2024, "Scaling
    rectified flow transformers", arXiv:2403.03206, eq 23).
    """

    kind: Literal["straight"] = "straight"
    shift: float = Field(1.0, ge=1e-3, le=1000)
    smallest: float = Field(1e-3, gt=0, lt=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        norm = 1 + (self.shift - 1) * t
        return (1 - t) / norm, self.shift * t / norm

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr - math.log(self.shift))


class Tabulated(Choice):
    """A table of T steps: ᾱ_i = Π_{j≤i} (1 − β_j), α = √ᾱ, σ² = 1 − ᾱ, at t = i/T.

    `linear`: β from `beta_first` to `beta_last`, at any T (Ho et al. 2020, arXiv:2006.11239: 1e-4
    and 0.02 for T = 1000). `cosine`: notes eq 34, f(t) = cos²((t/T + s)/(1 + s)·π/2)
    with s = 0.008, β_t = min(1 − ᾱ_t/ᾱ_{t−1}, 0.999) (arXiv:2102.09672, eq 17).
    Between rows log-SNR is linear in t, and beyond the first row it goes on at the first slope.

    `zero_terminal` shifts and scales √ᾱ so that the last row is pure noise and the first is as it
    was (S. Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed",
    arXiv:2305.08891, algorithm 1); over the last step α then falls linearly. `shift` multiplies
    σ/α in every row (arXiv:2301.11093, eq 5).
    """

    kind: Literal["tabulated"] = "tabulated"
    rule: Literal["linear", "cosine"] = "linear"
    steps: int = Field(1000, ge=2, le=100_000)
    beta_first: float = Field(1e-4, gt=0, lt=1, description="of the linear rule")
    beta_last: float = Field(0.02, gt=0, lt=1, description="of the linear rule")
    zero_terminal: bool = Field(False, description="rescale to an SNR of 0 in the last row")
    shift: float = Field(1.0, ge=1e-3, le=1000)

    @property
    def smallest(self) -> float:
        return 1 / self.steps

    def betas(self) -> Tensor:
        """β_1 ... β_T, float64 [T], after rescaling and shift."""
        if not self.zero_terminal and self.shift == 1:
            return self.rule_betas()
        alpha_bar = torch.sigmoid(_table(self, "cpu")[1])
        return 1 - alpha_bar / torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar[:-1]))

    def rule_betas(self) -> Tensor:
        """β_1 ... β_T as the rule says, float64 [T]."""
        if self.rule == "linear":
            ends = self.beta_first, self.beta_last
            return torch.linspace(*ends, self.steps, dtype=torch.float64)
        step = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        f = torch.cos((step + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        times, values = _table(self, str(t.device))
        row = torch.searchsorted(times, t.detach().contiguous()).clamp(1, self.steps - 1)
        share = (t - times[row - 1]) / (times[row] - times[row - 1])
        first, last = values[row - 1], values[row]
        ends = torch.isneginf(last)  # log-SNR is not linear on the way to pure noise
        log_snr = first + share * torch.where(ends, 0.0, last - first)
        alpha, sigma = torch.sqrt(torch.sigmoid(log_snr)), torch.sqrt(torch.sigmoid(-log_snr))
        if not self.zero_terminal:
            return alpha, sigma
        falling = alpha * (1 - share.clamp(min=0))
        return (
            torch.where(ends, falling, alpha),
            torch.where(ends, torch.sqrt(1 - falling**2), sigma),
        )

    def time(self, log_snr: Tensor) -> Tensor:
        times, values = _table(self, str(log_snr.device))
        row = torch.searchsorted(-values, -log_snr.contiguous()).clamp(1, self.steps - 1)
        share = (log_snr - values[row - 1]) / (values[row] - values[row - 1])
        if self.zero_terminal:
            falling = torch.sqrt(torch.sigmoid(log_snr) / torch.sigmoid(values[row - 1]))
            share = torch.where(torch.isneginf(values[row]), 1 - falling, share)
        return times[row - 1] + share * (times[row] - times[row - 1])


Process = Annotated[VP | SubVP | Cosine | VE | Straight | Tabulated, Field(discriminator="kind")]


def log_snr(process: NoisingProcess, t: Tensor) -> Tensor:
    """λ(t) = 2 log(α/σ), infinite where α = 0."""
    alpha, sigma = process(t)
    return 2 * (torch.log(alpha) - torch.log(sigma))


def rates(process: NoisingProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """α̇(t), σ̇(t): the derivatives of the process itself.

    By two pull-backs, since torch's forward mode compiles with a deprecated `torch.jit.script`
    and so warns; α and σ are elementwise in t, so both modes give the same.
    """
    _, pull = torch.func.vjp(process.__call__, t)[:2]
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return pull((one, zero))[0], pull((zero, one))[0]


def transition(process: NoisingProcess, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """α_{t|s}, σ_{t|s} of q(x_t | x_s) = N(α_{t|s} x_s, σ²_{t|s} I), for s < t."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process(s), process(t)
    alpha = alpha_t / alpha_s
    variance = sigma_t**2 - (alpha * sigma_s) ** 2
    return alpha, torch.sqrt(variance.clamp(min=0))


def drift_diffusion(process: NoisingProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """f(t) and g(t) of dx = f x dt + g dw, the SDE with these marginals (notes eq 1.19)."""
    alpha, sigma = process(t)
    alpha_dot, sigma_dot = rates(process, t)
    f = alpha_dot / alpha
    return f, torch.sqrt((2 * sigma * (sigma_dot - f * sigma)).clamp(min=0))


def _log_alpha(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def _time_of_log_alpha(log_alpha: Tensor, beta_min: float, beta_max: float) -> Tensor:
    # The root of ¼(β_max−β_min) t² + ½ β_min t + log α = 0, in the form that divides by a sum.
    root = torch.sqrt(beta_min**2 - 4 * (beta_max - beta_min) * log_alpha)
    return -4 * log_alpha / (beta_min + root)


@lru_cache(maxsize=32)
def _table(process: Tabulated, device: str) -> tuple[Tensor, Tensor]:
    """Times i/T and log-SNR of the rows of a table, float64 [T]."""
    log_alpha_bar = torch.cumsum(torch.log1p(-process.rule_betas()), dim=0)
    if process.zero_terminal:
        root = torch.exp(0.5 * log_alpha_bar)
        log_alpha_bar = 2 * torch.log((root - root[-1]) * (root[0] / (root[0] - root[-1])))
    values = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar)) - 2 * math.log(process.shift)
    times = torch.arange(1, process.steps + 1, dtype=torch.float64) / process.steps
    return times.to(device), values.to(device)
