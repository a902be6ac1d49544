"""The plane: what is known at one noise level, in every coordinate at once.

A clean image x0 and a noise ε span a plane, and all of Gaussian diffusion happens in it:

    x = α x0 + σ ε                      the noisy sample
    f = p x0 + q ε                      any prediction target, by its two coordinates (p, q)
    x0 = (q x − σ f)/(αq − σp)          resolved, so that every target says the same thing
    ε  = (α f − p x)/(αq − σp)
    a x0 + b ε = [(aq − bp) x + (αb − σa) f]/(αq − σp)      any point, in two operations
    at(α', σ') = α' x0 + σ' ε           the same image at another level
    score = −ε/σ                        adding g to it:  x0 += (σ²/α) g,  ε −= σ g

A target is admissible for a process iff αq − σp ≠ 0 for all t in (0, 1].
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.levels import Level, Scalar, blend, expand, level_at
from ornstein.diffusion.process import NoisingProcess, rates
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class PredictionTarget(Protocol):
    """(p, q) of a target f = p x0 + q ε at a level of a process; hashable and comparable."""

    def __hash__(self) -> int: ...

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]: ...


class X0(Choice):
    """The clean image, f = x0."""

    kind: Literal["x0"] = "x0"

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0


class Eps(Choice):
    """The noise, f = ε (Ho et al. 2020, arXiv:2006.11239; notes eq 27-30)."""

    kind: Literal["eps"] = "eps"

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0


class V(Choice):
    """f = α ε − σ x0 (T. Salimans, J. Ho 2022, "Progressive distillation", arXiv:2202.00512)."""

    kind: Literal["v"] = "v"

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]:
        return -level.sigma, level.alpha


class Score(Choice):
    """f = ∇ log q(x | x0) = −ε/σ (notes eq 33 and 1.14)."""

    kind: Literal["score"] = "score"

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]:
        return 0.0, -1.0 / level.sigma


class Velocity(Choice):
    """f = dx/dt = α̇ x0 + σ̇ ε, the target of flow matching (arXiv:2210.02747)."""

    kind: Literal["velocity"] = "velocity"

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]:
        if isinstance(level.t, float):
            return _float_rates(process, level.t)
        return rates(process, level.t)


class EDM(Choice):
    """The network output F of EDM's preconditioning, x0 = c_skip x + c_out F at data scale.

    With σ̃ = σ/α, c_skip = σ_d²/(σ̃² + σ_d²) and c_out = σ̃ σ_d/√(σ̃² + σ_d²), F is the point
    p = σ/(σ_d n), q = −σ_d α/n of the plane, n = √(σ² + σ_d² α²). For σ_d = 1 it is −v of the
    process scaled to α² + σ² = 1. T. Karras et al. 2022, arXiv:2206.00364, table 1 and eq 7.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float | None = Field(
        None,
        gt=0,
        description="standard deviation of the data at "
        "the model's scale; empty: measured from the data",
    )

    def __call__(self, process: NoisingProcess, level: Level) -> tuple[Scalar, Scalar]:
        if self.sigma_data is None:
            raise ConfigError("the EDM target needs sigma_data: give it, or build it from data")
        norm = (level.sigma**2 + (self.sigma_data * level.alpha) ** 2) ** 0.5
        return level.sigma / (self.sigma_data * norm), -self.sigma_data * level.alpha / norm


Target = Annotated[X0 | Eps | V | Score | Velocity | EDM, Field(discriminator="kind")]


class Prediction(NamedTuple):
    """x = α x0 + σ ε at a level, and f = p x0 + q ε, which a network said: two equations for the
    clean image x0 and the noise ε, whatever the network's target is.

    x, f: [B, *]. level, p, q: floats, or one number for each sample. spread, where a network
    predicts it, places the reverse variance between β̃ (0) and β (1) of whatever pair of levels a
    step joins (iDDPM's v). Nothing is solved before it is asked for, since a step wants one point
    of the plane and not the two that span it.
    """

    x: Tensor
    level: Level
    f: Tensor
    p: Scalar
    q: Scalar
    spread: Tensor | None = None

    @classmethod
    def from_x0(cls, x: Tensor, level: Level, x0: Tensor) -> Prediction:
        """The prediction whose clean image is `x0`, at σ > 0."""
        return cls(x, level, x0, 1.0, 0.0)

    def point(self, a: Scalar, b: Scalar) -> Tensor:
        """a x0 + b ε [B, *], in the precision of x and in two operations."""
        _, alpha, sigma = self.level
        p, q = self.p, self.q
        det = alpha * q - sigma * p
        of_x, of_f = (a * q - b * p) / det, (alpha * b - sigma * a) / det
        if isinstance(of_x, float) and isinstance(of_f, float):
            return blend(of_x, self.x, of_f, self.f)
        return expand(of_x, self.x) * self.x + expand(of_f, self.x) * self.f

    @property
    def x0(self) -> Tensor:
        """The clean image."""
        return self.point(1.0, 0.0)

    @property
    def eps(self) -> Tensor:
        """The noise."""
        return self.point(0.0, 1.0)

    @property
    def score(self) -> Tensor:
        """∇ log q_t(x) = −ε/σ (notes eq 33)."""
        return self.point(0.0, -1.0 / self.level.sigma)

    def at(self, level: Level) -> Tensor:
        """The same image and noise at another level: α' x0 + σ' ε. This is the DDIM step."""
        return self.point(level.alpha, level.sigma)

    def target(self, target: PredictionTarget, process: NoisingProcess) -> Tensor:
        """p x0 + q ε: what a network with this target would have said."""
        return self.point(*target(process, self.level))

    def nudged(self, score: Tensor) -> Prediction:
        """The prediction with `score` added to its score: the one road for all guidance."""
        _, alpha, sigma = self.level
        step = sigma / alpha * (alpha * self.q - sigma * self.p)
        return self._replace(f=self.f - expand(step, self.x) * score)


class Denoise(Protocol):
    """What everything downstream takes: a trained network, an exact oracle, a guided model or a
    student, all interchangeable."""

    def __call__(self, x: Tensor, level: Level) -> Prediction: ...


def resolve(
    x: Tensor, level: Level, f: Tensor, p: Scalar, q: Scalar, spread: Tensor | None = None
) -> Prediction:
    """x = α x0 + σ ε and f = p x0 + q ε, to be solved for any point of the plane."""
    return Prediction(x, level, f, p, q, spread)


def aim(
    target: PredictionTarget, process: NoisingProcess, level: Level, x0: Tensor, eps: Tensor
) -> Tensor:
    """p x0 + q ε [B, *]: what a network with this target should say of x = α x0 + σ ε."""
    p, q = target(process, level)
    return expand(p, x0) * x0 + expand(q, x0) * eps


def mix(first: Prediction, second: Prediction, weight: float) -> Prediction:
    """(1 − w)·first + w·second at the same x and level: the same in every target.

    With first unconditional and second conditional it is classifier-free guidance, w = 1 being
    the conditional model (the notes' weight in eq 40 is w − 1).
    """
    alike = first.p is second.p and first.q is second.q
    said = second.f if alike else second.point(first.p, first.q)
    return first._replace(f=first.f + weight * (said - first.f))


def clipped(denoise: Denoise, low: float, high: float) -> Denoise:
    """The denoiser with its clean images kept within [low, high], and ε to match.

    Near pure noise an error of ε is thousands of times as large in x̂0, and steps that start
    there never recover. Ho et al. 2020 and Nichol & Dhariwal 2021 sample and measure like this.
    """

    def within(x: Tensor, level: Level) -> Prediction:
        free = denoise(x, level)
        kept = Prediction.from_x0(x, level, free.x0.clamp(low, high))
        return kept._replace(spread=free.spread)

    return within


@lru_cache(maxsize=256)
def check_admissible(target: PredictionTarget, process: NoisingProcess) -> None:
    """Refuse a target that does not determine x0 at some time of the process.

    Raises: ConfigError, naming the time and the targets that work.
    """
    smallest = max(process.smallest, 1e-6)
    times = torch.linspace(smallest, 1.0, 2001, dtype=torch.float64, device="cpu")
    level = level_at(process, times)
    p, q = (torch.as_tensor(c, dtype=torch.float64).expand(2001) for c in target(process, level))
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    size = torch.hypot(alpha, sigma) * torch.hypot(p, q)
    sine = (alpha * q - sigma * p) / size
    bad = ~(sine.abs() > 1e-9) | (sine.sign() != sine[0].sign())
    if bad.any():
        t = times[bad][-1].item()
        kinds = [getattr(c, "kind", type(c).__name__) for c in (target, process)]
        raise ConfigError(
            f"the target {kinds[0]!r} does not determine the clean image under the process "
            f"{kinds[1]!r} at t = {t:g}, where α = {alpha[bad][-1].item():.3g} and "
            f"σ = {sigma[bad][-1].item():.3g}; use v, x0 or velocity, "
            "or a process whose last SNR is above 0"
        )


@lru_cache(maxsize=4096)
def _float_rates(process: NoisingProcess, t: float) -> tuple[float, float]:
    alpha_dot, sigma_dot = rates(process, torch.tensor(t, dtype=torch.float64))
    return alpha_dot.item(), sigma_dot.item()
