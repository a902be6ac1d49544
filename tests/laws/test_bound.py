"""The variational bound against integrals, closed forms and the negative log-likelihood itself.

For Gaussian data everything is known: the best reverse variance turns the bound into the NLL at any
number of steps, β leaves an excess that falls as 1/T, and β̃ one that never goes away, whose limit
contains Euler's constant.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.diffusion.bound import (
    Bins,
    bins_of,
    bound,
    chain_of,
    decoder_nats,
    kl_nats,
    prior_nats,
    term_nats,
)
from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.oracle import Finite, gaussian
from ornstein.diffusion.prediction import Prediction
from ornstein.diffusion.process import VE, VP, Cosine, Straight, Tabulated, transition
from ornstein.nats import bits_per_dim
from ornstein.noise import Noise
from tests.helpers import PROCESSES, SPACINGS, ZERO_TERMINAL_SNR, Given, f64, grid, pairs_of

# --- each term is an integral --------------------------------------------------------------------


def divergence(mean_q, std_q, mean_p, std_p):
    """KL(N(mean_q, std_q²) ‖ N(mean_p, std_p²)) by the trapezoid rule over ± 12 std_q."""
    z = np.linspace(-12, 12, 20_001)
    y = mean_q + std_q * z
    q = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    log_ratio = -0.5 * z**2 - math.log(std_q)
    log_ratio += 0.5 * ((y - mean_p) / std_p) ** 2 + math.log(std_p)
    return float(np.trapezoid(q * log_ratio, z))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_each_term_is_an_integrated_kl(name, spacing):
    """KL(q(x_s|x_t, x0) ‖ p(x_s|x_t)), the posteriors by Bayes' rule, on strides of any grid."""
    x0, estimate, eps, v = 0.7, 0.4, -0.9, 0.3
    levels = grid(spacing, name, 6)
    chain = chain_of(levels)
    for i, (t, s) in enumerate(pairs_of(levels)):
        alpha, std = (c.item() for c in transition(PROCESSES[name], f64(s.t), f64(t.t)))
        precision = alpha**2 / std**2 + 1 / s.sigma**2
        x = t.alpha * x0 + t.sigma * eps

        def mean(clean, x=x, alpha=alpha, std=std, s=s, precision=precision):
            return (alpha * x / std**2 + s.alpha * clean / s.sigma**2) / precision

        small, large = 1 / precision, std**2
        expected = divergence(
            mean(x0), math.sqrt(small), mean(estimate), math.sqrt(large**v * small ** (1 - v))
        )
        row = torch.tensor([i])
        ours = term_nats(f64([[x0]]), f64([[estimate]]), v, chain, row, None).item()
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_prior_term_is_an_integrated_kl(name):
    level, sigma_data = level_at(PROCESSES[name], 1.0), 0.8
    x0 = f64([[0.7, -0.2]])
    start = math.sqrt(level.sigma**2 + (sigma_data * level.alpha) ** 2)
    expected = sum(divergence(level.alpha * v, level.sigma, 0.0, start) for v in (0.7, -0.2))
    assert prior_nats(x0, level, sigma_data).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


# --- notes eq 1.8, 1.9 and 1.11 ------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["linear", "cosine"])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_notes_eq_1_8_1_9_and_1_11_agree(rule, spread):
    """The loss of L_{t−1} from μ̃ and x0, from μ̃ and ε, and from ε alone, up to the same constant.

    All are written with β and ᾱ only, as in the notes. The constant C is what is left at x̂0 = x0.
    Eq 29 is the last, with Σ_θ = σ_t² I.
    """
    steps = 50
    process = Tabulated(rule=rule, steps=steps)
    beta = process.betas()
    bar = torch.cumprod(1 - beta, 0)
    chain = chain_of(Trailing()(process, steps))
    x0 = Noise.of(0, "x0", 4).normal(0, (3,), torch.float64)
    eps = Noise.of(1, "eps", 4).normal(0, (3,), torch.float64)
    eps_hat = 0.8 * eps + 0.1 * x0
    for i in range(2, steps + 1):
        b, a, now, before = beta[i - 1], 1 - beta[i - 1], bar[i - 1], bar[i - 2]
        x = now.sqrt() * x0 + (1 - now).sqrt() * eps
        x0_hat = (x - (1 - now).sqrt() * eps_hat) / now.sqrt()
        tilde = b * (1 - before) / (1 - now)
        variance = (b**spread * tilde ** (1 - spread)).item()
        surplus = math.log(variance / tilde.item()) + tilde.item() / variance - 1

        def from_x0(clean, x=x, a=a, b=b, now=now, before=before):  # eq 1.7
            return (before.sqrt() * b * clean + a.sqrt() * (1 - before) * x) / (1 - now)

        def from_eps(noise, x=x, a=a, b=b, now=now):  # eq 1.10
            return (x - b / (1 - now).sqrt() * noise) / a.sqrt()

        eq_1_8 = (from_x0(x0) - from_x0(x0_hat)).square().sum(1) / (2 * variance)
        eq_1_9 = (from_eps(eps) - from_eps(eps_hat)).square().sum(1) / (2 * variance)
        eq_1_11 = b**2 / (2 * variance * a * (1 - now)) * (eps - eps_hat).square().sum(1)
        torch.testing.assert_close(eq_1_8, eq_1_9, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(eq_1_8, eq_1_11, rtol=1e-8, atol=1e-12)

        row = torch.full((4,), steps - i)
        ours = term_nats(x0, x0_hat, spread, chain, row, None)
        constant = term_nats(x0, x0, spread, chain, row, None)
        torch.testing.assert_close(ours - constant, eq_1_8, rtol=1e-7, atol=1e-11)
        assert constant[0].item() == pytest.approx(1.5 * surplus, abs=1e-11)


# --- Gaussian data -------------------------------------------------------------------------------


def expected_bound(process, steps, variance, spread, sigma_data):
    """The bound averaged over N(0, variance) and over the noise of each pair, exactly.

    Every term is a quadratic of (x0, ε), which five Gauss-Hermite nodes each integrate exactly.
    spread: a number, or "best" for the variance that is optimal for these data.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    a, b = (torch.from_numpy(m.ravel()[:, None]) for m in np.meshgrid(nodes, nodes))
    weight = torch.from_numpy(np.outer(weights, weights).ravel())
    levels = Trailing()(process, steps)
    chain = chain_of(levels)
    exact = gaussian(f64([0.0]), f64([[variance]]))

    def denoise(x, level):
        prediction = exact(x, level)
        i = levels.index(level)
        left = 1 / (1 / variance + (level.alpha / level.sigma) ** 2)  # Var[x0|x_t]
        if i == steps - 1:
            v = math.log(left / chain.small) / math.log(chain.large / chain.small)
        else:
            v = math.log1p(chain.gain[i].item() * left) / chain.log_ratio[i].item()
        return prediction._replace(spread=torch.full_like(x, v))

    nats = bound(
        denoise if spread == "best" else exact,
        levels,
        math.sqrt(variance) * a,
        Given(b),
        spread=0.0 if spread == "best" else spread,
        sigma_data=sigma_data,
    )
    return (weight @ nats.total).item()


def entropy(variance):
    return 0.5 * math.log(2 * math.pi * math.e * variance)


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(
    ("process", "steps"),
    [
        (process, steps)
        for process in (VP(), Tabulated(), Cosine(), Straight(), VE())
        for steps in (2, 3, 10, 100, 1000)
        if (process.kind, steps) not in itertools.product(ZERO_TERMINAL_SNR, [2])
    ],
    ids=str,
)
def test_with_the_optimal_variance_the_bound_is_the_nll(process, steps, variance):
    """At every number of steps, when sampling starts from the exact law of x_T.

    (Of two steps from pure noise, the first has β̃ = β, which leaves the decoder no choice.)
    """
    ours = expected_bound(process, steps, variance, "best", math.sqrt(variance))
    assert ours == pytest.approx(entropy(variance), abs=1e-8)


@pytest.mark.parametrize("process", [VP(), VE(sigma_max=5.0)], ids=lambda p: p.kind)
def test_a_start_that_is_not_exact_costs_its_divergence(process):
    """With p(x_T) of another variance the excess is KL(q(x_T) ‖ p(x_T)), and no more."""
    variance, sigma_data = 0.25, 1.0
    level = level_at(process, 1.0)
    true = level.alpha**2 * variance + level.sigma**2
    ratio = true / (level.alpha**2 * sigma_data**2 + level.sigma**2)
    mismatch = 0.5 * (ratio - 1 - math.log(ratio))
    ours = expected_bound(process, 20, variance, "best", sigma_data)
    assert ours == pytest.approx(entropy(variance) + mismatch, abs=1e-8)
    assert mismatch > 1e-8 or process.kind == "vp"


def test_with_beta_the_excess_falls_as_one_over_the_steps():
    """Slope −1 of log excess against log T, and never below the NLL."""
    steps = [50, 100, 200, 400, 800]
    excess = [expected_bound(VP(), n, 0.25, 1.0, 0.5) - entropy(0.25) for n in steps]
    assert min(excess) > 0
    slope = np.polyfit(np.log(steps), np.log(excess), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)


EULER = 0.5772156649015329


@pytest.mark.parametrize(
    ("process", "variance", "limit"),
    [
        # σ² ∝ t near the data: Σ_k ½ [1/k − ln(1 + 1/k)] = γ/2; the decoder: ½ (1 − ln 2).
        (VP(beta_min=0.2, beta_max=0.2, smallest=1e-9), 4.0, EULER / 2 + (1 - math.log(2)) / 2),
        # σ ∝ t: Σ_k ½ [2/k + 1/k² − 2 ln(1 + 1/k)] = γ + π²/12; the decoder: ½ (1/3 − ln 4/3).
        (
            Cosine(smallest=1e-9),
            0.25,
            EULER + math.pi**2 / 12 + (1 / 3 - math.log(4 / 3)) / 2,
        ),
    ],
    ids=["vp", "cosine"],
)
def test_with_beta_tilde_the_excess_has_a_limit_that_is_not_zero(process, variance, limit):
    """Near the data neighbours always differ by the same ratio, however many steps there are."""
    first, second = (
        expected_bound(process, n, variance, 0.0, math.sqrt(variance)) - entropy(variance)
        for n in (500, 1000)
    )
    assert second == pytest.approx(limit, abs=0.01)
    assert 2 * second - first == pytest.approx(limit, abs=3e-4)  # what falls as 1/T is gone


# --- the discretised decoder ---------------------------------------------------------------------


def decoder_chain(std):
    return chain_of(Trailing()(VP(), 2))._replace(small=std**2, large=std**2)


@given(
    mean=st.floats(-3, 3),
    std=st.floats(1e-5, 1e3),
    bins=st.sampled_from([2, 17, 256]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_the_bins_of_l0_sum_to_one(mean, std, bins, dtype):
    values = torch.linspace(-1, 1, bins, dtype=dtype)[:, None]
    nats = decoder_nats(
        values,
        torch.full_like(values, mean),
        0.0,
        decoder_chain(std),
        Bins(-1.0, 1.0, 2 / (bins - 1)),
    )
    tolerance = 1e-7 if dtype == torch.float64 else 2e-5 + 1e-6 / std
    assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=tolerance)


def test_l0_is_the_mass_of_each_bin_by_quadrature():
    """Notes eq 1.12: the integral of N(x; μ, σ²) from x − 1/255 to x + 1/255, ends at infinity."""
    bins, std, mean = Bins(-1.0, 1.0, 2 / 255), 0.01, 0.31
    for k in (0, 160, 164, 167, 175):
        centre = -1 + 2 * k / 255
        y = np.linspace(centre - 1 / 255 if k else -3, centre + 1 / 255, 200_001)
        mass = np.trapezoid(np.exp(-0.5 * ((y - mean) / std) ** 2) / std, y) / math.sqrt(
            2 * math.pi
        )
        if mass > 1e-300:
            x = f64([[centre]])
            ours = decoder_nats(x, torch.full_like(x, mean), 0.0, decoder_chain(std), bins)
            assert ours.item() == pytest.approx(-math.log(mass), rel=1e-6)


def test_far_from_every_bin_the_gradient_still_points_home():
    """Forty standard deviations off in float32: a finite number, whose gradient pulls back."""
    mean = torch.tensor([[3.0]], requires_grad=True)
    nats = decoder_nats(
        torch.tensor([[-1.0]]), mean, 0.0, decoder_chain(0.1), Bins(-1.0, 1.0, 2 / 255)
    )
    nats.sum().backward()
    assert math.isfinite(nats.item())
    assert mean.grad.item() == pytest.approx((3 + 1 - 1 / 255) / 0.01, rel=0.01)


def test_narrow_bins_cost_the_density_and_their_width():
    """−log P(bin) + log width → −log p as the bins are refined, with σ₁ held: error O(width²)."""
    mean, chain = f64([[0.1]]), decoder_chain(0.05)
    errors = []
    for width in (0.04, 0.02, 0.01):
        x = f64([[0.2]])
        density = decoder_nats(x, mean, 0.0, chain, None)
        mass = decoder_nats(x, mean, 0.0, chain, Bins(-100.0, 100.0, width))
        errors.append(abs((mass + math.log(width) - density).item()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_for_discrete_data_it_bounds_their_entropy():
    """Eight values, equally likely, exact denoiser: at least ln 8 = 3 bits, and close to it."""
    bins = Bins(-1.0, 1.0, 2 / 7)
    values = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    x0 = values.repeat(400, 1)
    count = len(x0)
    exact = Finite(values)
    for steps, slack in ((50, 1.0), (400, 0.2)):
        nats = bound(
            exact, Trailing()(VP(), steps), x0, Noise.of(0, "n", count), spread=0.0, bins=bins
        )
        mean = nats.total.mean().item()
        error = 4 * nats.total.std().item() / math.sqrt(count)
        assert math.log(8) - error < mean < math.log(8) + slack + error
    assert bits_per_dim(math.log(8), (1,)) == pytest.approx(3)


def test_one_step_and_data_of_many_dimensions():
    """T = 1: only L_T and L_0; and terms add up over dimensions."""
    levels = Trailing()(VP(), 1)
    x0 = Noise.of(0, "x", 3).normal(0, (2, 2, 2), torch.float64)

    def denoise(x, level):
        return Prediction.from_x0(x, level, torch.zeros_like(x))

    nats = bound(denoise, levels, x0, Noise.of(1, "n", 3))
    assert nats.parts["L_t"].tolist() == [0, 0, 0]
    std = levels[0].sigma
    expected = 0.5 * (x0 / std).square() + 0.5 * math.log(2 * math.pi) + math.log(std)
    torch.testing.assert_close(nats.parts["L_0"], expected.flatten(1).sum(1))


def test_a_predicted_spread_counts_value_by_value():
    error, r, gain = f64([[0.3, -0.5]]), 0.7, 1.9
    v = f64([[0.2, 0.9]])
    both = kl_nats(error, v, r, gain)
    each = [kl_nats(error[:, k : k + 1], v[0, k].item(), r, gain) for k in (0, 1)]
    torch.testing.assert_close(both, each[0] + each[1])


@pytest.mark.parametrize(
    ("limits", "bins", "width"),
    [((-1.0, 1.0), 256, 2 / 255), ((0.0, 1.0), 17, 1 / 16), (None, None, None)],
)
def test_the_data_owns_the_width_of_its_bins(limits, bins, width):
    from ornstein.data.info import DataInfo

    info = DataInfo(
        name="x",
        kind="vector",
        shape=(2,),
        range=limits,
        bins=bins,
        count=2,
        mean=0.0,
        std=1.0,
        fingerprint="",
    )
    found = bins_of(info)
    assert (found is None) if width is None else found.width == pytest.approx(width)
