"""NCSNv2's rules against the paper's own numbers, against draws, and against the sampler; and a
network that is told no level."""

import itertools
import math

import pytest
import torch
from torch import nn

from ornstein.data.info import Batch
from ornstein.data.sources import Digits
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.langevin import Annealed, Langevin
from ornstein.diffusion.levels import Level, level_at
from ornstein.diffusion.ncsn import (
    WIDEST,
    count,
    levels_of,
    overlapping,
    ratio,
    rules,
    step_size,
    variance_ratio,
)
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VE, Straight
from ornstein.errors import ConfigError
from ornstein.nn.networks import MLP, UNet
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.denoising import Denoising, Gridded
from tests.helpers import affine, constant, f64

PUBLISHED = 5000 ** (1 / 231)  # γ of 232 levels from 50 to 0.01


# --- notes eq 1.16 ----------------------------------------------------------------------------


def test_known_answers_of_the_levels_for_cifar10():
    """σ from 50 to 0.01 in 3072 dimensions: 219 levels at exactly ½, while the published 232 mean
    0.567."""
    assert ratio(3072) == pytest.approx(1.0398, abs=5e-5)
    assert count(50, 0.01, 3072) == 219
    assert pytest.approx(1.0376, abs=5e-5) == PUBLISHED
    assert overlapping(PUBLISHED, 3072) == pytest.approx(0.567, abs=5e-4)
    assert count(50, 0.01, 3072, overlap=overlapping(PUBLISHED, 3072)) == 232


@pytest.mark.parametrize("dimensions", [5, 18, 64, 3072, 10**6])
@pytest.mark.parametrize("overlap", [0.05, 0.5, 0.9])
def test_the_ratio_solves_its_equation(dimensions, overlap):
    gamma = ratio(dimensions, overlap)
    assert gamma > 1
    assert overlapping(gamma, dimensions) == pytest.approx(overlap, abs=1e-9)
    if overlap == 0.5:  # the upper bound of the radii is never met
        assert gamma == pytest.approx(1 / (1 - 3 / math.sqrt(2 * dimensions)), rel=1e-9)


@pytest.mark.parametrize("gamma", [1.01, PUBLISHED, 1.0398, 1.07])
def test_the_overlap_is_a_share_of_samples(gamma):
    """How many samples of a level have the radius of one of the level above, by drawing them: the
    radii of that are known exactly, by the moments of χ."""
    dim, n = 3072, 2000
    root = math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2)) * math.sqrt(2)
    middle, std = gamma * root, gamma * math.sqrt(dim - root**2)
    radius = Noise.of(0, "radii", n).normal(0, (dim,)).norm(dim=1).double()
    share = ((radius - middle).abs() < 3 * std).double().mean().item()
    wanted = overlapping(gamma, dim)
    assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / n) + 0.005)


def test_levels_are_counted_from_end_to_end():
    """The geometric grid with as many levels as are counted has the ratio, as nearly as can be."""
    process = VE(sigma_min=0.01, sigma_max=8.0)
    gamma = ratio(64)
    n = levels_of(process, 64)
    assert n == count(8.0, 0.01, 64)
    levels = LogSNR()(process, n)[:-1]
    assert levels[0].sigma == pytest.approx(8.0)
    assert levels[-1].sigma == pytest.approx(0.01)
    found = {t.sigma / s.sigma for t, s in itertools.pairwise(levels)}
    assert max(found) - min(found) < 1e-12
    nearest = min(range(2, 99), key=lambda k: abs(math.log(800) / (k - 1) - math.log(gamma)))
    assert abs(n - nearest) <= 1  # whole numbers of levels and of ratios round alike but for one


def test_few_dimensions_set_no_ratio():
    for dimensions in (1, 4):
        with pytest.raises(ConfigError, match=r"eq 1\.16 sets no ratio"):
            ratio(dimensions)
        assert min(overlapping(gamma, dimensions) for gamma in (1, 1.5, 3, 10, 100)) > 0.9
    for dimensions in (1, 4, 5, 17):
        n = count(10.0, 0.01, dimensions)
        assert math.log(1000) / (n - 1) == pytest.approx(math.log(WIDEST), rel=0.06)
    assert count(0.011, 0.01, 2) == 2
    with pytest.raises(ConfigError, match="overlap"):
        ratio(100, 0.9974)
    with pytest.raises(ConfigError, match="pure noise"):
        levels_of(Straight(), 64)


# --- notes eq 1.17 ----------------------------------------------------------------------------


def test_known_answers_of_the_step_for_cifar10():
    """Table 1 of arXiv:2006.09011 has ε = 6.2e-6 for 232 levels and T = 5."""
    eps = step_size(0.01, PUBLISHED, 5)
    assert eps == pytest.approx(6.2e-6, abs=0.05e-6)
    assert variance_ratio(6.2e-6, 0.01, PUBLISHED, 5) == pytest.approx(1.0555, abs=5e-5)
    assert step_size(0.01, ratio(3072), 5) == pytest.approx(6.5e-6, abs=0.05e-6)


@pytest.mark.parametrize("gamma", [1.01, 1.2, 2.0, 30.0])
@pytest.mark.parametrize("updates", [1, 5, 100])
def test_no_step_comes_nearer_to_one(gamma, updates):
    """On the paper's way: a search over many steps, of which none has a ratio of 1 or below."""
    parts = torch.logspace(-6, 0, 4000), torch.linspace(1e-3, 1, 4000)
    tried = [0.01**2 * eta for eta in torch.cat(parts).double().tolist()]
    ratios = [variance_ratio(eps, 0.01, gamma, updates) for eps in tried]
    best = variance_ratio(step_size(0.01, gamma, updates), 0.01, gamma, updates)
    assert 1 < best <= min(ratios)
    assert best == pytest.approx(min(ratios), rel=1e-5)


@pytest.mark.parametrize(("updates", "eps"), [(1, 3e-5), (5, 6.2e-6), (40, 1.5e-4)])
def test_the_variance_is_that_of_updates_on_point_data(updates, eps):
    """x ← x + α s + √(2α) z by hand, in numbers of its own: s = −x/σ², from the law of the level
    above."""
    sigma, gamma, n = 0.3, PUBLISHED, 200_000
    generator = torch.Generator().manual_seed(0)

    def normal():
        return torch.randn(n, generator=generator, dtype=torch.float64)

    x, alpha = gamma * sigma * normal(), eps * sigma**2 / 0.01**2
    for _ in range(updates):
        x = x - alpha * x / sigma**2 + math.sqrt(2 * alpha) * normal()
    found = x.square().mean().item() / sigma**2
    wanted = variance_ratio(eps, 0.01, gamma, updates)
    assert found == pytest.approx(wanted, rel=4 * math.sqrt(2 / n))


def test_the_sampler_has_the_ratio_at_every_level():
    """Annealed Langevin itself, its variance propagated exactly on point data: what a level makes
    of the variance that it is handed is eq 1.17, with that in place of γ² σ_i²."""
    process, updates = VE(sigma_min=0.01, sigma_max=2.0), 5
    levels = LogSNR()(process, 60)
    gamma = levels[0].sigma / levels[1].sigma
    eps = step_size(0.01, gamma, updates)
    update, point = Langevin(updates=1, size=Annealed(eps=eps)), constant(f64([0.0]))
    start = variance = (gamma * levels[0].sigma) ** 2
    for i, level in enumerate(levels[:-1]):
        wide = math.sqrt(variance) / level.sigma
        a, _, s = (part.item() for part in affine(update, point, levels, i, 1, process))
        for _ in range(updates):
            variance = a**2 * variance + s**2
        found = variance / level.sigma**2
        assert found == pytest.approx(variance_ratio(eps, 0.01, wide, updates), rel=1e-9)
        if i == 0:
            assert math.sqrt(start) / level.sigma == pytest.approx(gamma)
            assert found == pytest.approx(variance_ratio(eps, 0.01, gamma, updates), rel=1e-9)


def test_a_step_left_open_is_the_rules():
    """ε by eq 1.17 from the grid, in either form, and the recipe keeps four digits."""
    process = VE(sigma_min=0.01, sigma_max=8.0)
    found = rules(8.0, 64)
    levels = LogSNR()(process, found.levels)
    for form, unit in (("full", 1), ("half", 2)):
        open_ = Langevin(updates=5, form=form, size=Annealed(eps=None))
        fitted = open_.fitted(levels)
        assert fitted.size.eps == pytest.approx(unit * found.eps, rel=1e-3)
        assert fitted.fitted(levels) == fitted
    assert found.gamma == pytest.approx(800 ** (1 / (found.levels - 1)))
    assert found.variance_ratio == variance_ratio(found.eps, 0.01, found.gamma, 5)
    with pytest.raises(ConfigError, match="apart"):
        rules(0.005, 64)


@pytest.mark.parametrize(("gamma", "updates"), [(1.0, 5), (0.9, 5), (1.1, 0)])
def test_steps_that_have_no_size_are_refused(gamma, updates):
    with pytest.raises(ConfigError, match="above 1 and at least 1"):
        step_size(0.01, gamma, updates)


# --- training at the levels of a grid ---------------------------------------------------------


def test_training_levels_are_those_of_the_grid_each_as_often():
    process, law = VE(sigma_min=0.01, sigma_max=8.0), Gridded(steps=7)
    noisy = LogSNR()(process, 7)[:-1]
    u = (torch.arange(7 * 6, dtype=torch.float64) + 0.5) / (7 * 6)
    level = law(process, u)
    for found, wanted in zip(level, zip(*noisy, strict=True), strict=True):
        assert torch.equal(found, f64(wanted).repeat_interleave(6))
    ends = law(process, f64([0.0, 1 - 2**-53])).sigma
    assert ends.tolist() == pytest.approx([8.0, 0.01])
    assert Gridded().fitted(process, Digits().load().info).steps == count(8.0, 0.01, 64)
    with pytest.raises(ConfigError, match=r"write objective\.levels\.steps"):
        Gridded()(process, u)


def test_the_loss_is_notes_eq_1_15_with_lambda_of_sigma_squared():
    """½ σ² ‖s + (x̃ − x)/σ²‖² by hand is the loss in ε, times half the dimension."""
    process, dim = VE(sigma_min=0.01, sigma_max=8.0), 3
    denoiser = Denoiser(MLP(width=16, depth=1).build((dim,)), process, Eps(), "none").double()
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.manual_seed(1)))
    noise = Noise.of(0, "training", 9)
    x = Noise.of(1, "data", 9).normal(0, (dim,), torch.float64)
    objective = Denoising(levels=Gridded(steps=7), range=(0.0, 1.0))
    ours = objective(denoiser, Batch(x, torch.arange(9)), Context(0, 0.0, noise)).per_sample
    level = objective.levels(process, noise.child("level").uniform(0, (), torch.float64))
    noisy = x + level.sigma[:, None] * noise.child("eps").normal(0, (dim,), torch.float64)
    score = denoiser(noisy, level).score
    error = score + (noisy - x) / level.sigma[:, None] ** 2
    by_hand = 0.5 * level.sigma**2 * error.square().sum(1)
    torch.testing.assert_close(dim / 2 * ours, by_hand)


# --- a network that is told no level ----------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "shape"),
    [(MLP(width=16, depth=2), (3,)), (UNet(channels=(8, 16), blocks=1), (1, 8, 8))],
)
def test_without_a_label_one_function_serves_all_levels(network, shape):
    """s(x, σ) = s(x)/σ: the same x has the same output at any level, and the score is −out/σ."""
    process = VE(sigma_min=0.01, sigma_max=8.0)
    net = network.build(shape)
    x = Noise.of(0, "x", 5).normal(0, shape, torch.float32)
    with torch.no_grad():
        for weight in net.parameters():  # the last layer is zero at first
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.manual_seed(0)))
        denoiser = Denoiser(net, process, Eps(), "none").eval()
        low, high = level_at(process, 0.2), level_at(process, 0.9)
        mixed = Level(*(torch.full((5,), float(n), dtype=torch.float64) for n in high))
        out = denoiser.output(x, low)
        assert out.abs().max() > 1e-3
        for level in (high, mixed):
            assert torch.equal(denoiser.output(x, level), out)
        for level in (low, high):
            torch.testing.assert_close(denoiser(x, level).score, -out / level.sigma)
        assert not torch.equal(Denoiser(net, process, Eps(), "time").output(x, low), out)


def test_without_a_label_the_input_is_x_itself():
    class Recorder(nn.Module):
        def forward(self, x, label, cond):
            self.x, self.label = x, label
            return torch.zeros_like(x)

    network = Recorder()
    x = Noise.of(0, "x", 3).normal(0, (2,), torch.float64)
    denoiser = Denoiser(network, VE(), Eps(), "none", sigma_data=0.5)
    for level in (level_at(VE(), 0.9), level_at(VE(), f64([0.1, 0.5, 0.9]))):
        denoiser(x, level)
        assert torch.equal(network.x, x)
        assert torch.equal(network.label, torch.zeros(3))
