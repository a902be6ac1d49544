"""Churn: Heun's steps with noise added before each, as the paper's algorithm and as a law."""

import math

import pytest
import torch

from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.grid import Karras, LogSNR
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VE, VP, Cosine
from ornstein.diffusion.steps import Heun
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import (
    COVARIANCE,
    MEAN,
    PROCESSES,
    ZERO_TERMINAL_SNR,
    Given,
    NoNoise,
    constant,
    f64,
    gaussian_data,
    grid,
    marginal,
    slope,
    two_dim_mixture,
)

EDM = PROCESSES["edm"]
EYE = torch.eye(3, dtype=torch.float64)


def algorithm_2(denoise, sigmas, x, noise, churn, t_min, t_max, s_noise):
    """arXiv:2206.00364, algorithm 2, line by line. sigmas: t_0 ... t_N, the last being 0; denoise:
    D(x; σ); noise(i): ε_i of unit variance."""
    n = len(sigmas) - 1
    for i in range(n):
        t, following = sigmas[i], sigmas[i + 1]
        gamma = min(churn / n, math.sqrt(2) - 1) if t_min <= t <= t_max else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise(i)
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (following - t_hat) * d
        if following != 0:
            d_prime = (x - denoise(x, following)) / following
            x = x_hat + (following - t_hat) * (0.5 * d + 0.5 * d_prime)
    return x


@pytest.mark.parametrize(
    "settings",
    [
        Heun(churn=30, churn_min=0.01, churn_max=1, churn_noise=1.007),  # table 5, CIFAR-10, VP
        Heun(churn=80, churn_min=0.05, churn_max=1, churn_noise=1.007),  # and VE
        Heun(churn=40, churn_min=0.05, churn_max=50, churn_noise=1.003),  # ImageNet
        Heun(churn=3),  # γ = churn/N, below its limit
        Heun(),
    ],
    ids=lambda h: f"churn={h.churn:g}",
)
def test_on_ve_it_is_algorithm_2(settings):
    """With room above the first level for the noise of its step, as the algorithm assumes."""
    process, oracle = VE(sigma_min=0.002, sigma_max=200), two_dim_mixture()
    levels = Karras(sigma_max=80.0)(process, 12)
    x = levels[0].sigma * Noise.of(0, "start", 5).normal(0, (2,), torch.float64)
    noise = Noise.of(0, "steps", 5)
    *_, last = sample(oracle, process, levels, settings, x, noise)

    def denoise(x, sigma):
        return oracle(x, level_at(process, process.time(f64(-2 * math.log(sigma))).item())).x0

    expected = algorithm_2(
        denoise,
        [level.sigma for level in levels],
        x,
        lambda i: noise.at(i).normal(0, (2,), torch.float64),
        settings.churn,
        settings.churn_min,
        math.inf if settings.churn_max is None else settings.churn_max,
        settings.churn_noise,
    )
    torch.testing.assert_close(last.x, expected, rtol=1e-8, atol=1e-8)


def propagate(step, denoise, levels, mean, covariance, process):
    """Mean and covariance at every level, exactly: each step is affine and is probed."""
    move, moments = step.along(process, levels), [(mean, covariance)]
    x, z = torch.cat((0 * EYE[:1], EYE, 0 * EYE)), torch.cat((0 * EYE[:1], 0 * EYE, EYE))
    for i in range(len(levels) - 1):
        out, _ = move(denoise, i, x, Given(z), None)
        a, s = (out[1:4] - out[0]).T, (out[4:] - out[0]).T
        mean, covariance = a @ mean + out[0], a @ covariance @ a.T + s @ s.T
        moments.append((mean, covariance))
    return moments


def asked(process, levels, step, x, denoise=None, noise=None):
    """The noisy samples and levels at which the first evaluation of each step is made."""
    seen = []
    exact = denoise or gaussian_data()

    def recording(x, level):
        seen.append((x, level))
        return exact(x, level)

    list(sample(recording, process, levels, step, x, noise or Noise.of(0, "steps", len(x))))
    return seen[::2]


@pytest.mark.parametrize("name", PROCESSES)
def test_the_noise_added_keeps_the_law(name):
    """From x of the law of one level, the step begins with x of the law of the level above, and
    S_noise widens what was added: its covariance exceeds by (S² − 1)(σ'² − (α'σ/α)²)."""
    process = PROCESSES[name]
    levels = grid("log_snr", name, 8)[2:]
    t = levels[0]
    mean, covariance = marginal(t)
    for s_noise in (1.0, 1.1):
        step = Heun(churn=2.0, churn_noise=s_noise)
        x = torch.cat((0 * EYE[:1], EYE, 0 * EYE))
        z = torch.cat((0 * EYE[:1], 0 * EYE, EYE))
        out, level = asked(process, levels, step, x, noise=Given(z))[0]
        gamma = min(2.0 / (len(levels) - 1), math.sqrt(2) - 1)
        assert level.sigma / level.alpha == pytest.approx((1 + gamma) * t.sigma / t.alpha, rel=1e-6)
        a, b, s = (out[1:4] - out[0]).T, out[0], (out[4:] - out[0]).T
        fresh = level.sigma**2 - (level.alpha * t.sigma / t.alpha) ** 2
        torch.testing.assert_close(a @ mean + b, level.alpha * MEAN)
        widened = marginal(level)[1] + (s_noise**2 - 1) * fresh * EYE
        torch.testing.assert_close(a @ covariance @ a.T + s @ s.T, widened)


@pytest.mark.parametrize("name", PROCESSES)
def test_on_point_data_the_law_is_kept_at_every_level(name):
    """x_t ~ N(α_t x0, σ_t²): ends, steps and amounts of noise do not matter."""
    process, levels = PROCESSES[name], grid("karras", name, 7)
    start = (levels[0].alpha * MEAN, levels[0].sigma ** 2 * EYE)
    moments = propagate(Heun(churn=3), constant(MEAN), levels, *start, process)
    for level, (mean, covariance) in zip(levels, moments, strict=True):
        torch.testing.assert_close(mean, level.alpha * MEAN, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(covariance, level.sigma**2 * EYE, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "straight", "cosine", "linear"])
def test_marginals_are_kept_to_second_order(name):
    """Adding noise and removing it: Σ − Σ_exact ~ 1/n², as without churn, on Gaussian data."""
    process, errors, counts = PROCESSES[name], [], (40, 80, 160, 320)
    sigma_max = {"straight": 20.0, "cosine": 20.0}.get(name)
    for n in counts:
        levels = LogSNR(sigma_min=0.05, sigma_max=sigma_max)(process, n)[:-1]
        moments = propagate(Heun(churn=6), gaussian_data(), levels, *marginal(levels[0]), process)
        mean, covariance = moments[-1]
        exact = marginal(levels[-1])
        torch.testing.assert_close(mean, exact[0], rtol=1e-2, atol=1e-2)
        errors.append((covariance - exact[1]).abs().max().item())
    assert slope(counts, errors) == pytest.approx(2.0, abs=0.25)
    assert errors[-1] < 2e-3


def test_churn_forgets_where_the_walk_began():
    """An error of the first state's variance is smaller at the end, the more noise is added."""
    levels = LogSNR(sigma_min=0.05)(EDM, 200)[:-1]
    mean, covariance = marginal(levels[0])
    ends = {}
    for churn in (0.0, 20.0, 60.0):
        step = Heun(churn=churn)
        right = propagate(step, gaussian_data(), levels, mean, covariance, EDM)[-1][1]
        wrong = propagate(step, gaussian_data(), levels, mean, 1.5 * covariance, EDM)[-1][1]
        ends[churn] = ((wrong - right).norm() / COVARIANCE.norm()).item()
    assert ends[0.0] == pytest.approx(0.5, abs=0.02)  # the flow carries it to the end
    assert ends[20.0] < 0.1 * ends[0.0]
    assert ends[60.0] < 0.1 * ends[20.0]


@pytest.mark.parametrize("name", sorted(set(PROCESSES) - set(ZERO_TERMINAL_SNR) - {"edm"}))
def test_other_processes_walk_the_same_path_to_scale(name):
    """At equal σ/α, x/α is VE's x: where noise was added, whatever the data; all the way, where
    Heun is exact itself, on point data."""
    process, point = PROCESSES[name], constant(MEAN)
    ratios = [5.0, 2.5, 1.2, 0.7, 0.3, 0.1]
    times = [[law.time(f64(-2 * math.log(r))).item() for r in ratios] for law in (process, EDM)]
    ours, theirs = (
        tuple(level_at(law, t) for t in each)
        for law, each in zip((process, EDM), times, strict=True)
    )
    step = Heun(churn=1.5, churn_max=4.0, churn_noise=1.01)
    x = Noise.of(0, "start", 4).normal(0, (3,), torch.float64)
    for denoise in (gaussian_data(), point):
        both = zip(
            asked(process, ours, step, x * ours[0].alpha, denoise),
            asked(EDM, theirs, step, x, denoise),
            strict=True,
        )
        for i, ((a, level), (b, of_ve)) in enumerate(both):
            assert level.sigma / level.alpha == pytest.approx(of_ve.sigma, rel=1e-6)
            if i < 2 or denoise is point:
                loose = 0.05 if i == 1 and denoise is not point else 1e-6
                torch.testing.assert_close(a / level.alpha, b, rtol=loose, atol=loose)


def test_without_churn_nothing_is_drawn_and_nothing_changes():
    """Bit for bit the plain step, also where no level lies between churn_min and churn_max."""
    levels = grid("karras", "vp", 6)
    x = Noise.of(0, "start", 3).normal(0, (3,), torch.float64)
    plain = sample(gaussian_data(), VP(), levels, Heun(), x, NoNoise())
    for step in (Heun(churn_noise=1.5), Heun(churn=40, churn_min=1e6)):
        other = sample(gaussian_data(), VP(), levels, step, x, NoNoise())
        for a, b in zip(plain, other, strict=False):
            assert torch.equal(a.x, b.x)


@pytest.mark.parametrize("name", PROCESSES)
def test_no_network_is_asked_beyond_the_process(name):
    """The first step begins at t = 1 without churn; the next is raised no further than there."""
    process, levels = PROCESSES[name], grid("uniform", name, 40)
    x = Noise.of(0, "start", 2).normal(0, (3,), torch.float64)
    seen = asked(process, levels, Heun(churn=1e6), x)
    assert seen[0][1] == levels[0]
    assert torch.equal(seen[0][0], x)
    assert all(level.t <= 1 for _, level in seen)
    assert all(a.t > b.t for (_, a), b in zip(seen[1:], levels[1:], strict=False))


def test_a_trained_network_takes_churn():
    """A level between those of the grid is one like any other: label, scale and target follow."""

    class Wave(torch.nn.Module):
        def forward(self, x, label, cond):
            return torch.sin(x + label.view(-1, 1) / 500)

    for process in (VP(), VE(), PROCESSES["linear"]):
        denoise = bind(Denoiser(Wave(), process, Eps()))
        levels, x = LogSNR()(process, 8), Noise.of(0, "x", 4).normal(0, (2,))
        *_, last = sample(denoise, process, levels, Heun(churn=3), x, Noise.of(0, "steps", 4))
        # Sample 2 walks alone as it walks in company.
        two = torch.tensor([2])
        *_, alone = sample(
            denoise, process, levels, Heun(churn=3), x[2:3], Noise.of(0, "steps", two)
        )
        torch.testing.assert_close(alone.x, last.x[2:3])


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match=r"churn_max \(1\) must not be below churn_min \(2\)"):
        Heun(churn_min=2, churn_max=1)
    with pytest.raises(ConfigError):  # a grid in σ needs an end; churn does not
        LogSNR()(Cosine(), 5)
    assert Heun(churn=5).evaluations(10) == 19
