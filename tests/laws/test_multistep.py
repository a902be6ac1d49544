"""Exponential multistep and single-step solvers: exactness, orders, the published special cases."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate

from ornstein.diffusion.grid import Budget, LogSNR, Uniform
from ornstein.diffusion.langevin import Corrected
from ornstein.diffusion.levels import CLEAN, level_at, level_of_log_snr
from ornstein.diffusion.multistep import Multistep, Singlestep, Suited
from ornstein.diffusion.oracle import gaussian
from ornstein.diffusion.prediction import Prediction
from ornstein.diffusion.process import VP
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Jump
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import (
    ANY,
    PROCESSES,
    SPACINGS,
    Given,
    NoNoise,
    constant,
    f64,
    gaussian_data,
    grid,
    propagate,
    slope,
    two_dim_mixture,
)

FIELDS = ("x0", "eps", "v")
CLOCKS = ("asinh", "log_snr", "ratio")


def walk(step, denoise, levels, x, process=ANY):
    return list(sample(denoise, process, levels, step, x, NoNoise()))


def end(step, denoise, levels, x):
    return walk(step, denoise, levels, x)[-1].x


def ratio(level):
    return level.sigma / level.alpha


def clock(name, r):
    return {"asinh": math.asinh(r / 0.5), "log_snr": math.log(r), "ratio": r}[name]


def field_point(name, level):
    """(p, q) of f = p x0 + q ε, σ_d = 1, from the definitions."""
    if name == "v":
        norm = math.hypot(level.alpha, level.sigma)
        return -level.sigma / norm, level.alpha / norm
    return (1.0, 0.0) if name == "x0" else (0.0, 1.0)


def saying(name, f):
    """A denoiser of which the field `name` is f(r), whatever x is."""

    def denoise(x, level):
        p, q = field_point(name, level)
        return Prediction(x, level, f(ratio(level)) * torch.ones_like(x), p, q)

    return denoise


def integrated(name, f, t, s, x):
    """x at s from x at t where the field is f(r): the three integrals, by adaptive quadrature."""
    rt, rs = ratio(t), ratio(s)
    if name == "x0":
        part = integrate.quad(lambda q: f(1 / q), 1 / rt, 1 / rs, epsabs=0, epsrel=1e-12)[0]
        return s.sigma * (x / t.sigma + part)
    if name == "eps":
        part = integrate.quad(f, rt, rs, epsabs=0, epsrel=1e-12)[0]
        return s.alpha * (x / t.alpha + part)
    part = integrate.quad(
        lambda phi: f(math.tan(phi)), math.atan(rt), math.atan(rs), epsabs=0, epsrel=1e-12
    )[0]
    return math.hypot(s.alpha, s.sigma) * (x / math.hypot(t.alpha, t.sigma) + part)


# --- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("clock_name", CLOCKS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ["vp", "edm", "straight"])
def test_a_field_that_is_a_polynomial_in_the_clock_is_integrated_exactly(
    name, field, clock_name, order
):
    """Of degree `order` − 1, once so many levels are behind; against adaptive quadrature."""
    levels = LogSNR(sigma_min=0.05, sigma_max=20)(PROCESSES[name], 12)[:-1]
    step = Multistep(order=order, field=field, clock=clock_name)

    def f(r):
        return sum((0.3 * clock(clock_name, r)) ** k / (k + 1) for k in range(order))

    x = f64([[0.7]])
    states = [x, *(state.x for state in walk(step, saying(field, f), levels, x))]
    for i in range(order - 1, 11):
        expected = integrated(field, f, levels[i], levels[i + 1], states[i].item())
        assert states[i + 1].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("clock_name", CLOCKS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_last_step_extrapolates_to_the_data(clock_name, order):
    """x̂0 at r = 0 by the polynomial in r² for the asinh clock; x̂0 itself where data are infinitely
    far; by the one in r for the clock r."""
    levels = (*LogSNR(sigma_min=0.1, sigma_max=0.5)(VP(), 6)[:-1], CLEAN)
    step = Multistep(order=order, clock=clock_name)
    powers = {"asinh": 2, "ratio": 1, "log_snr": 0}[clock_name]

    def f(r):
        return 0.5 - sum(r ** (powers * k) for k in range(1, order if powers else 1))

    last = end(step, saying("x0", f), levels, f64([[0.3]]))
    assert last.item() == pytest.approx(0.5, abs=1e-9)


def test_each_field_has_data_for_which_one_step_is_enough():
    """x0: a point. v: N(0, σ_d²), at the σ_d it is told. Steps of any length, to the data."""
    levels = (*(level_of_log_snr(VP(), v) for v in (-6.0, 5.0)), CLEAN)
    x = f64([[1.1, -0.4]])
    point = f64([0.3, 2.0])
    close(end(Multistep(order=1), constant(point), levels, x), point.expand(1, 2))
    for std in (0.5, 1.0, 2.0):
        oracle = gaussian(f64([0.0, 0.0]), std**2 * torch.eye(2, dtype=torch.float64))
        for step in (
            Multistep(order=1, field="v", sigma_data=std),
            Multistep(order=3, field="v", sigma_data=std, corrector=True),
            Singlestep(field="v", sigma_data=std),
        ):
            norm = math.hypot(levels[0].sigma, std * levels[0].alpha)
            close(end(step, oracle, levels, x), x * std / norm)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- orders ----------------------------------------------------------------------------------


def fine(oracle, levels, x):
    """Where the flow goes, by an independent integrator: dy/d log r = y − x̂0."""
    shape, t, s = x.shape, levels[0], levels[-1]

    def slope_at(log_r, y):
        r = math.exp(log_r)
        alpha = 1 / math.hypot(1, r)
        level = t._replace(alpha=alpha, sigma=r * alpha)
        at = torch.from_numpy(y).view(shape)
        return (at - oracle(alpha * at, level).x0).flatten().numpy()

    found = integrate.solve_ivp(
        slope_at,
        (math.log(ratio(t)), math.log(ratio(s))),
        (x / t.alpha).flatten().numpy(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    )
    return s.alpha * torch.from_numpy(found.y[:, -1]).view(shape)


def order_of(step, counts=(40, 60, 90)):
    """By regression, on a mixture; the grid has no last step to the data, and what a step remembers
    at its start is exact, since a first step of order 1 limits all to order 2."""
    oracle, spacing = two_dim_mixture(), LogSNR(sigma_min=0.1, sigma_max=10)
    ends = spacing(VP(), 2)
    x = ends[0].alpha * f64([[0.3, -0.4]]) + ends[0].sigma * f64([[-0.9, 0.3], [0.8, 1.1]])
    truth, errors = fine(oracle, ends[:2], x), []
    for n in counts:
        levels, before = spacing(VP(), n)[:-1], getattr(step, "order", 1)
        before = 0 if isinstance(step, Singlestep) else before
        memory, at = (), x
        for i in range(before):
            said = oracle(at, levels[i]).point(*field_point(step.field, levels[i]))
            memory, at = (said, *memory), fine(oracle, levels[i : i + 2], at)
        move = step.along(VP(), levels)
        for i in range(before, n - 1):
            at, memory = move(oracle, i, at, NoNoise(), memory)
        errors.append((at - truth).abs().max().item())
    return slope(counts, errors)


@pytest.mark.parametrize(
    ("order", "field", "clock_name", "corrector"),
    [
        *((o, f, c, False) for o, f, c in itertools.product((1, 2, 3), FIELDS, CLOCKS[:2])),
        *((o, f, "log_snr", True) for o, f in itertools.product((1, 2), FIELDS)),
        (4, "x0", "asinh", False),
        (2, "x0", "asinh", True),
        (2, "eps", "ratio", False),
    ],
)
def test_orders(order, field, clock_name, corrector):
    """`order`, and one more with the corrector."""
    step = Multistep(order=order, field=field, clock=clock_name, corrector=corrector)
    found = order_of(step, (90, 135, 200) if clock_name == "ratio" else (60, 90, 135))
    assert order + corrector - 0.3 < found < order + corrector + 0.6


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("field", FIELDS)
def test_orders_of_single_steps(order, field):
    assert order_of(Singlestep(order=order, field=field)) == pytest.approx(order, abs=0.3)


# --- published solvers -----------------------------------------------------------------------


def test_noise_form_in_the_ratio_is_adams_bashforth():
    """k-diffusion's `lms`, and DEIS in σ: weights by numpy's exact integration of polynomials."""
    oracle, levels = two_dim_mixture(), grid("karras", "ve", 12)[:-1]
    x = f64([[12.0, -30.0], [3.0, 44.0]])
    states = walk(Multistep(order=3, field="eps", clock="ratio"), oracle, levels, x)
    sigmas, slopes = [ratio(level) for level in levels], []
    for i, state in enumerate(states):
        slopes.append(oracle(x, levels[i]).eps)
        nodes = sigmas[max(0, i - 2) : i + 1]
        for j, node in enumerate(nodes):
            others = [n for n in nodes if n != node]
            line = np.poly1d(others, r=True) / np.prod([node - n for n in others])
            area = line.integ()(sigmas[i + 1]) - line.integ()(sigmas[i])
            x = x + area * slopes[max(0, i - 2) + j]
        torch.testing.assert_close(state.x, x, rtol=1e-8, atol=1e-8)


def phi(k, h):
    """φ_k of exponential integrators, ∫_0^1 e^{(1−θ)h} θ^{k−1}/(k−1)! dθ."""
    return integrate.quad(
        lambda u: math.exp((1 - u) * h) * u ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=1e-14
    )[0]


def test_data_form_in_log_snr_is_unipc():
    """UniP-3 and UniC-3 with B(h) = h: R ρ = b, b_k = h φ_{k+1}(−h) k!/B (arXiv:2302.04867, eq 9-11
    and table 1 for data prediction), in which B(h) cancels."""
    oracle, levels = two_dim_mixture(), LogSNR(sigma_min=0.05, sigma_max=20)(VP(), 9)[:-1]
    x, lam = levels[0].sigma * f64([[0.4, -1.0], [1.4, 0.3]]), [-math.log(ratio(k)) for k in levels]
    for corrector in (False, True):
        states = walk(Multistep(order=3, clock="log_snr", corrector=corrector), oracle, levels, x)
        base, said = x, []

        def step_to(i, base, said, nodes):
            """From level i to i + 1 by x̂0 at the levels `nodes`, i first."""
            h = lam[i + 1] - lam[i]
            share = [(lam[k] - lam[i]) / h for k in nodes[1:]]
            size = len(share)
            out = levels[i + 1].sigma / levels[i].sigma * base
            out = out - levels[i + 1].alpha * math.expm1(-h) * said[nodes[0]]
            if size:
                # ∫ e^{λ} (θh)^k/k!: what each power of λ contributes, times σ_s e^{-λ_s}.
                moments = [h * phi(k + 1, -h) * math.factorial(k) for k in range(1, size + 1)]
                rows = np.array([[r**k for r in share] for k in range(1, size + 1)])
                for rho, node in zip(np.linalg.solve(rows, moments), nodes[1:], strict=True):
                    out = out + levels[i + 1].alpha * rho * (said[node] - said[nodes[0]])
            return out

        predicted = x
        for i, state in enumerate(states):
            said.append(oracle(predicted, levels[i]).x0)
            if corrector and i > 0:
                nodes = [i - 1, i, *range(i - 2, max(-1, i - 4), -1)]
                base = step_to(i - 1, base, said, nodes)
            elif i > 0:
                base = predicted
            predicted = step_to(i, base, said, list(range(i, max(-1, i - 3), -1)))
            torch.testing.assert_close(state.x, predicted, rtol=1e-8, atol=1e-8)


def test_single_steps_of_order_two_are_dpm_solver_2s():
    """x̂0 half-way in λ by a step of order 1; the step's x̂0 goes on in a straight line through both,
    integrated exactly (arXiv:2211.01095, algorithm 1, with φ_2 for its ½)."""
    oracle, levels = two_dim_mixture(), LogSNR(sigma_min=0.05, sigma_max=20)(VP(), 5)[:-1]
    x = levels[0].sigma * f64([[0.4, -1.0]])
    for i, state in enumerate(walk(Singlestep(order=2), oracle, levels, x, VP())):
        t, s = levels[i], levels[i + 1]
        h = math.log(ratio(t) / ratio(s))
        mid = level_of_log_snr(VP(), -2 * math.log(ratio(t)) + h)
        first = oracle(x, t).x0
        middle = mid.sigma / t.sigma * x - mid.alpha * math.expm1(-h / 2) * first
        second = oracle(middle, mid).x0
        x = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * first
        x = x + s.alpha * 2 * h * phi(2, -h) * (second - first)
        torch.testing.assert_close(state.x, x, rtol=1e-9, atol=1e-9)


# --- the SDE ---------------------------------------------------------------------------------


def test_with_noise_of_the_sde_order_one_is_ancestral():
    """η = 1: the integral of x̂0 dτ with x̂0 held is the ancestral step, at every level."""
    oracle, levels = gaussian_data(), grid("log_snr", "vp", 6)
    noise, x = Noise.of(3, "steps", 5), Noise.of(0, "x", 5).normal(0, (3,), torch.float64)
    ours = list(sample(oracle, ANY, levels, Multistep(order=1, eta=1), x, noise))
    theirs = list(sample(oracle, ANY, levels, Jump(eta=1), x, noise))
    for a, b in zip(ours, theirs, strict=True):
        close(a.x, b.x)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_drift_of_the_sde_is_integrated_exactly(eta):
    """d(x α^κ/σ^{1+κ}) = x̂0 d(1/r)^{1+κ}, κ = η², where x̂0 is a polynomial in the clock, against
    adaptive quadrature; and its noise is σ_s √(1 − (r_s/r_t)^{2κ})."""
    levels, kappa = LogSNR(sigma_min=0.05, sigma_max=20)(VP(), 9)[:-1], eta**2
    move = Multistep(order=3, clock="log_snr", eta=eta).along(VP(), levels)

    def f(r):
        return 0.4 - 0.3 * math.log(r) + 0.1 * math.log(r) ** 2

    x, memory = f64([[0.7], [0.7]]), None
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        before = x[0].item()
        x, memory = move(saying("x0", f), i, x, Given(f64([[0.0], [1.0]])), memory)
        if i >= 2:
            ends = 1 / ratio(t), 1 / ratio(s)
            area = integrate.quad(lambda q: f(1 / q) * (1 + kappa) * q**kappa, *ends, epsrel=1e-12)[
                0
            ]
            start = before * t.alpha**kappa / t.sigma ** (1 + kappa)
            expected = s.sigma ** (1 + kappa) / s.alpha**kappa * (start + area)
            assert x[0].item() == pytest.approx(expected, rel=1e-9)
            std = s.sigma * math.sqrt(1 - (ratio(s) / ratio(t)) ** (2 * kappa))
            assert (x[1] - x[0]).item() == pytest.approx(std, rel=1e-9)
        x = x[:1].repeat(2, 1)
        memory = tuple(m[:1].repeat(2, 1) for m in memory)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_keeps_the_marginals(eta):
    """Of Gaussian data: the covariance at the last noisy level converges to the true one, for any
    share of noise, at order 1 or better in the number of steps."""
    unit = gaussian(f64([0.0]), 0.25 * torch.eye(1, dtype=torch.float64))
    counts, errors = (20, 40, 80), []
    for n in counts:
        levels = LogSNR(sigma_min=0.05, sigma_max=20)(VP(), n)[:-1]
        start = 0.25 * levels[0].alpha ** 2 + levels[0].sigma ** 2
        moments = propagate(
            Multistep(order=1, eta=eta), unit, levels, f64([0.0]), f64([[start]]), VP()
        )
        truth = 0.25 * levels[-1].alpha ** 2 + levels[-1].sigma ** 2
        errors.append(abs(moments[-1][1].item() / truth - 1))
    assert slope(counts, errors) > 0.9


def test_higher_orders_of_the_sde_are_nearer_to_its_law():
    """Second moments of 20,000 samples of a mixture, against exact ones: order 3 errs less than
    order 1 at 10 steps, beyond what chance explains."""
    oracle = two_dim_mixture()
    exact = oracle.sample(Noise.of(9, "exact", 20_000))
    errors = {}
    for order in (1, 3):
        levels = LogSNR(sigma_min=0.05, sigma_max=20)(VP(), 12)
        x = levels[0].sigma * Noise.of(0, "start", 20_000).normal(0, (2,), torch.float64)
        step = Multistep(order=order, clock="log_snr", eta=1.0)
        *_, last = sample(oracle, VP(), levels, step, x, Noise.of(1, "steps", 20_000))
        errors[order] = (torch.cov(last.x.T) - torch.cov(exact.T)).abs().max().item()
    assert errors[3] < 0.5 * errors[1]


# --- grids -----------------------------------------------------------------------------------


def test_a_grid_that_would_break_a_solver_is_refused_with_a_way_out():
    levels = Uniform()(VP(), 10)
    for step in (Multistep(clock="log_snr"), Multistep(order=2, clock="log_snr")):
        with pytest.raises(ConfigError, match=r"magnify errors \d+ times; write grid=budget"):
            step.along(VP(), levels)
    Multistep(order=1, clock="log_snr").along(VP(), levels)
    Multistep().along(VP(), levels)  # the asinh clock compresses what log σ stretches


def test_the_suited_solver_lowers_its_order_where_the_grid_asks_for_it():
    """And is what it says elsewhere: order 2 up to 12 steps, 4 beyond, corrected."""
    oracle, x = two_dim_mixture(), f64([[0.4, -1.0]])
    for steps, order in ((5, 2), (12, 2), (13, 4), (40, 4)):
        levels = Budget()(VP(), steps)
        expected = end(Multistep(order=order, corrector=True), oracle, levels, x)
        close(end(Suited(), oracle, levels, x), expected)
        for spacing in SPACINGS:
            for name in ("vp", "linear", "cosine", "straight", "edm"):
                levels = grid(spacing, name, steps)
                assert end(Suited(), oracle, levels, x).isfinite().all()


def test_starts_from_pure_noise():
    """α = 0: data and v form begin with a step of order 1; noise form and single steps refuse."""
    levels = grid("trailing", "straight", 8)
    x = f64([[0.4, -1.0]])
    for step in (Multistep(), Multistep(field="v"), Multistep(corrector=True, clock="log_snr")):
        assert end(step, two_dim_mixture(), levels, x).isfinite().all()
    for step in (Multistep(field="eps"), Singlestep()):
        with pytest.raises(ConfigError, match="sigma_max"):
            step.along(PROCESSES["straight"], levels)


def test_the_sde_is_in_data_form():
    with pytest.raises(ValueError, match="needs field=x0"):
        Multistep(eta=1.0, field="eps")


def test_a_sampler_tells_its_step_the_spread_of_the_data():
    """Where it is not given, and to the predictor of a corrected step as well."""
    info: Any = SimpleNamespace(std=0.3)
    assert Sampling().measured_step(info) == Suited(sigma_data=0.3)
    assert Sampling(step=Suited(sigma_data=2.0)).measured_step(info) == Suited(sigma_data=2.0)
    assert Sampling(step=Jump()).measured_step(info) == Jump()
    corrected = Sampling(step=Corrected(predictor=Multistep())).measured_step(info)
    assert corrected == Corrected(predictor=Multistep(sigma_data=0.3))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 200])
@pytest.mark.parametrize("name", ["vp", "edm", "linear", "sub_vp"])
def test_budget_grids(name, steps):
    """From t = 1 to 3 σ_d/n² or the smallest level; denser where data show."""
    process = PROCESSES[name]
    levels = Budget(sigma_data=0.5)(process, steps)
    assert len(levels) == steps + 1
    assert levels[0].t == pytest.approx(1.0)
    assert levels[-1] == CLEAN
    if steps > 1:
        wanted = max(3 * 0.5 / steps**2, ratio(level_at(process, float(process.smallest))))
        assert ratio(levels[-2]) == pytest.approx(min(wanted, ratio(levels[0])), rel=1e-6)
    gaps = [math.log(ratio(t) / ratio(s)) for t, s in itertools.pairwise(levels[:-1])]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(gaps))


def test_the_default_moves_with_the_scale_of_the_data():
    """Data c times as large, under a process whose levels are, too: samples c times as large."""
    found = []
    for c in (1.0, 8.0):
        process = PROCESSES["edm"].but(sigma_min=0.002 * c, sigma_max=80 * c)
        oracle = gaussian(f64([0.1 * c, -0.2 * c]), (0.5 * c) ** 2 * torch.eye(2).double())
        levels = Budget(sigma_data=0.5 * c)(process, 7)
        x = levels[0].sigma * f64([[0.4, -1.0]])
        found.append(end(Suited(sigma_data=0.5 * c), oracle, levels, x) / c)
    close(found[1], found[0])
