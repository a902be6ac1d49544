"""One step back in time: Bayes, the published DDPM and DDIM updates, and the general step.

The notes' equations are coded here from β and ᾱ alone and held against the library's steps,
which know only α and σ of the two levels that they join.
"""

import math

import pytest
import torch

from ornstein.diffusion.grid import Explicit, Uniform
from ornstein.diffusion.levels import CLEAN, level_at
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.prediction import Prediction
from ornstein.diffusion.process import VE, VP, Tabulated, transition
from ornstein.diffusion.steps import Ancestral, Heun, Jump, Renoise
from ornstein.diffusion.walk import sample
from ornstein.noise import Noise
from tests.helpers import (
    ANY,
    PROCESSES,
    SPACINGS,
    Given,
    affine,
    constant,
    f64,
    gaussian_data,
    grid,
    pairs_of,
    two_dim_mixture,
)

POINT = f64([0.7, -1.3, 0.4])


def mean_and_std(step, denoise, t, s, x):
    """Of the Gaussian that a step draws from, by giving it z = 0 and z = 1."""
    mean, _ = step.along(ANY, (t, s))(denoise, 0, x, Given(torch.zeros_like(x)), None)
    moved, _ = step.along(ANY, (t, s))(denoise, 0, x, Given(torch.ones_like(x)), None)
    return mean, (moved - mean).mean().item()


# --- Bayes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_ancestral_step_is_bayes_rule(name, spacing):
    """Notes eq 19-20: q(x_s|x_t, x0) ∝ q(x_t|x_s) q(x_s|x0), a product of two Gaussians.

    Precisions add: 1/ν² = α²_{t|s}/σ²_{t|s} + 1/σ_s², for any two levels of any grid.
    """
    x = f64([[0.3, -2.0, 1.1]])
    for t, s in pairs_of(grid(spacing, name, 7)):
        alpha, std = (c.item() for c in transition(PROCESSES[name], f64(s.t), f64(t.t)))
        precision = alpha**2 / std**2 + 1 / s.sigma**2
        mean = (alpha * x / std**2 + s.alpha * POINT / s.sigma**2) / precision
        for step in (Jump(eta=1), Ancestral(spread=0)):
            ours, ours_std = mean_and_std(step, constant(POINT), t, s, x)
            torch.testing.assert_close(ours, mean, rtol=1e-6, atol=1e-7)
            assert ours_std == pytest.approx(1 / math.sqrt(precision), rel=1e-6)


def test_jump_one_is_ancestral_zero_exactly():
    """Two roads to q(x_s | x_t, x̂0): bit-equal states, with the last step to clean data."""
    for name in PROCESSES:
        x = Noise.of(0, "start", 5).normal(0, (3,), torch.float64)
        levels, noise = grid("uniform", name, 6), Noise.of(1, "steps", 5)
        roads = [
            sample(gaussian_data(), ANY, levels, step, x, noise)
            for step in (Jump(eta=1), Ancestral(spread=0))
        ]
        for a, b in zip(*roads, strict=True):
            assert torch.equal(a.x, b.x)


@pytest.mark.parametrize("rule", ["linear", "cosine"])
def test_notes_eq_1_7_22_and_23(rule):
    """μ̃ = √ᾱ_s β/(1−ᾱ_t) x0 + √α (1−ᾱ_s)/(1−ᾱ_t) x_t = (x_t − β ε/√(1−ᾱ_t))/√α;
    β̃ = β (1−ᾱ_s)/(1−ᾱ_t)."""
    steps = 30
    process = Tabulated(rule=rule, steps=steps)
    beta = process.betas()
    bar = torch.cumprod(1 - beta, 0)
    eps, x0 = f64([[0.4, 1.0, -2.0]]), POINT
    for i in range(1, steps):  # rows i+1 → i, counted from 1
        x = bar[i].sqrt() * x0 + (1 - bar[i]).sqrt() * eps
        a, b = 1 - beta[i], beta[i]
        eq_22 = (bar[i - 1].sqrt() * b * x0 + a.sqrt() * (1 - bar[i - 1]) * x) / (1 - bar[i])
        eq_23 = (x - b / (1 - bar[i]).sqrt() * eps) / a.sqrt()
        torch.testing.assert_close(eq_22, eq_23, rtol=1e-6, atol=1e-8)
        small = b * (1 - bar[i - 1]) / (1 - bar[i])
        t, s = level_at(process, (i + 1) / steps), level_at(process, i / steps)
        mean, std = mean_and_std(Ancestral(spread=0), constant(x0), t, s, x)
        torch.testing.assert_close(mean, eq_22, rtol=1e-7, atol=1e-8)
        assert std**2 == pytest.approx(small.item(), rel=1e-6)
        _, std = mean_and_std(Ancestral(spread=1), constant(x0), t, s, x)
        assert std**2 == pytest.approx(b.item(), rel=1e-6)
        # Notes eq 35: exp(v ln β + (1 − v) ln β̃).
        _, std = mean_and_std(Ancestral(spread=0.3), constant(x0), t, s, x)
        assert std**2 == pytest.approx(math.exp(0.3 * b.log() + 0.7 * small.log()), rel=1e-6)


def test_a_predicted_spread_overrides_the_chosen_one_per_element():
    t, s = level_at(VP(), 0.6), level_at(VP(), 0.5)
    v = f64([[0.0, 0.25, 1.0], [1.7, -0.2, 0.5]])

    def denoise(x, level):
        return constant(POINT)(x, level)._replace(spread=v)

    x = f64([[0.3, -2.0, 1.1], [0.0, 1.0, 2.0]])
    zero, one = (
        Ancestral(spread=0.5).along(ANY, (t, s))(denoise, 0, x, Given(torch.full_like(x, c)), None)[
            0
        ]
        for c in (0.0, 1.0)
    )
    large = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
    small = large * s.sigma**2 / t.sigma**2
    torch.testing.assert_close((one - zero) ** 2, large**v * small ** (1 - v))


# --- published algorithms, coded from the notes ----------------------------------------------


@pytest.mark.parametrize("large", [False, True])
def test_algorithm_2_of_ddpm(large):
    """x_{t−1} = (x_t − β/√(1−ᾱ) ε_θ)/√α + σ_t z, z = 0 at t = 1; σ² = β or β̃."""
    steps, oracle = 25, two_dim_mixture()
    process = Tabulated(steps=steps, beta_last=0.4)
    beta = [1e-4 + (0.4 - 1e-4) * i / (steps - 1) for i in range(steps)]
    bar = [math.prod(1 - b for b in beta[: i + 1]) for i in range(steps)]
    noise = Noise.of(3, "steps", 4)
    x = start = Noise.of(0, "start", 4).normal(0, (2,), torch.float64)
    walk = sample(
        oracle, process, Uniform()(process, steps), Ancestral(spread=float(large)), start, noise
    )
    for k, t in enumerate(range(steps, 0, -1)):
        b, ab, before = beta[t - 1], bar[t - 1], bar[t - 2] if t > 1 else 1.0
        eps = oracle(x, level_at(process, t / steps)).eps
        std = 0.0 if t == 1 else math.sqrt(b if large else b * (1 - before) / (1 - ab))
        z = noise.at(k).normal(0, (2,), torch.float64)
        x = (x - b / math.sqrt(1 - ab) * eps) / math.sqrt(1 - b) + std * z
        torch.testing.assert_close(next(walk).x, x, rtol=1e-8, atol=1e-8)


ROWS = {
    "neighbours": list(range(40, 0, -1)),
    "every fourth": list(range(40, 0, -4)),
    "uneven": [40, 37, 30, 29, 12, 5, 1],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_on_strides(rows, eta):
    """Notes eq 41-43 with σ as in the DDIM paper, eq 12 and 16:
    σ = η √((1−ᾱ_s)/(1−ᾱ_t)) √(1−ᾱ_t/ᾱ_s), so σ² = η² β̃ of the stride."""
    process, oracle = Tabulated(rule="cosine", steps=40), two_dim_mixture()
    bar = {0: 1.0}
    for i, beta in enumerate(process.betas().tolist(), start=1):
        bar[i] = bar[i - 1] * (1 - beta)
    levels = Explicit(times=tuple(row / 40 for row in rows))(process, len(rows))
    noise = Noise.of(3, "steps", 4)
    x = start = Noise.of(0, "start", 4).normal(0, (2,), torch.float64)
    walk = sample(oracle, process, levels, Jump(eta=eta), start, noise)
    for k, (t, s) in enumerate(zip(rows, [*rows[1:], 0], strict=True)):
        a_t, a_s = bar[t], bar[s]
        std = eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)
        eps = oracle(x, levels[k]).eps
        x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        z = noise.at(k).normal(0, (2,), torch.float64)
        x = math.sqrt(a_s) * x0 + math.sqrt(1 - a_s - std**2) * eps + std * z
        torch.testing.assert_close(next(walk).x, x, rtol=1e-7, atol=1e-7)


def test_heun_is_edms_algorithm_1():
    """d = (x − D)/σ; x' = x + (σ' − σ) d; then the average of both slopes (no churn)."""
    oracle, process = two_dim_mixture(), VE(sigma_min=0.002, sigma_max=80)
    levels = grid("karras", "edm", 9)
    x = 80 * Noise.of(0, "start", 6).normal(0, (2,), torch.float64)
    walk = sample(oracle, process, levels, Heun(), x, Noise.of(0, "steps", 6))
    sigmas = [level.sigma for level in levels]
    for i, state in enumerate(walk):
        d = (x - oracle(x, levels[i]).x0) / sigmas[i]
        ahead = x + (sigmas[i + 1] - sigmas[i]) * d
        if sigmas[i + 1] > 0:
            d_ahead = (ahead - oracle(ahead, level_at(process, levels[i + 1].t)).x0) / sigmas[i + 1]
            ahead = x + (sigmas[i + 1] - sigmas[i]) * (d + d_ahead) / 2
        x = ahead
        torch.testing.assert_close(state.x, x, rtol=1e-9, atol=1e-9)


# --- the general step ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_general_step_is_one_formula(name):
    """x_s = α_s x̂0 + √(σ_s² − ν²) ε̂ + ν z with ν = η ν_DDPM (Jump) or ν = σ_s (Renoise)."""
    oracle, x, z = gaussian_data(), f64([[0.3, -2.0, 1.1]]), f64([[1.0, 0.5, -0.7]])
    for t, s in pairs_of(grid("karras", name, 5)):
        p = oracle(x, t)
        ancestral = math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2) * s.sigma / t.sigma
        for step, nu in (
            *((Jump(eta=eta), eta * ancestral) for eta in (0.0, 0.4, 1.0)),
            (Renoise(), s.sigma),
        ):
            expected = s.alpha * p.x0 + math.sqrt(s.sigma**2 - nu**2) * p.eps + nu * z
            ours, _ = step.along(ANY, (t, s))(oracle, 0, x, Given(z), None)
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        euler = x + (s.alpha - t.alpha) * p.x0 + (s.sigma - t.sigma) * p.eps  # dx = x̂0 dα + ε̂ dσ
        torch.testing.assert_close(
            Jump().along(ANY, (t, s))(oracle, 0, x, Given(z), None)[0], euler
        )
        torch.testing.assert_close(p.at(s), euler)


@pytest.mark.parametrize("step", [Jump(eta=1), Ancestral(spread=1), Renoise(), Heun(), Multistep()])
def test_the_last_step_returns_the_clean_image_without_noise(step):
    oracle, t = gaussian_data(), level_at(VP(), 0.05)
    a, b, s = affine(step, oracle, (t, CLEAN), 0)
    x = f64([[0.3, -2.0, 1.1]])
    torch.testing.assert_close(x @ a.T + b, oracle(x, t).x0)
    assert s.abs().max() == 0


def test_steps_read_the_pair_and_nothing_else():
    """A step from i of a long grid is the step of the two levels alone (no stride is assumed)."""
    oracle, x = gaussian_data(), f64([[0.3, -2.0, 1.1]])
    levels = grid("karras", "vp", 9)
    z = Given(torch.ones_like(x))
    for step in (Jump(eta=0.7), Ancestral(spread=0.4), Renoise(), Heun()):
        for i in range(8):
            inside = step.along(ANY, levels)(oracle, i, x, z, None)[0]
            alone = step.along(ANY, levels[i : i + 2])(oracle, 0, x, z, None)[0]
            assert torch.equal(inside, alone)


def test_a_prediction_may_come_from_a_consistency_function():
    """`from_x0` is all that a student without (p, q) needs: x = α x0 + σ ε holds."""
    level = level_at(VP(), 0.5)
    x = f64([[0.3, -2.0, 1.1]])
    prediction = Prediction.from_x0(x, level, POINT.expand_as(x))
    torch.testing.assert_close(prediction.at(level), x)
