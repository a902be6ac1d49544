"""Reverse-time SDEs: weak orders exactly, strong orders along one path, and the law at the end.

On Gaussian data a step is affine in x and in its unit increment z, so that mean and covariance
are propagated without sampling error. `unit` is a stand-in for the path that takes z from the
test; that a real path's increments are independent and standard normal is tested where it is made.
"""

import math
from itertools import pairwise

import pytest
import torch

from ornstein.diffusion import stochastic
from ornstein.diffusion.brownian import Path
from ornstein.diffusion.grid import Karras, LogSNR, Trailing, Uniform
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.oracle import Mixture
from ornstein.diffusion.process import VE, Cosine, Straight, drift_diffusion, transition
from ornstein.diffusion.steps import Jump
from ornstein.diffusion.stochastic import EulerMaruyama, StochasticHeun
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import (
    MEAN,
    PROCESSES,
    SPACINGS,
    ZERO_TERMINAL_SNR,
    Given,
    NoNoise,
    affine,
    constant,
    f64,
    gaussian_data,
    grid,
    marginal,
    pairs_of,
    slope,
    two_dim_mixture,
)

EM, HEUN = EulerMaruyama(), StochasticHeun()
SDE = ("vp", "ve", "sub_vp", "cosine", "straight")


class Unit:
    """A path whose increments the test gives."""

    def __init__(self, clock):
        assert all(v != w for v, w in pairwise(clock))

    def added(self, x, std, noise, i):
        return x.add_(noise.normal(0, x.shape[1:], x.dtype), alpha=std)


@pytest.fixture
def unit(monkeypatch):
    monkeypatch.setattr(stochastic, "Path", Unit)


def ends(sigma_min=0.1, sigma_max=10.0):
    return LogSNR(sigma_min=sigma_min, sigma_max=sigma_max)


def final(step, name, spacing, n, oracle, ids=64, seed=0, dtype=torch.float64, dim=2):
    """Where sample `ids` of a seed end, from starts that depend on neither grid nor step."""
    levels = spacing(PROCESSES[name], n)
    noise = Noise.of(seed, "sample", ids)
    start = noise.child("start").normal(0, (dim,), dtype)
    x = math.hypot(levels[0].alpha, levels[0].sigma) * start
    *_, last = sample(oracle, PROCESSES[name], levels, step, x, noise.child("steps"))
    return last.x


def rms(x):
    return x.square().mean().sqrt().item()


# --- what a step is ---------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("name", PROCESSES)
def test_euler_maruyama_is_the_equation(name, eta, unit):
    """dx = [f x − (1 + η²)/2 g² s] dt + η g dw, with f, g of the SDE and the score by autograd."""
    process, oracle = PROCESSES[name], two_dim_mixture()
    t, s = level_at(process, 0.6), level_at(process, 0.57)
    x, z = f64([[0.3, -0.8], [1.4, 0.2]]) * t.sigma, f64([[0.4, -1.3], [0.1, 2.0]])
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_prob(leaf, t).sum(), leaf)
    f, g = (c.item() for c in drift_diffusion(process, f64(t.t)))
    drift = f * x - 0.5 * (1 + eta**2) * g**2 * score
    expected = x - drift * (t.t - s.t) + eta * g * math.sqrt(t.t - s.t) * z
    move = EulerMaruyama(eta=eta).along(process, (t, s))
    ours, _ = move(oracle, 0, x, Given(z) if eta else NoNoise(), None)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_with_the_clean_image_held_the_sde_step_is_ancestral(name, spacing, unit):
    """x0 a point: nothing to correct, and both moments are DDPM's, from pure noise, too."""
    levels = grid(spacing, name, 6)
    for i in range(6):
        ours = affine(HEUN, constant(MEAN), levels, i)
        ddpm = affine(Jump(eta=1), constant(MEAN), levels, i)
        for a, b in zip(ours, ddpm, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_one_localisation(name):
    """Given x0, z = x α/σ² has mean τ x0 and covariance min(τ, τ'): it is τ x0 + W(τ)."""
    for t, s in pairs_of(grid("uniform", name, 6)):
        alpha = transition(PROCESSES[name], f64(s.t), f64(t.t))[0].item()
        scale = [k.alpha / k.sigma**2 for k in (t, s)]
        tau = [(k.alpha / k.sigma) ** 2 for k in (t, s)]
        assert scale[0] * scale[1] * alpha * s.sigma**2 == pytest.approx(min(tau), rel=1e-9)
        for k, c, snr in zip((t, s), scale, tau, strict=True):
            assert c * k.alpha == pytest.approx(snr, rel=1e-12)
            assert c**2 * k.sigma**2 == pytest.approx(snr, rel=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_stochastic_heun_is_the_trapezoid_in_localisation(name):
    """z_s = z + Δτ (x̂0 + x̂0')/2 + ΔB, x̂0' at z + Δτ x̂0 + ΔB, with a real path's ΔB."""
    oracle, levels = two_dim_mixture(), grid("trailing", name, 5)
    tau = [(k.alpha / k.sigma) ** 2 for k in levels[:-1]]
    noise = Noise.of(0, "steps", 3)
    x = levels[0].sigma * Noise.of(1, "start", 3).normal(0, (2,), torch.float64)
    path, z = Path(tau), x * levels[0].alpha / levels[0].sigma ** 2
    *states, last = sample(oracle, PROCESSES[name], levels, HEUN, x, noise)

    def clean(z, level):
        return oracle(z * (level.sigma**2 / level.alpha), level).x0

    for i, (t, s) in enumerate(pairwise(levels[:-1])):
        gap = tau[i + 1] - tau[i]
        jump = math.sqrt(gap) * path.normal(noise, i, x)
        first = oracle(x, t).x0 if t.alpha == 0 else clean(z, t)
        second = clean(z + gap * first + jump, s)
        z = z + 0.5 * gap * (first + second) + jump
        torch.testing.assert_close(
            states[i].x, z * s.sigma**2 / s.alpha, rtol=1e-8, atol=1e-8 * max(1, s.sigma)
        )
    torch.testing.assert_close(last.x, clean(z, levels[-2]), rtol=1e-8, atol=1e-8)


def test_the_last_step_is_the_clean_image_and_eta_zero_draws_nothing():
    oracle, x = gaussian_data(), f64([[0.3, -0.4, 1.0]])
    for step in (EM, HEUN, EulerMaruyama(eta=0)):
        levels = grid("karras", "vp", 3)
        move = step.along(PROCESSES["vp"], levels)
        out, _ = move(oracle, 2, x, NoNoise(), None)
        torch.testing.assert_close(out, oracle(x, levels[2]).x0)
    *_, last = sample(oracle, PROCESSES["vp"], levels, EulerMaruyama(eta=0), x, NoNoise())
    assert last.x.isfinite().all()


@pytest.mark.parametrize("name", ZERO_TERMINAL_SNR)
def test_from_pure_noise(name):
    """α = 0: Euler-Maruyama has an infinite g there and says so; η = 0 and Heun are defined."""
    process = PROCESSES[name]
    with pytest.raises(ConfigError, match="use step=stochastic_heun"):
        EM.along(process, Trailing()(process, 4))
    for step in (EulerMaruyama(eta=0), HEUN):
        out = final(step, name, Trailing(), 50, two_dim_mixture(), ids=8)
        assert out.abs().max() < 4


def test_a_level_that_rounds_to_before_zero_is_at_zero():
    """VE ends at t = 0, which a grid in σ may miss by a rounding on either side."""
    process = VE(sigma_min=0.05, sigma_max=10)
    levels = Karras()(process, 4)
    assert -1e-15 < levels[-2].t < 0
    x = 10 * Noise.of(0, "start", 3).normal(0, (2,), torch.float64)
    *_, last = sample(two_dim_mixture(), process, levels, EM, x, Noise.of(0, "steps", 3))
    assert last.x.isfinite().all()


# --- weak orders, exactly ---------------------------------------------------------------------


def weak_error(step, process, levels):
    """How far mean and covariance at the last level are from those of the data there.

    Each step is read off by probing, as `affine` does, of a move that is made once."""
    move, (mean, covariance) = step.along(process, levels), marginal(levels[0])
    oracle, zero, one = (
        gaussian_data(),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64),
    )
    x, z = torch.cat((zero[:1], one, zero)), torch.cat((zero[:1], zero, one))
    for i in range(len(levels) - 1):
        out, _ = move(oracle, i, x, Given(z), None)
        a, b, noise = (out[1:4] - out[0]).T, out[0], (out[4:] - out[0]).T
        mean, covariance = a @ mean + b, a @ covariance @ a.T + noise @ noise.T
    exact = marginal(levels[-1])
    return (mean - exact[0]).norm().item() + (covariance - exact[1]).norm().item()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SDE)
def test_euler_maruyama_has_weak_order_one(name, eta, unit):
    """Mean and covariance at σ/α = 0.2 from the exact law at 10, grid uniform in log-SNR."""
    counts = (160, 320, 640) if name == "ve" else (80, 160, 320)  # σ̇/σ is largest for VE
    step, process = EulerMaruyama(eta=eta), PROCESSES[name]
    errors = [weak_error(step, process, ends(0.2)(process, n)[:-1]) for n in counts]
    assert slope(counts, errors) == pytest.approx(1.0, abs=0.15)
    assert errors[-1] < 0.06


@pytest.mark.parametrize("name", SDE)
def test_stochastic_heun_has_weak_order_two(name, unit):
    """Where `Jump(eta=1)`, which it corrects, has order 1."""
    counts, process = (40, 80, 160), PROCESSES[name]
    errors, first = (
        [weak_error(step, process, ends(0.05)(process, n)[:-1]) for n in counts]
        for step in (HEUN, Jump(eta=1))
    )
    assert slope(counts, errors) == pytest.approx(2.0, abs=0.1)
    assert slope(counts, first) == pytest.approx(1.0, abs=0.1)
    assert errors[2] < 0.3 * first[2]


@pytest.mark.parametrize("process", [Cosine(), Straight()], ids=lambda p: p.kind)
def test_the_order_holds_from_pure_noise(process, unit):
    """From t = 1, where τ = 0, in equal steps of t: x_1 = ε exactly, and order 2 to t = 0.05."""
    counts, errors = (40, 80, 160), []
    for n in counts:
        levels = tuple(level_at(process, 1 - 0.95 * i / n) for i in range(n + 1))
        errors.append(weak_error(HEUN, process, levels))
    assert slope(counts, errors) == pytest.approx(2.0, abs=0.15)


# --- along one path ---------------------------------------------------------------------------


def soft_mixture():
    """Two modes with a bridge between them, so that few paths are near a watershed."""
    return Mixture(f64([0.7, 0.3]), f64([[-1.0, 0.0], [1.0, 0.5]]), torch.eye(2).expand(2, 2, 2))


@pytest.mark.parametrize(
    ("step", "name", "counts", "fine"),
    [
        (EM, "vp", (32, 64, 128), 1024),
        (EM, "ve", (32, 64, 128), 1024),
        (HEUN, "straight", (16, 32, 64), 512),
    ],
    ids=lambda v: getattr(v, "kind", v) if not isinstance(v, tuple) else None,
)
def test_strong_orders_are_one(step, name, counts, fine):
    """The RMS distance to the same solver on a far finer grid, on the same path, is ~ 1/n."""
    reference = final(step, name, ends(), fine, soft_mixture())
    walks = [final(step, name, ends(), n, soft_mixture()) for n in counts]
    errors = [rms(walk - reference) for walk in walks]
    assert slope(counts, errors) == pytest.approx(1.0, abs=0.25)


def test_few_steps_show_what_many_would():
    """One seed, 10 and 400 steps: the same samples where the path is shared, others for DDPM."""
    oracle, spacing = two_dim_mixture(), LogSNR(sigma_min=0.02)
    distance = {}
    for step in (HEUN, Jump(eta=1)):
        reference = final(step, "vp", spacing, 400, oracle, ids=128)
        size = rms(reference - reference.mean(0))
        distance[step.kind] = [
            rms(final(step, "vp", spacing, n, oracle, ids=128) - reference) / size for n in (10, 40)
        ]
    assert distance["stochastic_heun"][0] < 0.6
    assert distance["stochastic_heun"][1] < 0.25
    assert min(distance["jump"]) > 1.1


def test_both_solvers_of_one_sde_have_one_law():
    """A mixture of weights 0.8 and 0.2 with far modes: weights, means and widths at the end.

    4000 samples of each from the exact law at the first level; five standard errors, and what
    the last step, whose x̂0 is a mean, takes from the widths."""
    weights, means, std = f64([0.8, 0.2]), f64([[-2.0], [2.0]]), 0.5
    oracle = Mixture(weights, means, std**2 * torch.ones(2, 1, 1))
    n, process = 4000, PROCESSES["vp"]
    for step, spacing, steps in ((EM, Uniform(), 120), (HEUN, LogSNR(sigma_min=0.05), 40)):
        levels = spacing(process, steps)
        noise = Noise.of(7, step.kind, n)
        z = noise.child("start").normal(0, (1,), torch.float64)
        x = levels[0].alpha * oracle.sample(noise.child("data")) + levels[0].sigma * z
        *_, last = sample(oracle, process, levels, step, x.float(), noise.child("steps"))
        mode = (last.x > 0).double().squeeze(1)
        assert mode.mean().item() == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / n))
        for k in (0, 1):
            own = last.x[mode == k].double()
            error = 5 * std / math.sqrt(len(own))
            assert own.mean().item() == pytest.approx(means[k].item(), abs=error)
            assert own.std().item() == pytest.approx(std, abs=error)


@pytest.mark.parametrize("step", [EM, HEUN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_depend_on_its_neighbours(step, dtype):
    def of(ids):
        return final(step, "vp", ends(), 8, soft_mixture(), ids, dtype=dtype)

    batch = of(range(32, 40))
    assert batch.dtype == dtype
    assert torch.equal(of([1, 7, 90, 3, 5, 37, 2**40, 4])[5], batch[5])
    tight = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(of([37])[0], batch[5], rtol=tight, atol=tight)


def test_one_key_gives_one_path_for_any_process():
    """The clock is the SNR: on equal σ/α, x/α is the same for all processes."""
    paths = []
    for process in PROCESSES.values():
        levels = ends()(process, 7)
        x = levels[0].alpha * f64([[3.0, -4.0], [-9.0, 7.0]])
        walk = sample(two_dim_mixture(), process, levels, HEUN, x, Noise.of(0, "steps", 2))
        paths.append(torch.stack([state.x / state.level.alpha for state in walk]))
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=1e-6, atol=1e-6)
