"""On Gaussian data every step is affine, so mean and covariance are propagated exactly.

    x_s = A x_t + b + S z    ⇒    m_s = A m_t + b,   Σ_s = A Σ_t Aᵀ + S Sᵀ

A, b and S are read off the step itself by probing it. No sampling error, so laws are equalities.
"""

import math

import pytest
import torch

from ornstein.diffusion.grid import Explicit, LogSNR
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.oracle import gaussian
from ornstein.diffusion.prediction import Prediction
from ornstein.diffusion.process import VE, VP, Cosine, Straight, Tabulated, transition
from ornstein.diffusion.steps import Ancestral, Heun, Jump, Renoise
from ornstein.diffusion.walk import sample
from ornstein.noise import Noise
from tests.helpers import (
    ANY,
    COVARIANCE,
    MEAN,
    PROCESSES,
    SPACINGS,
    affine,
    constant,
    f64,
    gaussian_data,
    grid,
    marginal,
    pairs_of,
    propagate,
    slope,
)

EYE = torch.eye(3, dtype=torch.float64)
VARIANCE_PRESERVING = ["vp", "linear", "cosine_table"]  # α² + σ² = 1, and α > 0 at t = 1


def close(ours, theirs, rtol=1e-7, atol=1e-8):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def reverse_kernel(name, t, s, covariance=COVARIANCE, mean=MEAN):
    """A, b and covariance of q(x_s | x_t) for x0 ~ N(mean, covariance), by conditioning.

    x_s = α_s x0 + σ_s ε and x_t = α_{t|s} x_s + σ_{t|s} ε', so Cov(x_s, x_t) = α_{t|s} Σ_s.
    """
    alpha = transition(PROCESSES[name], f64(s.t), f64(t.t))[0]
    sigma_s, sigma_t = (k.alpha**2 * covariance + k.sigma**2 * EYE for k in (s, t))
    gain = alpha * torch.linalg.solve(sigma_t, sigma_s).T
    b = s.alpha * mean - gain @ (t.alpha * mean)
    return gain, b, sigma_s - alpha * gain @ sigma_s


# --- point data: the law of x_s given x0 is kept by every η -----------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_on_point_data_every_eta_keeps_the_marginals(name, spacing):
    """DDIM's theorem: x_t ~ N(α_t x0, σ_t²) stays so for all η, and for renoising, exactly."""
    levels = grid(spacing, name, 6)
    for step in (Jump(eta=0), Jump(eta=0.4), Jump(eta=1), Ancestral(spread=0), Renoise()):
        start = (levels[0].alpha * MEAN, levels[0].sigma ** 2 * EYE)
        moments = propagate(step, constant(MEAN), levels, *start)
        for level, (mean, covariance) in zip(levels, moments, strict=True):
            close(mean, level.alpha * MEAN)
            close(covariance, level.sigma**2 * EYE)


# --- the notes' claim about β and β̃ -----------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_small_variance_is_optimal_for_point_data(name, spacing):
    """x0 a point: the kernel with β̃ is q(x_s|x_t), and with β its variance exceeds by β − β̃.

    Notes after eq 1.7, for every pair of levels of every process."""
    levels = grid(spacing, name, 6)
    for i, (t, s) in enumerate(pairs_of(levels)):
        gain, b, covariance = reverse_kernel(name, t, s, covariance=0 * EYE)
        large = transition(PROCESSES[name], f64(s.t), f64(t.t))[1] ** 2
        for v, excess in ((0, 0.0), (1, large * (1 - s.sigma**2 / t.sigma**2))):
            a, offset, noise = affine(Ancestral(spread=v), constant(MEAN), levels, i)
            # x̂0 does not depend on x here, and q(x_s|x_t) has mean A x_t + b.
            close(a, gain)
            close(offset, b)
            close(noise @ noise.T, covariance + excess * EYE)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_large_variance_is_optimal_for_unit_gaussian_data(name, spacing):
    """x0 ~ N(0, I): the kernel with β is q(x_s|x_t) = N(α_{t|s} x_t, β), for every pair.

    With β̃ instead, the variance of x_s falls short by β − β̃ = β (1 − σ_s²/σ_t²)."""
    oracle, levels = gaussian(0 * MEAN, EYE), grid(spacing, name, 6)
    for i, (t, s) in enumerate(pairs_of(levels)):
        alpha, std = transition(PROCESSES[name], f64(s.t), f64(t.t))
        gain, _, covariance = reverse_kernel(name, t, s, EYE, 0 * MEAN)
        close(gain, alpha * EYE)
        close(covariance, std**2 * EYE)
        for v, lack in ((1, 0.0), (0, std**2 * (1 - s.sigma**2 / t.sigma**2))):
            a, b, noise = affine(Ancestral(spread=v), oracle, levels, i)
            close(a, gain)
            close(b, 0 * b)
            close(noise @ noise.T, covariance - lack * EYE)
    # And so through a whole grid: N(0, I) stays N(0, I) at every level, with few steps.
    moments = propagate(Ancestral(spread=1), oracle, levels[:-1], 0 * MEAN, EYE)
    assert all((covariance - EYE).abs().max() < 1e-7 for _, covariance in moments)


def test_outside_variance_preserving_processes_unit_data_need_another_variance():
    """The general optimum σ²_{s|t} + (α_s σ²_{t|s}/σ_t²)² Var[x0|x_t] is β times V_s/V_t,
    V = α² + σ²: the notes' claim is about processes with V = 1."""
    for name in ("ve", "straight", "sub_vp"):
        for t, s in pairs_of(grid("uniform", name, 6)):
            std = transition(PROCESSES[name], f64(s.t), f64(t.t))[1].item()
            v_t, v_s = (k.alpha**2 + k.sigma**2 for k in (t, s))
            optimum = (std * s.sigma / t.sigma) ** 2
            optimum += (s.alpha * std**2 / t.sigma**2) ** 2 * t.sigma**2 / v_t
            assert optimum == pytest.approx(std**2 * v_s / v_t, rel=1e-9)
            exact = reverse_kernel(name, t, s, EYE, 0 * MEAN)[2]
            assert exact[0, 0].item() == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "linear"])
@pytest.mark.parametrize("variance", [0.2, 1.0, 4.0])
def test_with_the_optimal_spread_the_law_is_kept_at_every_level(name, variance):
    """Ancestral with the spread v that gives the optimal variance reproduces N(α m, α² c + σ²)
    on six coarse steps; for c = 4 that v exceeds 1, so it may not be clamped."""
    levels = grid("log_snr", name, 6)
    exact = gaussian(MEAN, variance * EYE)
    spreads = {}
    for t, s in pairs_of(levels):
        large = transition(PROCESSES[name], f64(s.t), f64(t.t))[1].item() ** 2
        small = large * s.sigma**2 / t.sigma**2
        left = variance * t.sigma**2 / (t.alpha**2 * variance + t.sigma**2)  # Var[x0|x_t]
        optimum = small + (s.alpha * large / t.sigma**2) ** 2 * left
        spreads[t] = math.log(optimum / small) / math.log(large / small)
    if variance == 4 and name == "vp":
        assert max(spreads.values()) > 1

    def denoise(x, level):
        return exact(x, level)._replace(spread=torch.full_like(x, spreads[level]))

    t = levels[0]
    start = (t.alpha * MEAN, (t.alpha**2 * variance + t.sigma**2) * EYE)
    moments = propagate(Ancestral(), denoise, levels[:-1], *start)
    for level, (mean, covariance) in zip(levels, moments, strict=False):
        close(mean, level.alpha * MEAN)
        close(covariance, (level.alpha**2 * variance + level.sigma**2) * EYE, rtol=1e-6)


# --- full covariance: means, and how fast covariances converge --------------------------------


@pytest.mark.parametrize("step", [Jump(eta=1), Jump(eta=0.5), Ancestral(spread=1)])
@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "linear"])
def test_means_are_exact_and_covariances_converge_at_order_one(name, step):
    """Every mean is exact at every level for any number of steps; Σ − Σ_exact ~ 1/n."""
    errors, counts = [], (40, 80, 160, 320)
    for n in counts:
        levels = grid("log_snr", name, n)[:-1]
        moments = propagate(step, gaussian_data(), levels, *marginal(levels[0]))
        for level, (mean, _) in zip(levels, moments, strict=True):
            close(mean, level.alpha * MEAN)
        errors.append((moments[-1][1] - marginal(levels[-1])[1]).abs().max().item())
    assert slope(counts, errors) == pytest.approx(1.0, abs=0.15)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("step", [Jump(eta=0.6), Jump(eta=1), Ancestral(spread=0.5), Renoise()])
@pytest.mark.parametrize("process", [VP(), VE(sigma_max=5), Tabulated()], ids=lambda p: p.kind)
def test_sampling_has_the_propagated_moments(step, process):
    """40,000 real paths against the exact mean and covariance: the draws are independent of
    each other, of the start and of the step before. Five standard errors."""
    n, oracle = 40_000, gaussian_data()
    levels = tuple(level_at(process, t) for t in (1.0, 0.7, 0.5, 0.3, 0.1))
    mean, covariance = marginal(levels[0])
    z = Noise.of(0, "start", n).normal(0, (3,), torch.float64)
    x = mean + z @ torch.linalg.cholesky(covariance).T
    *_, last = sample(oracle, process, levels, step, x, Noise.of(0, "steps", n))
    mean, covariance = propagate(step, oracle, levels, mean, covariance)[-1]
    variances = covariance.diagonal()
    assert ((last.x.mean(0) - mean).abs() < 5 * (variances / n).sqrt()).all()
    error = ((covariance**2 + variances.outer(variances)) / n).sqrt()
    assert ((torch.cov(last.x.T) - covariance).abs() < 5 * error).all()


# --- renoising -------------------------------------------------------------------------------


def square_root(matrix):
    values, axes = torch.linalg.eigh(matrix)
    return axes @ torch.diag(values.sqrt()) @ axes.T


def consistency_function(x, level):
    """The end of the flow through x: m + C^½ (α² C + σ² I)^{−½} (x − α m), a sample of the data."""
    whiten = torch.linalg.inv(square_root(marginal(level)[1]))
    x0 = MEAN + (x - level.alpha * MEAN) @ (square_root(COVARIANCE) @ whiten).T
    return Prediction.from_x0(x, level, x0)


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "straight", "linear"])
def test_renoising_a_sample_is_exact(name):
    """x̂0 from the data's own law: x_s = α_s x̂0 + σ_s z has the law of level s, to the end."""
    levels = grid("trailing", name, 5)
    moments = propagate(Renoise(), consistency_function, levels, *marginal(levels[0]))
    for level, (mean, covariance) in zip(levels, moments, strict=True):
        close(mean, level.alpha * MEAN)
        close(covariance, marginal(level)[1])


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_renoising_a_mean_loses_a_predicted_variance(name):
    """On unit data x̂0 = α_t x: V_s = α_s² α_t² V_t + σ_s², short of 1 by α_s² σ_t² after a step;
    in the limit of many steps V = 1/(1 + α²), and the samples keep half their variance."""
    oracle = gaussian(0 * MEAN, EYE)
    levels = grid("trailing", name, 5)
    moments = propagate(Renoise(), oracle, levels, 0 * MEAN, EYE)
    expected = 1.0
    for t, s, (_, covariance) in zip(levels, levels[1:], moments[1:], strict=False):
        expected = s.alpha**2 * t.alpha**2 * expected + s.sigma**2
        close(covariance, expected * EYE)
    first, second = levels[:2]
    close(moments[1][1], (1 - second.alpha**2 * first.sigma**2) * EYE)


def test_renoising_with_many_steps_halves_the_variance_and_jump_does_not():
    levels = grid("log_snr", "vp", 1500)
    oracle = gaussian(f64([0.0]), f64([[1.0]]))
    unit = f64([[1.0]])
    moments = propagate(Renoise(), oracle, levels, f64([0.0]), unit)
    for i in (500, 1000, 1450):
        expected = 1 / (1 + levels[i].alpha ** 2)
        assert moments[i][1].item() == pytest.approx(expected, rel=0.02)
    assert moments[-1][1].item() == pytest.approx(0.5, abs=0.01)
    kept = propagate(Jump(eta=1), oracle, levels, f64([0.0]), unit)[-1][1].item()
    assert kept == pytest.approx(1.0, abs=0.01)


# --- deterministic samplers on Gaussian data --------------------------------------------------


@pytest.mark.parametrize(
    ("step", "order"), [(Jump(), 1), (Heun(), 2), (Multistep(order=2, clock="log_snr"), 2)]
)
@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "straight", "cosine", "linear"])
def test_deterministic_steps_converge_to_the_closed_form_flow(name, step, order):
    """x_s = α_s m + Σ_s^½ Σ_t^{−½} (x_t − α_t m), the flow of N(m, C), at the order claimed.

    Straight paths and the cosine need an end in σ; the last level is at σ/α = 0.05 or above."""
    x = f64([[1.0, 0.3, -0.5], [-1.2, 0.8, 0.4]])
    sigma_max = {"straight": 20.0, "cosine": 20.0}.get(name)
    counts, errors = (40, 80, 160, 320), []

    for n in counts:
        levels = LogSNR(sigma_min=0.05, sigma_max=sigma_max)(PROCESSES[name], n)[:-1]
        (m_t, c_t), (m_s, c_s) = marginal(levels[0]), marginal(levels[-1])
        start = m_t + x @ square_root(c_t)
        exact = m_s + x @ square_root(c_s)
        *_, last = sample(gaussian_data(), ANY, levels, step, start, None)
        errors.append((last.x - exact).abs().max().item())
    assert slope(counts, errors) == pytest.approx(order, abs=0.2)
    assert errors[-1] < {1: 0.03, 2: 2e-3}[order]


def test_uniform_time_down_to_zero_costs_heun_its_order_on_vp():
    """Why the guarantee asks for t ≥ t_min and a grid that is smooth in σ.

    σ ~ √t, so the error is h² ln(1/h) and the measured order 1.6; on the log-SNR grid it is 2."""
    process, counts, errors = VP(beta_min=5, beta_max=5), (40, 80, 160, 320), []
    for n in counts:
        times = (*(1 - i / n for i in range(n)), 1e-12)
        levels = Explicit(times=times)(process, n + 1)[:-1]
        (m_t, c_t), (m_s, c_s) = marginal(levels[0]), marginal(levels[-1])
        *_, last = sample(gaussian_data(), process, levels, Heun(), m_t + square_root(c_t), None)
        errors.append((last.x - m_s - square_root(c_s)).abs().max().item())
    assert 1.3 < slope(counts, errors) < 1.75


def test_more_of_the_same_holds_on_paths_that_start_from_pure_noise():
    """Zero terminal SNR: α = 0 at the first level, where every step still is defined."""
    for process in (Straight(), Cosine()):
        for step in (Jump(), Jump(eta=1), Ancestral(spread=0), Renoise(), Heun(), Multistep()):
            levels = (*(level_at(process, t) for t in (1.0, 0.8, 0.5, 0.2)),)
            a, b, noise = affine(step, gaussian_data(), levels, 0)
            # From pure noise the mean of x0 is the prediction: x_s = α_s m + (...) x + ν z.
            close(b, levels[1].alpha * MEAN)
            kept = (a @ a.T + noise @ noise.T)[0, 0]
            if not isinstance(step, Heun):
                close(kept, f64(levels[1].sigma ** 2))
