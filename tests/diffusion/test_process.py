"""Processes: α and σ against cumulative products, closed forms, quadrature and each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ornstein.diffusion.levels import level_at, level_of_log_snr
from ornstein.diffusion.process import (
    VE,
    VP,
    Cosine,
    Straight,
    SubVP,
    Tabulated,
    drift_diffusion,
    log_snr,
    rates,
    transition,
)
from tests.helpers import PROCESSES, ZERO_TERMINAL_SNR, f64

all_processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
TIMES = torch.linspace(0.02, 0.97, 39, dtype=torch.float64)


def times(process, n=41):
    return torch.linspace(max(process.smallest, 1e-3), 1.0, n, dtype=torch.float64)


# --- tables ----------------------------------------------------------------------------------


def linear_betas(steps):
    return [1e-4 + (0.02 - 1e-4) * i / (steps - 1) for i in range(steps)]


def cosine_betas(steps):
    """Notes eq 34: β_t = clip(1 − ᾱ_t/ᾱ_{t−1}, 0.999), ᾱ = f(t)/f(0), f = cos²(...)."""

    def alpha_bar(t):
        def f(u):
            return math.cos((u / steps + 0.008) / 1.008 * math.pi / 2) ** 2

        return f(t) / f(0)

    return [min(1 - alpha_bar(t) / alpha_bar(t - 1), 0.999) for t in range(1, steps + 1)]


@pytest.mark.parametrize("steps", [2, 10, 1000, 4000])
@pytest.mark.parametrize(("rule", "betas"), [("linear", linear_betas), ("cosine", cosine_betas)])
def test_rows_of_a_table_are_cumulative_products(rule, betas, steps):
    """α_i² = Π_{j≤i} (1 − β_j) and σ_i² = 1 − α_i² at t = i/T, multiplied out one by one."""
    process = Tabulated(rule=rule, steps=steps)
    expected, product = [], 1.0
    for beta in betas(steps):
        product *= 1 - beta
        expected.append(product)
    alpha, sigma = process(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    torch.testing.assert_close(process.betas(), f64(betas(steps)), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(alpha**2, f64(expected), rtol=1e-8, atol=0)
    torch.testing.assert_close(sigma**2, 1 - f64(expected), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rule", ["linear", "cosine"])
def test_zero_terminal_snr_is_algorithm_1(rule):
    """Lin et al. 2024, algorithm 1: √ᾱ less its last value, times √ᾱ₁/(√ᾱ₁ − √ᾱ_T)."""
    plain, rescaled = Tabulated(rule=rule), Tabulated(rule=rule, zero_terminal=True)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    root = plain(t)[0]
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha, sigma = rescaled(t)
    torch.testing.assert_close(alpha, expected, rtol=1e-9, atol=1e-12)
    assert (alpha[-1], sigma[-1]) == (0, 1)
    assert alpha[0].item() == pytest.approx(root[0].item(), rel=1e-12)
    betas = rescaled.betas()
    torch.testing.assert_close(
        torch.cumprod(1 - betas, 0).sqrt()[:-1], expected[:-1], rtol=1e-8, atol=0
    )
    assert betas[-1] == 1
    half = rescaled(f64([0.9995]))[0].item()
    assert half == pytest.approx(alpha[-2].item() / 2)  # falls linearly over the last step


@pytest.mark.parametrize(
    ("plain", "shifted"),
    [
        (Straight(), Straight(shift=3.0)),
        (Cosine(), Cosine(shift=3.0)),
        (Tabulated(), Tabulated(shift=3.0)),
        (Tabulated(zero_terminal=True), Tabulated(zero_terminal=True, shift=3.0)),
    ],
    ids=["straight", "cosine", "table", "rescaled"],
)
def test_a_shift_multiplies_the_noise_and_keeps_the_family(plain, shifted):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    (a, b), (c, d) = plain(t), shifted(t)
    torch.testing.assert_close(d / c, 3 * b / a, rtol=1e-9, atol=0)
    torch.testing.assert_close(log_snr(shifted, t), log_snr(plain, t) - 2 * math.log(3))
    norm = c + d if plain.kind == "straight" else torch.sqrt(c**2 + d**2)
    torch.testing.assert_close(norm, torch.ones_like(norm))
    if plain.kind == "straight":  # Esser et al. 2024, eq 23
        torch.testing.assert_close(d, 3 * t / (1 + 2 * t))


def test_the_cosine_table_is_clipped_at_the_end_only():
    betas = Tabulated(rule="cosine", steps=1000).betas()
    assert betas[-1] == 0.999
    assert (betas < 0.999).sum() == 999
    assert betas[0] == pytest.approx(4.1e-5, rel=0.02)  # improved DDPM's first β at T = 1000


def test_between_rows_log_snr_is_linear():
    process = Tabulated(steps=10, beta_last=0.5)
    rows = log_snr(process, torch.arange(1, 11, dtype=torch.float64) / 10)
    middle = log_snr(process, torch.arange(1, 10, dtype=torch.float64) / 10 + 0.03)
    torch.testing.assert_close(middle, 0.7 * rows[:-1] + 0.3 * rows[1:], rtol=1e-10, atol=1e-10)
    below = log_snr(process, f64([0.05]))  # beyond the first row at the first slope
    torch.testing.assert_close(below, 1.5 * rows[:1] - 0.5 * rows[1:2], rtol=1e-10, atol=1e-10)


def test_continuous_vp_is_the_limit_of_the_linear_table():
    """ln α_table = ln α_VP − ¼ Σ β_i² + O(β): 3.4 % at t = 1 for T = 1000, and predicted."""
    table, vp = Tabulated(), VP()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    difference = table(t)[0].log() - vp(t)[0].log()
    predicted = -0.25 * torch.cumsum(table.betas() ** 2, dim=0)
    assert (difference - predicted).abs().max() < 1.5e-3
    assert -0.036 < difference.min() < -0.032
    for steps in (10_000, 100_000):  # with β scaled as 1/T it tends to zero as 1/T
        finer = Tabulated(steps=steps, beta_first=0.1 / steps, beta_last=20 / steps)
        error = (finer(t)[0].log() - vp(t)[0].log()).abs().max()
        assert error == pytest.approx(0.0338 * 1000 / steps, rel=0.1)


# --- invariants of every process -------------------------------------------------------------


@all_processes
def test_snr_falls_and_toward_zero_there_is_data(process):
    alpha, sigma = process(times(process, 4001))
    assert (alpha[1:] * sigma[:-1] < alpha[:-1] * sigma[1:]).all()
    assert (sigma > 0).all()
    assert (alpha[:-1] > 0).all()
    alpha, sigma = process(f64([process.smallest]))
    assert sigma / alpha < 0.05


@pytest.mark.parametrize(
    "name", ["vp", "cosine", "linear", "cosine_table", "rescaled", "shifted_cosine"]
)
def test_variance_preserving_processes_preserve_variance(name):
    alpha, sigma = PROCESSES[name](times(PROCESSES[name]))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(41).double(), rtol=1e-14, atol=0)


def test_sub_vp_holds_less_noise_than_vp():
    """σ_subVP = σ_VP² at the same α."""
    t = times(VP())
    torch.testing.assert_close(SubVP()(t)[0], VP()(t)[0])
    torch.testing.assert_close(SubVP()(t)[1], VP()(t)[1] ** 2)


@pytest.mark.parametrize("name", ZERO_TERMINAL_SNR)
def test_zero_terminal_snr_is_exact(name):
    alpha, sigma = PROCESSES[name](f64([1.0]))
    assert alpha.item() == 0.0
    assert sigma.item() == 1.0


@given(
    st.sampled_from(sorted(PROCESSES)), st.floats(0, 1), st.floats(0.5, 30), st.floats(0.01, 0.4)
)
def test_time_inverts_log_snr(name, share, beta_max, beta_min):
    process = PROCESSES[name]
    if name in ("vp", "sub_vp"):
        process = process.model_copy(update={"beta_min": beta_min, "beta_max": beta_max})
    t = process.smallest + share * (0.999 - process.smallest)
    value = log_snr(process, f64([t]))
    torch.testing.assert_close(process.time(value), f64([t]), rtol=1e-9, atol=1e-9)
    level = level_of_log_snr(process, value.item())
    assert 2 * math.log(level.alpha / level.sigma) == pytest.approx(value.item(), abs=1e-8)
    assert level.t == pytest.approx(t, abs=1e-9)


@given(st.sampled_from(sorted(PROCESSES)), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_transitions_compose(name, shares):
    """q(x_u|x_s) is q(x_u|x_t) after q(x_t|x_s), and q(x_t|x_0) after q(x_s|x_0) is q(x_t|x_0)."""
    process = PROCESSES[name]
    s, t, u = (f64([process.smallest + c * (1 - process.smallest)]) for c in sorted(shares))
    (a_ts, sd_ts), (a_ut, sd_ut), (a_us, sd_us) = (
        transition(process, *pair) for pair in ((s, t), (t, u), (s, u))
    )
    if process(t)[0] > 0:
        torch.testing.assert_close(a_us, a_ut * a_ts)
        tolerance = {"rtol": 1e-9, "atol": 1e-12 * process(u)[1].item() ** 2}
        torch.testing.assert_close(sd_us**2, sd_ut**2 + a_ut**2 * sd_ts**2, **tolerance)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process(s), process(t)
    torch.testing.assert_close(alpha_t, a_ts * alpha_s)
    torch.testing.assert_close(sigma_t**2, sd_ts**2 + a_ts**2 * sigma_s**2)


@pytest.mark.parametrize("rule", ["linear", "cosine"])
def test_one_step_of_a_table_is_beta(rule):
    """Notes eq 1.3 and 15: q(x_i | x_{i−1}) = N(√(1−β_i) x_{i−1}, β_i)."""
    process = Tabulated(rule=rule, steps=50)
    i = torch.arange(2, 51, dtype=torch.float64)
    alpha, std = transition(process, (i - 1) / 50, i / 50)
    torch.testing.assert_close(alpha, torch.sqrt(1 - process.betas()[1:]), rtol=1e-9, atol=0)
    torch.testing.assert_close(std**2, process.betas()[1:], rtol=1e-8, atol=0)


# --- rates and the SDE -----------------------------------------------------------------------


def closed_form_rates(name, t):
    alpha, sigma = PROCESSES[name](t)
    beta = 0.1 + 19.9 * t
    half = math.pi / 2
    return {
        "vp": (-beta * alpha / 2, beta * alpha**2 / (2 * sigma)),
        "sub_vp": (-beta * alpha / 2, beta * alpha**2),
        "cosine": (-half * torch.sin(half * t), half * torch.cos(half * t)),
        "ve": (0 * t, sigma * math.log(50 / 0.01)),
        "edm": (0 * t, sigma * math.log(80 / 0.002)),
        "straight": (-torch.ones_like(t), torch.ones_like(t)),
    }[name]


@pytest.mark.parametrize("name", ["vp", "sub_vp", "cosine", "ve", "edm", "straight"])
def test_rates_are_the_closed_forms(name):
    for ours, theirs in zip(
        rates(PROCESSES[name], TIMES), closed_form_rates(name, TIMES), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine_table"])
def test_rates_of_a_table_are_its_slopes(name):
    """α² = sigmoid(λ): α̇ = ½ α σ² λ̇ and σ̇ = −½ σ α² λ̇, λ̇ = T (λ_{i+1} − λ_i)."""
    process = PROCESSES[name]
    i = torch.arange(1, process.steps, 7, dtype=torch.float64)
    t = (i + 0.4) / process.steps
    (alpha, sigma), (alpha_dot, sigma_dot) = process(t), rates(process, t)
    rise = log_snr(process, (i + 1) / process.steps) - log_snr(process, i / process.steps)
    rise = rise * process.steps
    torch.testing.assert_close(alpha_dot, alpha * sigma**2 * rise / 2, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(sigma_dot, -sigma * alpha**2 * rise / 2, rtol=1e-7, atol=1e-12)


def test_drift_and_diffusion_are_the_published_ones():
    """Notes after eq 1.19: VP f = −β/2, g² = β; VE f = 0, g² = dσ²/dt; sub-VP, straight."""
    t = TIMES
    beta = 0.1 + 19.9 * t
    integral = 0.1 * t + 19.9 * t**2 / 2
    ratio = math.log(50 / 0.01)
    expected = {
        "vp": (-beta / 2, beta),
        "sub_vp": (-beta / 2, beta * (1 - torch.exp(-2 * integral))),
        "ve": (0 * t, 2 * ratio * 0.01**2 * torch.exp(2 * ratio * t)),
        "straight": (-1 / (1 - t), 2 * t / (1 - t)),
        "cosine": (-math.pi / 2 * torch.tan(math.pi * t / 2), math.pi * torch.tan(math.pi * t / 2)),
    }
    for name, (f, g2) in expected.items():
        ours_f, ours_g = drift_diffusion(PROCESSES[name], t)
        torch.testing.assert_close(ours_f, f, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(ours_g**2, g2, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "cosine", "ve", "straight"])
def test_the_sde_integrates_to_the_transition(name):
    """α_{t|s} = exp ∫f and σ²_{t|s} = ∫ g(r)² α²_{t|r} dr, by Gauss-Legendre quadrature."""
    process, s, t = PROCESSES[name], 0.15, 0.8
    nodes, weights = np.polynomial.legendre.leggauss(60)
    r, w = f64((s + t) / 2 + (t - s) / 2 * nodes), f64((t - s) / 2 * weights)
    f, g = drift_diffusion(process, r)
    from_r = transition(process, r, f64([t]))[0]
    alpha, std = transition(process, f64([s]), f64([t]))
    torch.testing.assert_close(torch.exp((w * f).sum(0, keepdim=True)), alpha)
    torch.testing.assert_close((w * g**2 * from_r**2).sum(0, keepdim=True), std**2)


# --- edges -----------------------------------------------------------------------------------


@all_processes
def test_a_level_of_floats_is_the_level_of_a_tensor(process):
    one, many = level_at(process, 0.37), level_at(process, f64([0.37]))
    assert isinstance(one.alpha, float)
    assert [c.item() for c in many] == list(one)


def test_a_table_made_under_inference_mode_can_still_be_differentiated():
    process = Tabulated(steps=17)
    with torch.inference_mode():
        process(f64([0.5]))
    t = f64([0.3, 0.55]).requires_grad_()
    process(t)[0].sum().backward()
    torch.testing.assert_close(t.grad, rates(process, t.detach())[0])


@pytest.mark.parametrize(
    "bad",
    [
        lambda: VE(sigma_min=2, sigma_max=1),
        lambda: VP(beta_min=-1),
        lambda: Tabulated(steps=1),
        lambda: Tabulated(rule="quadratic"),
        lambda: Cosine(offset=0.008),
        lambda: Straight(smallest=float("nan")),
    ],
)
def test_choices_that_cannot_work_are_refused(bad):
    with pytest.raises(ValidationError):
        bad()
