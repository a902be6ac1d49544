"""The density of the flow against closed forms, quadrature and an independent integration.

For Gaussian data the flow is affine, so that the law of what it draws is a Gaussian, whatever it
starts from: the data's own law where it starts from the exact marginal, and one that differs by a
known amount where it starts from N(0, σ² + σ_d² α²).
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.diffusion.bound import Bins
from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.density import Flow, dequantised, flow_nats, last_level, probes_of
from ornstein.diffusion.flow import smallest_level, start_scale
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.oracle import Finite, Mixture, gaussian
from ornstein.diffusion.prediction import Prediction, V, clipped
from ornstein.diffusion.process import VE, VP, Cosine, Straight, SubVP
from ornstein.evaluation import bound_of
from ornstein.nats import Nats, bits_per_dim
from ornstein.noise import Noise
from tests.helpers import (
    COVARIANCE,
    MEAN,
    PROCESSES,
    ZERO_TERMINAL_SNR,
    f64,
    gaussian_data,
    two_dim_mixture,
)

VARIANCES, AXES = torch.linalg.eigh(COVARIANCE)
PRECISE = Flow(tolerance=1e-6)


def noise(count, purpose="likelihood"):
    return Noise.of(0, purpose, count)


def gaussian_law(process, sigma_data):
    """Mean and covariance of y that the exact flow of the Gaussian data draws."""
    t, s = level_at(process, 1.0), smallest_level(process)
    ratio = (s.alpha**2 * VARIANCES + s.sigma**2) / (t.alpha**2 * VARIANCES + t.sigma**2)
    # x_T = 0 + scale z; along each axis x_s = √ratio (x_T − α_T m) + α_s m.
    mean = MEAN - AXES @ ((ratio.sqrt() * t.alpha / s.alpha) * (MEAN @ AXES))
    spread = ratio.sqrt() * start_scale(t, sigma_data) / s.alpha
    return mean, AXES @ torch.diag(spread**2) @ AXES.T


def log_normal(x, mean, covariance):
    law = torch.distributions.MultivariateNormal(mean, covariance, validate_args=False)
    return law.log_prob(x)


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sigma_data"), [*((name, 1.0) for name in PROCESSES), ("ve", 0.6), ("cosine_table", 2)]
)
def test_the_likelihood_of_gaussian_data(name, sigma_data):
    """To 1e-5 nats per dimension: with the prior that sampling starts from, the law of what is
    drawn, mismatch at t = 1 included; with p(x_T) in its place, −log p(y) of the noisy data."""
    process, data = PROCESSES[name], gaussian_data()
    t, s = level_at(process, 1.0), smallest_level(process)
    x = data.sample(noise(8, "x"))
    found = flow_nats(data, process, x, noise(8), PRECISE, sigma_data=sigma_data)
    drawn = -log_normal(x, *gaussian_law(process, sigma_data))
    torch.testing.assert_close(found.total, drawn, rtol=0, atol=3e-5)
    along = (x - MEAN) @ AXES * s.alpha
    ratio = (t.alpha**2 * VARIANCES + t.sigma**2) / (s.alpha**2 * VARIANCES + s.sigma**2)
    end = (along * ratio.sqrt()) @ AXES.T + t.alpha * MEAN
    # The flow's part is −log |∂z/∂y| with z = x_T/scale.
    exact = found.parts["flow"] - 3 * math.log(start_scale(t, sigma_data)) - data.log_prob(end, t)
    expected = -data.log_prob(s.alpha * x, s) - 3 * math.log(s.alpha)
    torch.testing.assert_close(exact, expected, rtol=0, atol=3e-5)
    if name in ZERO_TERMINAL_SNR:  # whose prior is p(x_T)
        torch.testing.assert_close(found.total, expected, rtol=0, atol=3e-5)
    assert found.exact
    assert found.error is None
    assert set(found.parts) == {"prior", "flow"}


@pytest.mark.parametrize("name", ["vp", "ve", "straight"])
def test_the_error_is_in_proportion_to_the_tolerance(name):
    process = PROCESSES[name]
    x = gaussian_data().sample(noise(16, "x"))
    expected = -log_normal(x, *gaussian_law(process, 1.0))
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        flow = Flow(tolerance=tolerance)
        found = flow_nats(gaussian_data(), process, x, noise(16), flow).total
        errors.append((found - expected).abs().max().item() / 3)
    assert errors[0] < 2e-2
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20
    assert errors[2] < 2e-6


def test_models_of_one_density_agree_whatever_their_process():
    """VE with the ends of VP (or sub-VP) in σ/α starts from the same law in y and ends in it."""
    data = two_dim_mixture()
    x = data.sample(noise(6, "x"))
    for process in (SubVP(), Cosine(shift=0.5)):
        ends = [level_at(process, t) for t in (process.smallest, 0.99)]
        low, high = (level.sigma / level.alpha for level in ends)
        ve = VE(sigma_min=low, sigma_max=high)
        one = flow_nats(data, process, x, noise(6), PRECISE, first=ends[1], sigma_data=0.9)
        other = flow_nats(data, ve, x, noise(6), PRECISE, sigma_data=0.9)
        torch.testing.assert_close(one.total, other.total, rtol=0, atol=1e-4)


# --- quadrature -----------------------------------------------------------------------------------


def line_mixture():
    return Mixture(f64([0.3, 0.7]), f64([[-0.8], [0.6]]), f64([[[0.02]], [[0.1]]]))


@pytest.mark.parametrize("name", ["cosine", "straight", "vp", "edm", "rescaled", "linear"])
def test_a_density_on_a_line_adds_up_to_one(name):
    """And is the oracle's own where the flow starts from its own law."""
    process, data = PROCESSES[name], line_mixture()
    y = torch.linspace(-4, 4, 2001, dtype=torch.float64).unsqueeze(1)
    found = flow_nats(data, process, y, noise(2001), Flow(tolerance=1e-6)).total
    density = torch.exp(-found).numpy()
    assert np.trapezoid(density, y.squeeze(1).numpy()) == pytest.approx(1, abs=2e-5)
    s = smallest_level(process)
    expected = data.log_prob(s.alpha * y, s) + math.log(s.alpha)
    apart = (torch.exp(-found) - torch.exp(expected)).abs().max().item()
    assert apart < (2e-5 if name in ZERO_TERMINAL_SNR else 2e-2)


def test_a_clipped_denoiser_has_a_density_too():
    """Whatever the denoiser says, p is the law of what its flow draws and adds up to one."""
    denoise = clipped(line_mixture(), -0.7, 0.4)
    y = torch.linspace(-3, 3, 2001, dtype=torch.float64).unsqueeze(1)
    # What would lie beyond is drawn to the limits, to within the noise of the smallest level.
    found = flow_nats(denoise, Cosine(smallest=0.05), y, noise(2001), Flow(tolerance=1e-5)).total
    total = np.trapezoid(torch.exp(-found).numpy(), y.squeeze(1).numpy())
    assert total == pytest.approx(1, abs=1e-3)


def test_an_independent_integration_says_the_same():
    """Runge and Kutta's method in y and log σ/α, the trace by central differences."""
    process, data = VP(), two_dim_mixture()
    x = data.sample(noise(5, "x"))
    t, s = level_at(process, 1.0), smallest_level(process)
    ends = [math.log(level.sigma / level.alpha) for level in (s, t)]
    count, step = 150, 1e-5
    h = (ends[1] - ends[0]) / count

    def slope(y, at):
        sigma = math.exp(at)
        norm = math.hypot(1, sigma)  # any point of the ray will do: VP's own is on the circle
        level = level_at(process, process.time(f64(-2 * at)).item())

        def rate(y):
            return y - data(y / norm, level).x0

        trace = 0
        for d in range(2):
            e = step * torch.eye(2, dtype=torch.float64)[d]
            trace = trace + (rate(y + e) - rate(y - e))[:, d] / (2 * step)
        return rate(y), trace

    y, total = x.clone(), torch.zeros(5, dtype=torch.float64)
    for i in range(count):
        at = ends[0] + i * h
        k1, d1 = slope(y, at)
        k2, d2 = slope(y + 0.5 * h * k1, at + 0.5 * h)
        k3, d3 = slope(y + 0.5 * h * k2, at + 0.5 * h)
        k4, d4 = slope(y + h * k3, at + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    variance = (t.sigma / t.alpha) ** 2 + 1
    log_prior = -0.5 * y.square().sum(1) / variance - math.log(2 * math.pi * variance)
    ours = flow_nats(data, process, x, noise(5), PRECISE).total
    torch.testing.assert_close(ours, -(log_prior + total), rtol=0, atol=1e-4)


# --- the trace ------------------------------------------------------------------------------------


def log_stretch(process):
    """M = ∫ J dτ of the Gaussian data, symmetric: the logarithm of what the flow does to u."""
    t, s = level_at(process, 1.0), smallest_level(process)
    spread = [
        ((level.alpha**2 * VARIANCES + level.sigma**2) / (level.alpha**2 + level.sigma**2)).sqrt()
        for level in (s, t)
    ]
    return AXES @ torch.diag(torch.log(spread[1] / spread[0])) @ AXES.T


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_unbiased_and_vary_as_predicted(kind):
    count, process = 6000, Straight()
    x = gaussian_data().sample(noise(1, "x")).expand(count, 3)
    truth = flow_nats(gaussian_data(), process, x[:1], noise(1), PRECISE)
    flow = Flow(trace=kind, probes=1, tolerance=1e-5)
    found = flow_nats(gaussian_data(), process, x, noise(count), flow)
    stretch = log_stretch(process)
    squares = stretch.square().sum() - (stretch.diag().square().sum() if kind[0] == "r" else 0)
    std = math.sqrt(2 * squares.item())
    error = found.parts["flow"] - truth.parts["flow"]
    assert error.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(count))
    assert error.std().item() == pytest.approx(std, rel=0.05)
    torch.testing.assert_close(
        found.parts["prior"], truth.parts["prior"].expand(count), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_standard_error_is_honest(kind):
    """Of K probes: its square is the variance of one, over K, in the mean."""
    count, probes, process = 3000, 4, Straight()
    x = gaussian_data().sample(noise(1, "x")).expand(count, 3)
    flow = Flow(trace=kind, probes=probes, tolerance=1e-4)
    found = flow_nats(gaussian_data(), process, x, noise(count), flow)
    stretch = log_stretch(process)
    squares = stretch.square().sum() - (stretch.diag().square().sum() if kind[0] == "r" else 0)
    variance = 2 * squares.item() / probes
    assert found.error.square().mean().item() == pytest.approx(variance, rel=0.12)
    assert found.total.std().item() == pytest.approx(math.sqrt(variance), rel=0.06)
    assert flow_nats(
        gaussian_data(), process, x[:2], noise(2), flow.but(probes=1)
    ).error is None  # fmt: skip


def test_signs_are_exact_where_values_do_not_mix():
    data = gaussian(MEAN, torch.diag(f64([0.5, 2.0, 0.1])))
    x = data.sample(noise(4, "x"))
    found = {
        kind: flow_nats(data, VP(), x, noise(4), Flow(trace=kind, tolerance=1e-6)).total
        for kind in ("exact", "rademacher", "gaussian")
    }
    torch.testing.assert_close(found["rademacher"], found["exact"], rtol=0, atol=1e-4)
    assert (found["gaussian"] - found["exact"]).abs().min() > 1e-3


def test_probes_are_what_they_are_called():
    shape = torch.Size((2, 3))
    signs = probes_of("rademacher", 500, shape, noise(4))
    assert signs.shape == (4, 500, 6)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    normal = probes_of("gaussian", 500, shape, noise(4))
    for found in (signs, normal):
        second = torch.einsum("bki,bkj->ij", found, found) / 2000
        torch.testing.assert_close(second, torch.eye(6).double(), rtol=0, atol=0.15)
    assert torch.equal(probes_of("exact", 1, shape, noise(4))[0], torch.eye(6).double())


def test_auto_is_exact_for_few_dimensions_only():
    assert [Flow().kind_of(d) for d in (1, 12, 13, 3072)] == [*["exact"] * 2, *["rademacher"] * 2]
    assert Flow(trace="gaussian").kind_of(2) == "gaussian"


class Small(nn.Module):
    """A smooth network of four values."""

    def __init__(self) -> None:
        super().__init__()
        weights = Noise.of(0, "weights", 4).normal(0, (9,))
        self.first = nn.Parameter(weights[:, :5].clone())
        self.last = nn.Parameter(weights[:, 5:].T.clone())

    def forward(self, x, label, cond):
        h = torch.cat((x.flatten(1), 1e-3 * label.unsqueeze(1)), dim=1)
        return (torch.tanh(h @ self.first.T) @ self.last.T).view_as(x)


def test_a_frozen_network_in_single_precision_has_a_density():
    """Its weights ask for no gradient, and the caller may have switched gradients off."""
    model = Denoiser(Small().requires_grad_(False), Cosine(), V())
    x = noise(3, "x").normal(0, (1, 2, 2)) * 0.3
    tight = Flow(trace="exact", tolerance=1e-5)
    with torch.no_grad():
        exact = flow_nats(bind(model), Cosine(), x, noise(3), tight)
        flow = Flow(trace="rademacher", probes=30, tolerance=1e-4)
        found = flow_nats(bind(model), Cosine(), x, noise(3), flow)
    assert exact.total.dtype == torch.float64
    assert ((found.total - exact.total).abs() < 4.5 * found.error + 1e-4).all()
    twice = Denoiser(Small().double().requires_grad_(False), Cosine(), V())
    precise = flow_nats(bind(twice), Cosine(), x.double(), noise(3), tight).total
    torch.testing.assert_close(exact.total, precise, rtol=0, atol=1e-3)


def test_a_sample_depends_on_its_own_key_only():
    """Wherever it stands in whatever batch: path, probes and dequantisation are its own."""
    data, x = two_dim_mixture(), f64([[0.1, 0.2], [5.0, -4.0], [-1.0, 0.3]])
    for flow in (Flow(trace="gaussian", probes=2), Flow(trace="rademacher", dequantise="noise")):
        bins = Bins(-8.0, 8.0, 0.5)
        together = flow_nats(data, VP(), x, noise(3), flow, bins=bins)
        for b in range(3):
            alone = flow_nats(
                data, VP(), x[b : b + 1], Noise.of(0, "likelihood", [b]), flow, bins=bins
            )
            torch.testing.assert_close(alone.total[0], together.total[b], rtol=1e-10, atol=0)


# --- whole numbers --------------------------------------------------------------------------------


class UniformLaw:
    """The exact denoiser of values that are uniform between two ends, each by itself."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, x, level):
        std = level.sigma / level.alpha
        expand = torch.as_tensor(std).reshape(-1, 1)
        y = x / torch.as_tensor(level.alpha).reshape(-1, 1).clamp(min=1e-300)
        low, high = (self.low - y) / expand, (self.high - y) / expand
        # Where the noise prevails the two ends look alike: there the mean is linear in y.
        wide = (self.high - self.low) / expand
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        density = [torch.exp(-0.5 * end.square()) / math.sqrt(2 * math.pi) for end in (low, high)]
        middle = 0.5 * (self.low + self.high)
        linear = middle + (y - middle) * wide.square() / 12
        inside = y + expand * (density[0] - density[1]) / mass.clamp(min=1e-290)
        x0 = torch.where(wide < 1e-3, linear, inside.clamp(self.low, self.high))
        return Prediction.from_x0(x, level, x0)


def test_a_uniform_law_of_eight_bits_has_eight_bits():
    """256 values from −1 to 1 have bins of 2/255, together 2 + 2/255 wide."""
    width = 2 / 255
    data = UniformLaw(-1 - width / 2, 1 + width / 2)
    bins = Bins(-1.0, 1.0, width)
    value = torch.tensor([[20, 130], [200, 77], [128, 31], [90, 160]], dtype=torch.float64)
    x = -1 + width * value
    found = flow_nats(
        data, VE(sigma_min=1e-3, sigma_max=300.0), x, noise(4), Flow(tolerance=1e-6), bins=bins
    )
    assert not found.exact
    assert set(found.parts) == {"prior", "flow", "bins"}
    for nats in found.total.tolist():
        assert bits_per_dim(nats, (2,)) == pytest.approx(8, abs=1e-3)
    assert bits_per_dim(found.parts["bins"][0].item(), (1, 2)) == pytest.approx(
        7 - math.log2(256 / 255), abs=1e-9
    )  # + log2 127.5 = 6.994 for data scaled to [−1, 1] by 255


@pytest.mark.parametrize("count", [2, 17, 256])
def test_noise_of_the_last_level_loses_nothing_where_the_law_is_exact(count):
    """Values equally likely: p(y) P(x|y)/q(y|x) is 1/K whatever the noise, so each draw of the
    bound is −log P(x) itself."""
    width = 2 / (count - 1)
    points = -1 + width * torch.arange(count, dtype=torch.float64).unsqueeze(1)
    x = points[[0, count // 2, count - 1, 1]]
    found = flow_nats(
        Finite(points),
        Straight(),
        x,
        noise(4),
        Flow(tolerance=1e-7, dequantise="noise"),
        bins=Bins(-1.0, 1.0, width),
    )
    torch.testing.assert_close(
        found.total, torch.full((4,), math.log(count)).double(), rtol=0, atol=1e-4
    )


def test_both_ways_bound_the_probability_of_what_is_drawn_and_decoded():
    """P(x) = ∫ p(y) P(x|y) dy by quadrature, P(x|y) being 1 in the bin or the share of the noise.
    The gap is KL(q(y|x) ‖ p(y|x)), for uniform noise that of a flat law to one that is not."""
    data = Mixture(f64([0.2, 0.8]), f64([[-1.0], [1.0]]), torch.zeros(2, 1, 1))
    bins, count = Bins(-1.0, 1.0, 2.0), 500
    values, std = f64([-1.0, 1.0]), 2 / math.sqrt(12)
    y = torch.linspace(-6, 6, 40_001, dtype=torch.float64)
    near = torch.exp(-0.5 * ((y.unsqueeze(1) - values) / std).square())
    density = (near * f64([0.2, 0.8])).sum(1) / (std * math.sqrt(2 * math.pi))
    within = (y.unsqueeze(1) - values).abs() < 1
    shares = {"noise": near / near.sum(1, keepdim=True), "uniform": within.double()}
    x = values.repeat_interleave(count).unsqueeze(1)
    drawn = {"noise": near / (std * math.sqrt(2 * math.pi)), "uniform": within / 2}
    for kind, share in shares.items():
        joint, q = density.unsqueeze(1) * share, drawn[kind]
        exact = -torch.log(torch.trapezoid(joint, y, dim=0))
        terms = torch.where(q > 0, q * (torch.log(q) - torch.log(joint)), 0.0)
        expected = torch.trapezoid(terms, y, dim=0)
        assert (expected > exact).all()
        flow = Flow(tolerance=1e-5, dequantise=kind)
        found = flow_nats(data, Straight(), x, noise(2 * count), flow, bins=bins).total
        found = found.view(2, count)
        off = (found.mean(1) - expected).abs()
        assert (off < 4 * found.std(1) / math.sqrt(count) + 1e-3).all()


def test_probabilities_of_all_values_add_up_to_at_most_one():
    """exp(−bound) is an estimate of P(x) whose mean is at most P(x), so that the sum over x of
    exp of minus the mean bound cannot pass 1, whatever the denoiser is."""
    denoise = clipped(line_mixture(), -0.7, 0.5)
    count, draws = 9, 200
    bins = Bins(-1.0, 1.0, 2 / (count - 1))
    x = torch.linspace(-1, 1, count, dtype=torch.float64).repeat_interleave(draws).unsqueeze(1)
    for kind in ("noise", "uniform"):
        flow = Flow(dequantise=kind)
        found = flow_nats(denoise, VP(), x, noise(len(x)), flow, bins=bins).total
        total = torch.exp(-found.view(count, draws).mean(1)).sum().item()
        assert 0.5 < total < 1.01


def test_where_the_flow_of_whole_numbers_ends():
    """At the noise of rounding, w/√12, or at the smallest level where that is noisier."""
    coarse = last_level(VP(), Bins(-1.0, 1.0, 2 / 16))
    assert coarse.sigma / coarse.alpha == pytest.approx(2 / 16 / math.sqrt(12))
    fine = last_level(VP(), Bins(-1.0, 1.0, 2 / 255))
    assert fine == smallest_level(VP()) == last_level(VP(), None)


@pytest.mark.parametrize("kind", ["uniform", "noise"])
def test_dequantised_values_are_about_their_own(kind):
    bins, std = Bins(0.0, 16.0, 1.0), 1 / math.sqrt(12)
    x = f64([[0.0] * 2000, [7.0] * 2000, [16.0] * 2000])
    y, cost = dequantised(x, noise(3), Flow(dequantise=kind), bins, std)
    off = y - x
    assert off.mean().item() == pytest.approx(0, abs=0.02)
    assert off.std().item() == pytest.approx(std, rel=0.03)
    assert cost.shape == (3,)
    if kind == "uniform":
        assert off.abs().max() <= 0.5
        assert (cost == 0).all()  # log 1
    else:  # log q is −log(σ √(2πe)) in the mean, and a few values have a likely neighbour
        least = -2000 * math.log(std * math.sqrt(2 * math.pi * math.e))
        assert ((cost - least) / 2000 > -0.05).all()
        assert ((cost - least) / 2000 < 0.35).all()
        assert (cost[[0, 2]] < cost[1]).all()  # at the ends there is but one neighbour


# --- what is kept of it ---------------------------------------------------------------------------


def test_a_record_keeps_the_error_of_its_probes():
    parts = {"prior": f64([10.0, 20.0, 30.0]), "flow": f64([1.0, 2.0, 3.0])}
    found = bound_of(Nats(parts, True, f64([0.3, 0.4, 1.2])), (1, 2, 2), "held_out")
    assert found.exact
    assert found.probes == pytest.approx(bits_per_dim(1.3 / 3, (4,)))
    assert bound_of(Nats(parts, False), (4,), "train").probes is None
