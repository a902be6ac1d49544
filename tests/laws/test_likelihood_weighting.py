"""Maximum-likelihood training is a weighting and a law of levels that we have.

½ ∫ g² ‖ŝ − s‖² dt  =  E_t[vlb]  =  ½ (λ_max − λ_min) E_λ[snr]    arXiv:2101.09258, notes ref 7
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.data.info import Batch
from ornstein.data.sources import Digits
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.levels import expand
from ornstein.diffusion.prediction import V
from ornstein.diffusion.process import VE, VP, Cosine, Straight, drift_diffusion, log_snr
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.denoising import SNR, VLB, Denoising, UniformLogSNR, UniformTime
from tests.helpers import PAIRS, PROCESSES, TARGETS, ZERO_TERMINAL_SNR, f64

WITH_SIGNAL = [(t, p) for t, p in PAIRS if p not in ZERO_TERMINAL_SNR]
SMOOTH = ("vp", "sub_vp", "ve", "edm")  # not tables, whose rate jumps from row to row


class Wave(nn.Module):
    def forward(self, x, label, cond):
        return torch.sin(2 * x) + 0.3 * x


class Given:
    """The noise of an objective: given numbers u, and one ε for all."""

    def __init__(self, u, eps):
        self.u, self.eps = u, eps

    def child(self, purpose):
        return self

    def uniform(self, draw, shape, dtype):
        return self.u

    def normal(self, draw, shape, dtype):
        return self.eps


def legendre(panels=40, points=12):
    """Nodes and weights of the integral over (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(points)
    edges = np.linspace(0, 1, panels + 1)
    nodes = [a + (b - a) * (x + 1) / 2 for a, b in pairwise(edges)]
    return f64(np.concatenate(nodes)), f64(np.tile(w / 2 / panels, panels))


@pytest.mark.parametrize(("target", "process"), WITH_SIGNAL)
def test_likelihood_weighting_is_the_weighting_vlb(target, process):
    """½ g(t)² ‖ŝ − ∇log q(x|x0)‖² per dimension, for every sample, at every time: with g from the
    SDE and the gradient of the transition's density by automatic differentiation."""
    law, aim = PROCESSES[process], TARGETS[target]
    count = 20
    x0 = Noise.of(1, "data", count).normal(0, (3,), torch.float64)
    noise = Noise.of(2, "train", count)
    model = Denoiser(Wave(), law, aim, sigma_data=0.8)
    objective = Denoising(weighting=VLB(), range=None)
    loss = objective(model, Batch(x0, torch.arange(count)), Context(0, 0.0, noise)).per_sample
    t = UniformTime()(law, noise.child("level").uniform(0, (), torch.float64)).t
    alpha, sigma = (expand(c, x0) for c in law(t))
    x = alpha * x0 + sigma * noise.child("eps").normal(0, (3,), torch.float64)
    x.requires_grad_(True)
    density = torch.distributions.Normal(alpha * x0, sigma).log_prob(x).sum()
    (score,) = torch.autograd.grad(density, x)
    level = UniformTime()(law, noise.child("level").uniform(0, (), torch.float64))
    gap = (model(x.detach(), level).score - score).square().mean(1)
    _, g = drift_diffusion(law, t)
    torch.testing.assert_close(loss, 0.5 * g**2 * gap, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("process", SMOOTH)
def test_importance_sampled_times_are_uniform_log_snr(process):
    """Their density in t is g²/σ² = −dλ/dt, normalised: the law's quantiles, by integration."""
    law = PROCESSES[process]
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    level = UniformLogSNR()(law, u)
    t = torch.as_tensor(level.t)
    nodes, weights = legendre()

    def integral(upto):
        at = law.smallest + (upto - law.smallest) * nodes
        _, g = drift_diffusion(law, at)
        return ((upto - law.smallest) * weights * (g / law(at)[1]) ** 2).sum()

    whole = integral(f64(1.0))
    for share, time in zip(u, t, strict=True):
        torch.testing.assert_close(integral(time) / whole, share, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("process", SMOOTH)
def test_both_have_one_expectation(process):
    """For one image and one noise the loss is a function of the time alone; integrated over t
    under `vlb` and over λ under `snr` it is the same number, (1 − t_min) and ½ (λ_max − λ_min)
    being the lengths of the two lines."""
    law = PROCESSES[process]
    u, weights = legendre(400)
    x0, eps = f64([[0.7, -0.4]]).expand(len(u), 2), f64([[0.3, -1.1]]).expand(len(u), 2)
    where = Context(0, 0.0, Given(u, eps))
    batch, model = Batch(x0, torch.arange(len(u))), Denoiser(Wave(), law, V(), sigma_data=0.8)
    in_time = Denoising(levels=UniformTime(), weighting=VLB(), range=None)
    in_ratio = Denoising(levels=UniformLogSNR(), weighting=SNR(), range=None)
    first = (in_time(model, batch, where).per_sample * weights).sum() * (1 - law.smallest)
    ends = log_snr(law, f64([law.smallest, 1.0]))
    second = (in_ratio(model, batch, where).per_sample * weights).sum() * 0.5 * (ends[0] - ends[1])
    torch.testing.assert_close(first, second, rtol=1e-5, atol=0)


@pytest.mark.parametrize("process", ["vp", "sub_vp", "linear"])
def test_and_the_second_varies_less(process):
    """The estimates of one and the same bound by 20,000 samples: equal within four standard errors,
    with a variance several times as small (VE's λ is linear in t, where both are one thing)."""
    law, count = PROCESSES[process], 20_000
    x0 = 0.5 * Noise.of(1, "data", count).normal(0, (4,), torch.float64)
    where = Context(0, 0.0, Noise.of(2, "train", count))
    batch, model = Batch(x0, torch.arange(count)), Denoiser(Wave(), law, V())
    ends = log_snr(law, f64([law.smallest, 1.0]))
    length = 0.5 * (ends[0] - ends[1])
    slow = Denoising(levels=UniformTime(), weighting=VLB(), range=None)
    quick = Denoising(levels=UniformLogSNR(), weighting=SNR(), range=None)
    a = slow(model, batch, where).per_sample.detach() * (1 - law.smallest)
    b = quick(model, batch, where).per_sample.detach() * length
    error = math.hypot(a.std(), b.std()) / math.sqrt(count)
    assert (a.mean() - b.mean()).abs() < 4 * error
    assert error < 0.05 * b.mean()
    assert b.var() < a.var() / 3


def test_on_ve_uniform_time_is_uniform_log_snr():
    u = torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    for one, other in zip(UniformTime()(VE(), u), UniformLogSNR()(VE(), u), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("process", PROCESSES)
def test_log_snr_is_uniform_between_its_ends(process):
    law = PROCESSES[process]
    sigma_max = 50.0 if process in ZERO_TERMINAL_SNR else None
    levels = UniformLogSNR(sigma_max=sigma_max)
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    level = levels(law, u)
    ratio = 2 * torch.log(torch.as_tensor(level.alpha / level.sigma))
    first, last = levels.ends(law)
    torch.testing.assert_close(ratio, first + (last - first) * u, rtol=1e-6, atol=1e-6)
    assert last == pytest.approx(
        -2 * math.log(50) if sigma_max else log_snr(law, f64(1.0)).item(), rel=1e-9
    )
    extreme = levels(law, f64([1e-16, 1 - 1e-16]))
    assert torch.as_tensor(extreme.t).min() >= law.smallest
    assert torch.as_tensor(extreme.t).max() <= 1


@pytest.mark.parametrize(
    ("levels", "process", "words"),
    [
        (UniformLogSNR(), Cosine(), r"write objective\.levels\.sigma_max=80"),
        (UniformLogSNR(), Straight(), "ends in pure noise"),
        (UniformLogSNR(sigma_max=500.0), VP(), "not those of the process, 0.01049 to 152.2"),
        (UniformLogSNR(sigma_min=2.0, sigma_max=1.0), VE(), "between σ/α = 2 and 1"),
    ],
)
def test_levels_that_a_process_does_not_have_are_refused_at_once(levels, process, words):
    model, info = Denoiser(Wave(), process, V()), Digits().load().info
    with pytest.raises(ConfigError, match=words):
        Denoising(levels=levels).build(model, info, None)
