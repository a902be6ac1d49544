"""The denoising objective: its loss is the equation, its levels follow their laws, and what it
trains becomes the denoiser that is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ornstein.data.info import Batch
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.levels import expand, level_at, level_of_log_snr
from ornstein.diffusion.oracle import gaussian
from ornstein.diffusion.prediction import EDM, X0, Eps, Prediction, Score, V
from ornstein.diffusion.process import VE, VP, Cosine, Straight, Tabulated
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.denoising import (
    SNR,
    VLB,
    CosineTime,
    Denoising,
    Discrete,
    EDMWeight,
    LogitNormal,
    LogNormal,
    MinSNR,
    Simple,
    TruncatedSNR,
    UniformTime,
)
from ornstein.optim import Optim
from ornstein.training import Learner, TrainState, train
from tests.helpers import PAIRS, PROCESSES, TARGETS, f64

COUNT = 12


def context(count=COUNT, step=3):
    return Context(step, 0.1, Noise.of(7, "train", count).at(step))


def batch(count=COUNT, shape=(2, 3), dtype=torch.float64):
    x0 = Noise.of(1, "data", count).normal(0, shape, dtype)
    return Batch(0.5 + 0.8 * x0, torch.arange(count))


class Says:
    """A model that estimates x̂0(x) = tanh(x), and says it in the words of its target."""

    def __init__(self, target, process):
        self.target, self.process = target, process

    def output(self, x, level):
        return Prediction.from_x0(x, level, x.tanh()).target(self.target, self.process)


def drawn(objective, process, data, where):
    """The levels, the noise and the noisy samples that the objective used, drawn again."""
    u = where.noise.child("level").uniform(0, (), torch.float64)
    eps = where.noise.child("eps").normal(0, data.x.shape[1:], data.x.dtype)
    level = objective.levels(process, u)
    return level, eps, expand(level.alpha, eps) * data.x + expand(level.sigma, eps) * eps


class Wave(nn.Module):
    """A network that needs its input and its label."""

    def forward(self, x, label, cond):
        return torch.sin(2 * x + label.view(-1, *[1] * (x.dim() - 1)) / 300)


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4), (3, 2, 2)])
def test_l_simple_is_notes_eq_30(shape):
    """L = ‖ε − ε_θ(√ᾱ_i x0 + √(1−ᾱ_i) ε, i)‖²/D with ᾱ_i = Π (1 − β_j), i uniform in 1 ... T."""
    process, data, where = Tabulated(steps=1000), batch(shape=shape, dtype=torch.float32), context()
    objective = Denoising(levels=Discrete(steps=1000))
    loss = objective(Denoiser(Wave(), process, Eps()), data, where)
    assert loss.per_sample.shape == (COUNT,)
    assert not loss.metrics
    assert not loss.stats

    i = (1000 * where.noise.child("level").uniform(0, (), torch.float64)).floor().long() + 1
    eps = where.noise.child("eps").normal(0, shape)
    alpha_bar = (1 - process.betas()).cumprod(0)
    for b in range(COUNT):
        share = alpha_bar[i[b] - 1].item()
        x = math.sqrt(share) * data.x[b] + math.sqrt(1 - share) * eps[b]
        error = eps[b] - torch.sin(2 * x + i[b] / 300)
        expected = error.square().sum() / math.prod(shape)
        torch.testing.assert_close(loss.per_sample[b], expected, rtol=1e-4, atol=1e-5)


def test_l_simple_is_the_distance_to_the_best_denoiser_plus_a_constant():
    """Notes eq 31: E‖ε − ε_θ‖² = E‖E[ε|x] − ε_θ‖² + E Var[ε|x], the last without θ.

    For N(m, s²) and one level Var[ε|x] = α²s²/(α²s² + σ²).
    """
    mean, variance, count = 0.5, 0.64, 100_000
    data = Batch(0.5 + 0.8 * Noise.of(1, "data", count).normal(0, (1,), torch.float64), None)
    objective = Denoising(levels=LogNormal(mean=-0.3, std=1e-9), range=None)
    where, model = context(count), Says(Eps(), VP())
    loss = objective(model, data, where).per_sample
    level, _, x = drawn(objective, VP(), data, where)
    best = gaussian(f64([mean]), f64([[variance]]))(x, level).eps
    distance = (best - model.output(x, level)).square().mean()
    signal = level.alpha[0] ** 2 * variance
    constant = signal / (signal + level.sigma[0] ** 2)
    spread = (loss.std() / math.sqrt(count)).item()
    assert loss.mean().item() == pytest.approx((distance + constant).item(), abs=4 * spread)
    assert 4 * spread < 0.1 * distance.item()


@pytest.mark.parametrize(("target", "process"), PAIRS)
def test_snr_weighting_is_one_loss_for_every_target(target, process):
    """w ‖f̂ − f‖² = (α/σ)² ‖x̂0 − x0‖², per dimension."""
    data, where = batch(), context()
    objective = Denoising(weighting=SNR(), range=None)
    loss = objective(Says(TARGETS[target], PROCESSES[process]), data, where).per_sample
    level, _, x = drawn(objective, PROCESSES[process], data, where)
    error = (x.tanh() - data.x).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, (level.alpha / level.sigma) ** 2 * error, rtol=1e-6, atol=0)


WEIGHTS = {
    "min_snr": (MinSNR(gamma=5.0), lambda snr: snr.clamp(max=5)),
    "truncated_snr": (TruncatedSNR(), lambda snr: snr.clamp(min=1)),
    "edm": (EDMWeight(sigma_data=0.6), lambda snr: snr + 1 / 0.36),
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("target", "process"), PAIRS)
def test_a_weighting_is_one_loss_for_every_target(target, process, weight):
    """Each is a function of SNR on the image's error, whatever the network predicts."""
    data, where = batch(), context()
    choice, of = WEIGHTS[weight]
    objective = Denoising(weighting=choice, range=None)
    loss = objective(Says(TARGETS[target], PROCESSES[process]), data, where).per_sample
    level, _, x = drawn(objective, PROCESSES[process], data, where)
    error = (x.tanh() - data.x).square().flatten(1).mean(1)
    snr = (level.alpha / level.sigma) ** 2
    torch.testing.assert_close(loss, of(snr) * error, rtol=1e-6, atol=0)


def test_published_forms_of_the_weights():
    """min-SNR for ε is min(1, γ/SNR); truncated SNR for ε max(1, 1/SNR); SNR + 1 is v's error."""
    process, level = VP(), level_at(VP(), torch.linspace(0.05, 0.95, 10, dtype=torch.float64))
    snr = (level.alpha / level.sigma) ** 2
    close = torch.testing.assert_close
    close(MinSNR(gamma=5.0)(Eps(), process, level), (5 / snr).clamp(max=1))
    close(TruncatedSNR()(Eps(), process, level), (1 / snr).clamp(min=1))
    close(EDMWeight(sigma_data=1.0)(V(), process, level), torch.ones_like(snr))
    close(EDMWeight(sigma_data=0.5)(EDM(sigma_data=0.5), process, level), torch.ones_like(snr))


@pytest.mark.parametrize("process", [VP(), Cosine(), Straight(), VE()], ids=lambda p: p.kind)
def test_the_vlb_weight_is_the_slope_of_snr(process):
    """−½ dSNR/dt by a central difference, on the image, for any target."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)

    def snr(t):
        alpha, sigma = process(t)
        return (alpha / sigma) ** 2

    slope = (snr(t + 1e-6) - snr(t - 1e-6)) / 2e-6
    torch.testing.assert_close(
        VLB()(X0(), process, level_at(process, t)), -0.5 * slope, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("process", [VP(), VE(sigma_max=20.0)], ids=lambda p: p.kind)
def test_the_vlb_weighted_loss_is_the_bound_of_infinitely_many_steps(process):
    """∫ −½ SNR'(t) E‖x̂0 − x0‖² dt = ½ ln (1 + s²SNR)(t_min) − ½ ln (1 + s²SNR)(1) for N(0, s²):
    whatever path leads from one end to the other."""
    variance, count = 0.49, 400_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    level = UniformTime()(process, u)
    snr = (level.alpha / level.sigma) ** 2
    left = 1 / (1 / variance + snr)  # E‖x̂0 − x0‖² of the exact denoiser
    ours = (VLB()(X0(), process, level) * left).mean().item() * (1 - process.smallest)
    first, last = (level_at(process, t) for t in (process.smallest, 1.0))
    expected = 0.5 * (
        math.log1p(variance * (first.alpha / first.sigma) ** 2)
        - math.log1p(variance * (last.alpha / last.sigma) ** 2)
    )
    assert ours == pytest.approx(expected, rel=1e-4)


def test_no_weight_is_infinite_where_there_is_no_signal():
    for choice in (Simple(), SNR(), MinSNR(), TruncatedSNR(), EDMWeight(), VLB()):
        for process in (Cosine(), Straight(), Tabulated(zero_terminal=True)):
            weight = choice(V(), process, level_at(process, f64([1.0, 0.5])))
            assert torch.isfinite(weight).all()


@pytest.mark.parametrize(("target", "process"), PAIRS)
def test_the_simple_weight_is_the_plane_s(target, process):
    """‖f̂ − f‖² = ((αq − σp)/σ)² ‖x̂0 − x0‖² (DESIGN §2, 8)."""
    data, where = batch(), context()
    objective = Denoising(range=None)
    loss = objective(Says(TARGETS[target], PROCESSES[process]), data, where).per_sample
    level, _, x = drawn(objective, PROCESSES[process], data, where)
    p, q = TARGETS[target](PROCESSES[process], level)
    weight = torch.as_tensor((level.alpha * q - level.sigma * p) / level.sigma) ** 2
    error = (x.tanh() - data.x).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, weight * error, rtol=1e-6, atol=1e-12)


def test_the_simple_weight_of_the_edm_target_is_edm_s():
    """λ(σ) = (σ² + σ_d²)/(σ σ_d)² on the image (arXiv:2206.00364, table 1)."""
    data, where, process = batch(), context(), VE(sigma_min=0.002, sigma_max=80)
    objective = Denoising(levels=LogNormal(), weighting=Simple(), range=None)
    loss = objective(Says(EDM(sigma_data=0.7), process), data, where).per_sample
    level, _, x = drawn(objective, process, data, where)
    weight = (level.sigma**2 + 0.7**2) / (level.sigma * 0.7) ** 2
    error = (x.tanh() - data.x).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, weight * error, rtol=1e-8, atol=0)


def test_notes_eq_1_14():
    """At one σ: ½ ‖s_θ(x̃) + (x̃ − x)/σ²‖², x̃ = x + σ ε; ours is its 2/D."""
    data, where, process = batch(), context(), VE()
    objective = Denoising(levels=LogNormal(mean=math.log(0.6), std=1e-12), range=None)
    model = Says(Score(), process)
    loss = objective(model, data, where).per_sample
    level, _, noisy = drawn(objective, process, data, where)
    sigma = torch.full((COUNT, 1, 1), 0.6, dtype=torch.float64)
    gap = model.output(noisy, level) + (noisy - data.x) / sigma**2
    expected = 0.5 * gap.square().flatten(1).sum(1)
    torch.testing.assert_close(loss * 6 / 2, expected, rtol=1e-8, atol=0)


def test_notes_eq_1_15():
    """With λ(σ) = σ² the score's loss is the loss of ε, whatever σ: no level dominates."""
    data, where, process = batch(), context(), VE()
    weighted, plain = Denoising(weighting=SNR(), range=None), Denoising(range=None)
    loss = weighted(Says(Score(), process), data, where).per_sample
    level, _, _ = drawn(weighted, process, data, where)
    unweighted = plain(Says(Score(), process), data, where).per_sample
    torch.testing.assert_close(loss, level.sigma**2 * unweighted, rtol=1e-9, atol=0)
    torch.testing.assert_close(loss, plain(Says(Eps(), process), data, where).per_sample)


@pytest.mark.parametrize("process", ["vp", "sub_vp", "ve", "linear"])
def test_notes_eq_1_21(process):
    """λ(t) ‖s_θ(x(t), t) − ∇ log p(x(t) | x(0))‖², λ(t) ∝ 1/E‖∇ log p‖² = σ², t uniform.

    The gradient is that of the transition's log density, by automatic differentiation.
    """
    data, where, law = batch(), context(), PROCESSES[process]
    objective = Denoising(weighting=SNR(), range=None)
    model = Says(Score(), law)
    loss = objective(model, data, where).per_sample
    u = where.noise.child("level").uniform(0, (), torch.float64)
    level, _, x = drawn(objective, law, data, where)
    torch.testing.assert_close(level.t, law.smallest + (1 - law.smallest) * u)
    alpha, sigma = (c.view(-1, 1, 1) for c in law(level.t))
    x.requires_grad_(True)
    density = torch.distributions.Normal(alpha * data.x, sigma).log_prob(x).sum()
    (score,) = torch.autograd.grad(density, x)
    gap = (model.output(x.detach(), level) - score).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, level.sigma**2 * gap, rtol=1e-7, atol=1e-12)


def test_what_a_sample_contributes_depends_on_its_position_alone():
    """Its level, its noise and its loss are the same in any part of the batch, bit for bit."""
    data, where, objective = batch(), context(), Denoising(levels=LogNormal(), range=None)
    model = Says(V(), VP())
    whole = objective(model, data, where).per_sample
    for start, stop in ((0, 1), (3, 7), (11, 12)):
        part = Batch(data.x[start:stop], data.ids[start:stop])
        noise = where.noise.of_samples(slice(start, stop))
        result = objective(model, part, where._replace(noise=noise)).per_sample
        assert torch.equal(result, whole[start:stop])


@pytest.mark.parametrize("process", PROCESSES)
def test_uniform_time_runs_from_the_smallest_level_to_one(process):
    law = PROCESSES[process]
    u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    level = UniformTime()(law, u)
    torch.testing.assert_close(level.t, law.smallest + (1 - law.smallest) * u)
    expected = level_at(law, level.t)
    assert torch.equal(level.alpha, expected.alpha)
    assert torch.equal(level.sigma, expected.sigma)


@pytest.mark.parametrize("steps", [1, 3, 100, 1000])
def test_discrete_levels_are_exactly_the_rows_of_a_table(steps):
    """t = i/T bit for bit, each i as often as any other, the ends of u included."""
    u = (torch.arange(7 * steps, dtype=torch.float64) + 0.5) / (7 * steps)
    law = Tabulated(steps=max(steps, 2))
    t = Discrete(steps=steps)(law, u).t
    rows, counts = t.unique(return_counts=True)
    assert torch.equal(rows, torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    assert set(counts.tolist()) == {7}
    ends = f64([2.0**-53, 1 - 2.0**-53])
    assert Discrete(steps=steps)(law, ends).t.tolist() == [1 / steps, 1.0]
    if steps > 1:
        level = Discrete(steps=steps)(law, u)
        alpha_bar = (1 - law.betas()).cumprod(0).repeat_interleave(7)
        torch.testing.assert_close(level.alpha**2, alpha_bar, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_log_normal_levels_are_log_normal(process):
    """ln(σ/α) ~ N(mean, std²): its quantiles exactly, and drawn ones by Kolmogorov and Smirnov."""
    law, levels = PROCESSES[process], LogNormal(mean=-0.7, std=0.9)
    normal = torch.distributions.Normal(-0.7, 0.9)
    u = f64([1e-4, 0.025, 0.2, 0.5, 0.9, 0.999, 1 - 1e-6])
    level = levels(law, u)
    expected = -0.7 + 0.9 * torch.special.ndtri(u)
    torch.testing.assert_close((level.sigma / level.alpha).log(), expected, rtol=0, atol=1e-7)

    count = 4000
    level = levels(law, Noise.of(0, "levels", count).uniform(0, (), torch.float64))
    cdf = normal.cdf((level.sigma / level.alpha).log().sort().values)
    steps = torch.arange(count, dtype=torch.float64) / count
    gap = torch.maximum(cdf - steps, steps + 1 / count - cdf).max()
    assert gap.item() < 1.63 / math.sqrt(count)  # the 1 % point


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x, label, cond):
        return self.map(x)


MEAN, COVARIANCE = f64([0.6, -0.4]), f64([[0.9, 0.5], [0.5, 0.6]])


class Gaussian:
    """Endless samples of N(MEAN, COVARIANCE), the same at the same position."""

    def at(self, position, count):
        ids = torch.arange(position, position + count)
        z = Noise.of(3, "data", ids).normal(0, (2,), torch.float64)
        x = MEAN + z @ torch.linalg.cholesky(COVARIANCE).T
        return Batch(x.float(), ids)


def test_logit_normal_levels_are_log_normal_on_straight_paths():
    """ln(t/(1 − t)) ~ N(mean, std²), and t/(1 − t) is σ/α there: two names for one law."""
    u = f64([1e-3, 0.2, 0.5, 0.9, 1 - 1e-6])
    law = LogitNormal(mean=0.3, std=1.2)
    level = law(VP(), u)
    torch.testing.assert_close(
        torch.logit(torch.as_tensor(level.t)), 0.3 + 1.2 * torch.special.ndtri(u)
    )
    straight = law(Straight(), u)
    for ours, other in zip(straight, LogNormal(mean=0.3, std=1.2)(Straight(), u), strict=True):
        torch.testing.assert_close(ours, other)


def test_cosine_levels_are_the_cosine_schedule_s_on_any_process():
    """σ/α = tan(πu/2); under the cosine process itself, t = u; CosMap on straight paths."""
    u = f64([0.01, 0.2, 0.5, 0.9, 0.99])
    ratio = torch.tan(0.5 * math.pi * u)
    for process in (Cosine(), Straight(), VE(sigma_max=80.0)):
        level = CosineTime()(process, u)
        torch.testing.assert_close(level.sigma / level.alpha, ratio)
    torch.testing.assert_close(CosineTime()(Cosine(), u).t, u)
    # arXiv:2403.03206, eq 20-21: t = 1 − 1/(tan(πu/2) + 1)
    torch.testing.assert_close(CosineTime()(Straight(), u).t, 1 - 1 / (ratio + 1))
    shifted = CosineTime(shift=4.0)(Straight(), u)
    torch.testing.assert_close(shifted.sigma / shifted.alpha, 4 * ratio)


@pytest.mark.parametrize("law", [LogitNormal(std=5.0), CosineTime()], ids=lambda law: law.kind)
@pytest.mark.parametrize("process", PROCESSES)
def test_no_level_lies_beyond_the_process(law, process):
    u = f64([1e-12, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-12])
    t = torch.as_tensor(law(PROCESSES[process], u).t)
    assert t.min() >= PROCESSES[process].smallest
    assert t.max() <= 1


@pytest.mark.parametrize("target", [X0(), Eps(), V(), EDM(sigma_data=0.8)], ids=lambda t: t.kind)
def test_training_finds_the_best_denoiser_of_a_gaussian(target):
    """At one level it is affine, so a linear network trained by L can reach it:
    x̂0 = m + α C (α² C + σ² I)⁻¹ (x − α m)."""
    ratio = 0.8
    objective = Denoising(levels=LogNormal(mean=math.log(ratio), std=1e-9), range=None)
    learner = Learner(Denoiser(Linear(), VP(), target, sigma_data=0.8), objective)
    optim = Optim(
        lr=0.1, batch=400, samples=120_000, warmup=0, decay="cosine", averages=(), clip=None
    )
    for _ in train(TrainState(learner, optim), Gaussian(), optim, optim.samples, seed=0):
        pass
    level = level_of_log_snr(VP(), -2 * math.log(ratio))
    clean = Gaussian().at(10**9, 2000).x
    x = level.alpha * clean + level.sigma * Noise.of(5, "test", 2000).normal(0, (2,))
    with torch.no_grad():
        found = learner.model(x, level).x0
    best = gaussian(MEAN, COVARIANCE)(x, level).x0
    assert (found - best).square().mean() < 1e-3 * (best - clean).square().mean()
