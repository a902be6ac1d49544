"""Langevin dynamics: a walk that stays at one level and forgets where it came from.

    x ← x + (δ/2) s(x) + √δ z        half: notes eq 32 and fig 1.3; M. Welling, Y. Teh 2011; NCSN
    x ← x + a s(x) + √(2a) z         full: NCSNv2, and what notes eq 1.17 is about;  δ = 2a

s = ∇ log p_t. Both are one chain, and as a → 0 they leave p_t as it is; at a > 0 the law they
settle at is a little too wide, N(0, v/(1 − a/2v)) for p_t = N(0, v). In the plane an update is

    x ← α x̂0 + (σ − a/σ) ε̂ + √(2a) z

to first order in a the general step from a level to itself, with ν² = 2a. It finds its way within
a mode but not between far ones: how much weight each has, it does not know. Two uses of it do:

    annealed Langevin      fig 1.3: updates at every level of a grid; x (or x/α) is kept on the way
                           to the next, where it is a start that lies in the right modes
    predictor-corrector    any step to the next level, and updates there that take x back to p_t
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import expand
from ornstein.diffusion.multistep import Multistep, Suited
from ornstein.diffusion.ncsn import rounded, step_size
from ornstein.diffusion.prediction import Denoise, Prediction
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.steps import Ancestral, Heun, Jump
from ornstein.diffusion.stochastic import EulerMaruyama, StochasticHeun
from ornstein.diffusion.walk import Fresh, Move
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


Update: TypeAlias = "Callable[[Prediction, int, Tensor], Tensor]"
"""(prediction at levels[i], i, z [B, *]) -> x [B, *] after one update."""


class Fixed(Choice):
    """The same step at every level, δ or a as the form has it, in squared units of x.

    The chain diverges from a = 2v on, v being the smallest variance of p_t in any direction.
    """

    kind: Literal["fixed"] = "fixed"
    step: float = Field(gt=0)

    def full(self, levels: Levels, unit: float, updates: int) -> list[float]:
        """a at each level that is left; unit: a for a step of 1, which is 1/2 in the half form."""
        return [unit * self.step] * (len(levels) - 1)


class Annealed(Choice):
    """ε σ_i²/σ_L² at level i, δ or a as the form has it; σ_L is the last noisy level of the grid.

    arXiv:1907.05600, algorithm 1 (half, ε = 2e-5); arXiv:2006.09011 (full, ε by notes eq 1.17).
    For a process with α ≠ 1 it is the published step for x/α, whose noise is σ/α: ε σ_i² α_L²/σ_L²
    in units of x. So a/σ_i² is the same at all levels, and x/α takes one path whatever α is.
    """

    kind: Literal["annealed"] = "annealed"
    eps: float | None = Field(
        None, gt=0, description="empty: by notes eq 1.17, from the grid and the number of updates"
    )

    def fitted(self, levels: Levels, unit: float, updates: int) -> Annealed:
        """With ε by eq 1.17 where it is left open; levels have the mean ratio of the grid.

        unit: as for `Fixed`. Raises: ConfigError where there is no ratio of levels.
        """
        if self.eps is not None or not updates:
            return self
        noisy = _noisy(levels)
        if len(noisy) < 2 or math.isinf(noisy[0]):
            raise ConfigError(
                "size.eps follows from a grid of two or more levels that starts above α = 0; "
                "write size.eps, or another grid"
            )
        gamma = (noisy[0] / noisy[-1]) ** (1 / (len(noisy) - 1))
        return Annealed(eps=rounded(step_size(noisy[-1], gamma, updates) / unit))

    def full(self, levels: Levels, unit: float, updates: int) -> list[float]:
        """a at each level that is left; unit: as for `Fixed`.

        Raises: ConfigError where a ≥ 2σ_i², at which x leaves for infinity if noise prevails, and
        as `fitted`.
        """
        eps = self.fitted(levels, unit, updates).eps
        assert eps is not None
        last = _noisy(levels)[-1]
        share = unit * eps / last**2
        if share >= 2:
            raise ConfigError(
                f"Langevin steps of size.eps = {eps:g} diverge on a grid whose last σ/α is "
                f"{last:.3g}; write a size.eps well below {2 * last**2 / unit:.3g}"
            )
        return [float(share * level.sigma**2) for level in levels[:-1]]


class SignalToNoise(Choice):
    """a = 2 α_i (r |z|/|s|)²: the drift a s is then r √α_i times as long as the noise √(2a) z.

    Y. Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5, whose α_i is 1 − β_i of the step to
    the next level, (α_t/α_s)²: 1 under VE, and 0 where nothing but noise is left to correct.
    Norms are those of each sample (the paper's code takes their means over the batch, so that
    a sample would depend on its neighbours). A single sample can be where |s| is almost 0, so
    a is σ² at most: p_t holds noise of that variance in every direction, and no step up to it
    overshoots. Of images |s| is about √D/σ: a is 2 α_i r² σ², far below the bound.
    """

    kind: Literal["snr"] = "snr"
    ratio: float = Field(0.16, gt=0)

    def along(self, levels: Levels) -> Update:
        factors = [float(2 * (self.ratio * t.alpha / s.alpha) ** 2) for t, s in pairwise(levels)]

        def update(prediction: Prediction, i: int, z: Tensor) -> Tensor:
            x, score = prediction.x, prediction.score
            lengths = (y.flatten(1).square().sum(1) for y in (z, score))
            ratio = torch.div(*lengths).mul_(factors[i])
            a = ratio.clamp_(max=levels[i].sigma ** 2)
            x = (expand(a, x) * score).add_(x)
            return x.add_(expand((2 * a).sqrt(), x) * z)

        return update


def _noisy(levels: Levels) -> list[float]:
    """σ/α of the levels with noise."""
    return [
        float(level.sigma / level.alpha) if level.alpha else math.inf
        for level in levels
        if level.sigma > 0
    ]


Size = Annotated[Fixed | Annealed | SignalToNoise, Field(discriminator="kind")]


class Langevin(Choice):
    """`updates` of Langevin dynamics at each level, with a step of some size.

    form: which of the two a fixed or annealed step is meant for; a signal-to-noise ratio says the
    same in either.
    """

    kind: Literal["langevin"] = "langevin"
    updates: int = Field(1, ge=0, le=100_000, description="at each level; 0: the predictor alone")
    form: Literal["half", "full"] = "full"
    size: Size = SignalToNoise()

    def fitted(self, levels: Levels) -> Langevin:
        """This choice with a step size that is left to the grid filled in."""
        if not isinstance(self.size, Annealed):
            return self
        return self.model_copy(update={"size": self.size.fitted(levels, self._unit, self.updates)})

    @property
    def _unit(self) -> float:
        """a for a step of 1."""
        return 0.5 if self.form == "half" else 1.0

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """The updates at levels[i], where x stays."""
        count, update = self.updates, self._update(levels)
        fresh = Fresh((levels[0],) * (count * (len(levels) - 1) + 1))

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            for j in range(i * count, (i + 1) * count):
                x = update(denoise(x, levels[i]), i, fresh.normal(noise, j, x))
            return x, memory

        return move

    def evaluations(self, steps: int) -> int:
        return steps * self.updates

    def _update(self, levels: Levels) -> Update:
        if isinstance(self.size, SignalToNoise):
            return self.size.along(levels)
        sizes = self.size.full(levels, self._unit, self.updates) if self.updates else []
        visits = zip(levels, sizes, strict=False)
        points = [(float(t.alpha), float(t.sigma - a / t.sigma)) for t, a in visits]
        stds = [math.sqrt(2 * a) for a in sizes]

        def update(prediction: Prediction, i: int, z: Tensor) -> Tensor:
            return prediction.point(*points[i]).add_(z, alpha=stds[i])

        return update


class Keep(Choice):
    """No step at all: x/α stays as it is, and so does x where α = 1.

    Annealed Langevin's way from a level to the next: x holds too much noise there, in the right
    places, and the updates take it away. The way to the data leaves the noise of the last level
    in, or with `denoise` takes x̂0, at one more evaluation (A. Jolicoeur-Martineau et al. 2020,
    arXiv:2009.05475; NCSNv2, arXiv:2006.09011, does so, since FID sees what noise is left).
    By itself it makes no samples: it is a predictor for `Corrected`.
    """

    kind: Literal["keep"] = "keep"
    denoise: bool = Field(False, description="end with the clean image that the network sees")

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """Raises: ConfigError for a grid that starts at pure noise, where x/α is nothing."""
        if levels[0].alpha == 0:
            raise ConfigError(
                "step=keep keeps x/α, and this grid starts where α = 0; give a grid in σ a "
                "sigma_max (grid=log_snr with grid.sigma_max=80, say)"
            )
        scales = [float(s.alpha / t.alpha) for t, s in pairwise(levels)]

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            if self.denoise and levels[i + 1].sigma == 0:
                return denoise(x, levels[i]).x0, None
            return (x if scales[i] == 1 else scales[i] * x), None

        return move

    def evaluations(self, steps: int) -> int:
        return int(self.denoise)


Predictor = Annotated[
    Jump | Ancestral | Heun | Multistep | Suited | EulerMaruyama | StochasticHeun | Keep,
    Field(discriminator="kind"),
]
"""Steps by a denoiser whose x̂0 is a mean. `Renoise` wants a sample for x̂0, which says no score."""


class Corrected(Choice):
    """At every noisy level first the corrector, then the predictor to the next level.

    Y. Song et al. 2021, arXiv:2011.13456, §4.2 and algorithm 1; annealed Langevin with the
    predictor `Keep`. The updates at the first level have nothing to mend where the start has the
    law of that level, as it does here; annealed Langevin as published starts anywhere and needs
    them. A multistep predictor remembers x̂0 of the level before, which was not moved by the
    updates since: they should be small.

    Updates have an error of their own (a/2v of each variance v), which does not fall as the grid
    becomes finer. They mend predictors of order 1 on coarse grids; one of order 2 whose grid is
    fine enough has less to gain than to lose.
    """

    kind: Literal["corrected"] = "corrected"
    corrector: Langevin = Langevin()
    predictor: Predictor = Ancestral()

    def fitted(self, levels: Levels) -> Corrected:
        """This choice with a corrector that is fitted to the levels."""
        return self.model_copy(update={"corrector": self.corrector.fitted(levels)})

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        correct = self.corrector.along(process, levels)
        predict = self.predictor.along(process, levels)
        known: tuple[Noise, Noise] | None = None

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            nonlocal known
            if known is None or known[0] is not noise:  # one child a walk, for what it draws ahead
                known = noise, noise.child("corrector")
            x, _ = correct(denoise, i, x, known[1], None)
            return predict(denoise, i, x, noise, memory)

        return move

    def evaluations(self, steps: int) -> int:
        return self.corrector.evaluations(steps) + self.predictor.evaluations(steps)
