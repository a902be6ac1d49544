"""Posterior guidance (notes eq 1.23) against posteriors that are known.

    x0 ~ N(m, C), y = A x0 + std n   ⇒   x0 | y ~ N(m + G (y − A m), (I − G A) C),
    G = C Aᵀ (A C Aᵀ + std² I)⁻¹

and p_t(x | y) is that law, noised: the oracle of the posterior says what guidance should.
"""

import pytest
import torch

from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.grid import LogSNR, Trailing
from ornstein.diffusion.inverse import DPS, MMPS, PiGDM, moved, posterior, solve
from ornstein.diffusion.levels import CLEAN, Level, level_at
from ornstein.diffusion.measurements import Blur, Downsample, Grey, Mask, Operator
from ornstein.diffusion.oracle import gaussian
from ornstein.diffusion.prediction import Prediction, V
from ornstein.diffusion.process import VE, VP, drift_diffusion
from ornstein.diffusion.sdedit import sdedit
from ornstein.diffusion.steps import Heun, Jump
from ornstein.diffusion.stochastic import EulerMaruyama
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.nn.networks import UNet
from ornstein.noise import Noise
from tests.helpers import (
    COVARIANCE,
    MEAN,
    PROCESSES,
    ZERO_TERMINAL_SNR,
    constant,
    f64,
    gaussian_data,
    grid,
    propagate,
    slope,
)

EYE = torch.eye(3, dtype=torch.float64)
A = f64([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = f64([[0.7, -0.3]])
METHODS = {"dps": DPS(), "pigdm": PiGDM(), "mmps": MMPS(iterations=8)}
methods = pytest.mark.parametrize("name", METHODS)


def linear(std, a=A):
    return Operator(lambda x0: x0.flatten(1) @ a.to(x0.dtype).T, std)


def conditioned(std, mean=MEAN, covariance=COVARIANCE, a=A, y=Y):
    """Mean and covariance of x0 given y."""
    own = a @ covariance @ a.T + std**2 * torch.eye(len(a), dtype=torch.float64)
    gain = covariance @ a.T @ torch.linalg.inv(own)
    left = covariance - gain @ a @ covariance
    return mean + gain @ (y[0] - a @ mean), 0.5 * (left + left.T)


def noised(level, mean, covariance):
    return level.alpha * mean, level.alpha**2 * covariance + level.sigma**2 * EYE


def states(level, count=6, seed=0):
    """x [B, 3] about where the data are at a level, and farther out."""
    z = Noise.of(seed, "x", count).normal(0, (3,), torch.float64)
    return level.alpha * MEAN + 2 * (level.alpha**2 + level.sigma**2) ** 0.5 * z


# --- exactness where the theory has it --------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_moment_matching_is_the_conditional_score_of_gaussian_data(process, std):
    """∇ log p_t(x) + ∇ log p_t(y | x) = ∇ log p_t(x | y) at every level."""
    exact = gaussian(*conditioned(std))
    guided = posterior(gaussian_data(), linear(std), Y, METHODS["mmps"])
    for level in (*grid("karras", process, 5)[:-1], level_at(PROCESSES[process], 0.5)):
        x = states(level)
        ours, theirs = guided(x, level).score, exact(x, level).score
        rounding = 16 * torch.finfo(x.dtype).eps / level.sigma**2  # of a score, (α x̂0 − x)/σ²
        assert (ours - theirs).abs().max() < 1e-8 * theirs.abs().max() + rounding


@pytest.mark.parametrize("std", [0.0, 0.2])
@pytest.mark.parametrize("process", ["vp", "ve", "straight", "sub_vp"])
def test_pseudoinverse_guidance_is_exact_for_isotropic_data(process, std):
    """x0 ~ N(m, σ_d² I), of any mean and σ_d, and an A whose A Aᵀ is no multiple of I; from pure
    noise on, where α = 0, too. So is moment matching, there by the given σ_d."""
    spread = 0.6
    exact = gaussian(*conditioned(std, covariance=spread**2 * EYE))
    data, levels = gaussian(MEAN, spread**2 * EYE), grid("trailing", process, 6)
    for method in (PiGDM(), METHODS["mmps"]):
        guided = posterior(data, linear(std), Y, method, sigma_data=spread)
        for level in levels[:-1]:
            x = states(level)
            ours, theirs = guided(x, level).x0, exact(x, level).x0
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("process", "std"), [("vp", 0.0), ("ve", 0.3), ("straight", 0.3)])
def test_the_flow_of_the_guided_model_ends_in_the_exact_posterior(process, std):
    """Mean and covariance of what Heun draws, by exact propagation: off by its order, no more."""
    mean, covariance = conditioned(std)
    guided = posterior(gaussian_data(), linear(std), Y, MMPS(iterations=3))
    counts, errors = (20, 40, 80), []
    for n in counts:
        ends = {"sigma_max": 20.0 if process == "straight" else None}
        levels = LogSNR(sigma_min=0.02, **ends)(PROCESSES[process], n)[:-1]
        moments = propagate(Heun(), guided, levels, *noised(levels[0], mean, covariance))
        found = noised(levels[-1], mean, covariance)
        gaps = ((a - b).abs().max() for a, b in zip(moments[-1], found, strict=True))
        errors.append(max(gaps).item())
    assert slope(counts, errors) == pytest.approx(2.0, abs=0.3)
    assert errors[-1] < 5e-3


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_sde_of_the_guided_model_ends_in_the_exact_posterior(process):
    """Ancestral steps: every mean is exact, and covariances converge at order 1, as they do for
    data of which the posterior is the law."""
    mean, covariance = conditioned(0.3)
    guided = posterior(gaussian_data(), linear(0.3), Y, MMPS(iterations=3))
    counts, errors = (30, 60, 120), []
    for n in counts:
        levels = LogSNR(sigma_min=0.05)(PROCESSES[process], n)[:-1]
        moments = propagate(Jump(eta=1), guided, levels, *noised(levels[0], mean, covariance))
        for level, (found, _) in zip(levels, moments, strict=True):
            torch.testing.assert_close(found, level.alpha * mean, rtol=1e-7, atol=1e-7)
        errors.append((moments[-1][1] - noised(levels[-1], mean, covariance)[1]).abs().max())
    assert slope(counts, errors) == pytest.approx(1.0, abs=0.2)
    assert errors[-1] < 0.08


@pytest.mark.parametrize("step", [Heun(), Jump(eta=1)], ids=["flow", "sde"])
def test_samples_have_the_posterior_mean_and_covariance(step):
    """4000 real paths from pure noise, under no_grad as always; five standard errors, and the
    error of 60 steps beside it."""
    n, process = 4000, VP()
    mean, covariance = conditioned(0.3)
    guided = posterior(gaussian_data(), linear(0.3), Y, MMPS(iterations=2))
    x = Noise.of(0, "start", n).normal(0, (3,), torch.float64)
    *_, last = sample(guided, process, LogSNR()(process, 60), step, x, Noise.of(0, "steps", n))
    variances = covariance.diagonal()
    assert ((last.x.mean(0) - mean).abs() < 5 * (variances / n).sqrt() + 0.01).all()
    error = ((covariance**2 + variances.outer(variances)) / n).sqrt()
    assert ((torch.cov(last.x.T) - covariance).abs() < 5 * error + 0.03).all()


def test_a_step_is_notes_eq_1_23():
    """dx = {f x − g² [∇ log p_t(x) + ∇ log p_t(y | x)]} dt + g dw: Euler-Maruyama of the guided
    model, with the second score from p_t(y | x) = N(y; A x̂0, A Cov[x0 | x] Aᵀ + std²)."""
    process, std = VP(), 0.3
    t, s = level_at(process, 0.6), level_at(process, 0.55)
    x, oracle = states(t), gaussian_data()
    guided = posterior(oracle, linear(std), Y, METHODS["mmps"])
    ours, _ = EulerMaruyama().along(process, (t, s, CLEAN))(guided, 0, x, Noise.of(0, "z", 6), None)
    quiet, _ = EulerMaruyama().along(process, (t, s, CLEAN))(
        oracle, 0, x, Noise.of(0, "z", 6), None
    )

    shrink = t.alpha * COVARIANCE @ torch.linalg.inv(noised(t, MEAN, COVARIANCE)[1])
    cov = COVARIANCE - t.alpha * shrink @ COVARIANCE

    def log_p(x):
        x0 = MEAN + (x - t.alpha * MEAN) @ shrink.T
        own = A @ cov @ A.T + std**2 * torch.eye(2, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(x0 @ A.T, own).log_prob(Y).sum()

    score = torch.autograd.functional.jacobian(log_p, x)
    _, g = drift_diffusion(process, f64(t.t))
    torch.testing.assert_close(ours, quiet + g**2 * score * (t.t - s.t), rtol=1e-9, atol=1e-9)
    assert score.abs().max() > 0.1


# --- bias where the theory has none, as predicted ---------------------------------------------


def affine_guided(kind, std, sigma_data=1.0):
    """The guided denoiser of N(MEAN, COVARIANCE) in matrices, S as the method has it."""

    def denoise(x, level):
        alpha, sigma = level.alpha, level.sigma
        shrink = alpha * COVARIANCE @ torch.linalg.inv(noised(level, MEAN, COVARIANCE)[1])
        prior = sigma**2 * sigma_data**2 / (sigma**2 + sigma_data**2 * alpha**2)
        own = (prior if kind == "pigdm" else 0.0) * A @ A.T
        own = own + std**2 * torch.eye(2, dtype=torch.float64)
        x0 = MEAN + (x - alpha * MEAN) @ shrink.T
        gain = sigma**2 / alpha * shrink.T @ A.T @ torch.linalg.inv(own)
        return Prediction.from_x0(x, level, x0 + (Y - x0 @ A.T) @ gain.T)

    return denoise


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_bias_of_the_others_is_that_of_their_covariance(process, capsys):
    """Of general Gaussian data, where no guard is at work (std above the widths of A x0 for DPS,
    σ_d above those of the data for ΠGDM): guidance is affine, so that the mean and covariance of
    all samples follow from S, and how far they are from the posterior's is known."""
    levels = LogSNR(sigma_min=0.02)(PROCESSES[process], 40)[:-1]
    for name, std, sigma_data in (("dps", 4.0, 1.0), ("pigdm", 0.5, 2.0), ("mmps", 0.5, 1.0)):
        mean, covariance = conditioned(std)
        start = noised(levels[0], mean, covariance)
        guided = posterior(gaussian_data(), linear(std), Y, METHODS[name], sigma_data)
        found = propagate(Heun(), guided, levels, *start)[-1]
        if name != "mmps":
            theirs = propagate(Heun(), affine_guided(name, std, sigma_data), levels, *start)[-1]
            for ours, predicted in zip(found, theirs, strict=True):
                torch.testing.assert_close(ours, predicted, rtol=1e-7, atol=1e-8)
        exact = noised(levels[-1], mean, covariance)
        bias = [(a - b).abs().max().item() for a, b in zip(found, exact, strict=True)]
        with capsys.disabled():
            print(f"\n{process} {name}: mean off by {bias[0]:.4f}, covariance by {bias[1]:.4f}")
        assert max(bias) < 0.01 if name == "mmps" else 0.01 < max(bias) < 1


def test_dps_overshoots_by_what_it_leaves_out():
    """One number, std = 1: V/std² of the way instead of V/(V + std²), as long as V ≤ std²; and
    from there on all the way, never beyond."""
    data, level = gaussian(f64([0.0]), f64([[4.0]])), level_at(VE(), 0.9)
    x, y = f64([[1.3]]), f64([[2.0]])
    for std in (0.0, 0.5, 1.0, 3.0):
        free = data(x, level).x0
        v = 4 * level.sigma**2 / (4 + level.sigma**2)
        guided = posterior(data, Operator(lambda x0: x0, std), y, DPS())(x, level).x0
        share = min(v / std**2, 1.0) if std else 1.0
        torch.testing.assert_close(guided, free + share * (y - free))
        half = posterior(data, Operator(lambda x0: x0, std), y, DPS(scale=0.5))(x, level).x0
        torch.testing.assert_close(half, free + 0.5 * share * (y - free))


@methods
def test_no_method_takes_the_image_farther_from_y(name):
    """Data ten times as wide as ΠGDM is told, y exact: x̂0 stays as near to y as it was."""
    data = gaussian(MEAN, 100 * COVARIANCE)
    guided = posterior(data, linear(0.0), Y, METHODS[name], sigma_data=1.0)
    for level in grid("log_snr", "ve", 8)[:-1]:
        x = states(level)
        was, now = ((Y - p(x, level).x0 @ A.T).norm(dim=1) for p in (data, guided))
        assert (now <= was * (1 + 1e-9)).all()


def test_methods_on_mixtures_are_ordered_as_they_should_be():
    """The table of benchmarks/inverse_problems.py in small: on Gaussian data moment matching is
    near the error of exact samples and DPS is not; on a mixture, where none is exact, all
    are much closer to the posterior than samples that have not seen y."""
    from benchmarks.inverse_problems import Size, mixture, problem

    size = Size(seeds=1, measurements=4, samples=128, steps=30)

    def rms(values):
        return f64(values).square().mean().sqrt().item()

    found = {k: rms(v) for k, v in problem(mixture(0, 1, 8), 0, 1.0, size).items()}
    assert found["MMPS, 5 iterations, flow"] < 1.35 * found["floor"]
    assert found["DPS, flow"] > 1.5 * found["MMPS, 5 iterations, flow"]
    size = size._replace(measurements=2)
    found = {k: rms(v) for k, v in problem(mixture(0, 5, 4), 0, 0.2, size).items()}
    for name, distance in found.items():
        if name not in ("floor", "no guidance"):
            assert distance < 0.6 * found["no guidance"], name


# --- non-linear measurements ------------------------------------------------------------------


@pytest.mark.parametrize("function", [torch.sinh, torch.tanh, lambda x: x + 0.3 * x**2])
def test_a_nonlinear_measurement_is_right_as_noise_falls(function):
    """One number with a Gaussian prior, p_t(y | x) by quadrature: A is a line as far as x0 may be
    from x̂0, so that the error of the score, in units of 1/σ, falls with σ or faster."""
    std, data = 0.3, gaussian(f64([0.2]), f64([[0.8]]))
    guided = posterior(data, Operator(function, std), f64([[0.5]]), MMPS(iterations=1))
    sigmas, errors = (0.04, 0.02, 0.01, 0.005), []
    for sigma in sigmas:
        level = Level(0.5, 1.0, sigma)
        x = torch.linspace(-1, 1.5, 9, dtype=torch.float64).unsqueeze(1).requires_grad_()
        mean = data(x.detach(), level).x0 + 0.8 / (0.8 + sigma**2) * (x - x.detach())
        spread = (0.8 * sigma**2 / (0.8 + sigma**2)) ** 0.5
        z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
        log_w = -0.5 * z**2 - 0.5 * ((0.5 - function(mean + spread * z)) / std) ** 2
        (score,) = torch.autograd.grad(torch.logsumexp(log_w, 1).sum(), x)
        x = x.detach()
        ours = guided(x, level).score - data(x, level).score
        errors.append((sigma * (ours - score)).abs().max().item())
    assert slope(sigmas, errors) < -2.5  # the exponent of 1/σ: as σ³ for σ times a score
    assert errors[-1] < 1e-3


# --- invariance, precision and ends -----------------------------------------------------------


@methods
@pytest.mark.parametrize("process", ["vp", "ve", "straight", "cosine"])
def test_a_sample_does_not_depend_on_its_neighbours(name, process):
    """Whatever company it keeps: one with its own y, at one level or at levels of its own, and
    among samples that need more iterations."""
    y = torch.cat((Y, 100 * Y, -Y, 0 * Y))
    oracle, process = gaussian_data(), PROCESSES[process]
    for t in (f64([1.0, 0.7, 0.4, 0.1]), 0.3, 1.0):
        level = level_at(process, t)
        x = f64([[1.0, 0.3, -0.5], [-1.2, 0.8, 0.4], [50.0, 0, 0], [0, 0, 0]])
        together = posterior(oracle, linear(0.0), y, METHODS[name])(x, level)
        assert together.x0.isfinite().all()
        for b in range(4):
            own = level if isinstance(t, float) else level_at(process, t[b : b + 1])
            one = slice(b, b + 1)
            alone = posterior(oracle, linear(0.0), y[one], METHODS[name])(x[one], own)
            torch.testing.assert_close(alone.x0, together.x0[one], rtol=1e-9, atol=1e-12)


def test_one_measurement_may_be_that_of_all():
    level, x = level_at(VP(), 0.5), states(level_at(VP(), 0.5))
    one = posterior(gaussian_data(), linear(0.1), Y)(x, level)
    each = posterior(gaussian_data(), linear(0.1), Y.expand(6, -1))(x, level)
    assert torch.equal(one.x0, each.x0)


@methods
@pytest.mark.parametrize("std", [0.0, 0.1])
def test_single_precision_is_safe_at_both_ends(name, std):
    """σ/α of 80 and of 0.002, and pure noise: what float64 says, to single precision's rounding
    of a score times σ/α."""
    level = {r: Level(0.5, 1.0, r) for r in (80.0, 1.0, 0.002)}
    points = [*level.values(), level_at(PROCESSES["straight"], 1.0)]
    points += [level_at(VP(), 1.0), level_at(PROCESSES["straight"], 0.002)]
    for at in points:
        x = states(at)
        guided = posterior(gaussian_data(), linear(std), Y, METHODS[name])
        single = posterior(gaussian_data(), linear(std), Y.float(), METHODS[name])
        ours, theirs = single(x.float(), at), guided(x, at)
        assert ours.x0.dtype == torch.float32
        torch.testing.assert_close(ours.x0.double(), theirs.x0, rtol=2e-4, atol=2e-4)


def test_nothing_is_divided_by_zero():
    """y that x̂0 explains already, data that are a point, and a measurement of nothing new."""
    level = level_at(VP(), 0.5)
    x = states(level)
    for name, std in ((n, s) for n in METHODS for s in (0.0, 0.3)):
        free = gaussian_data()(x, level)
        explained = posterior(gaussian_data(), linear(std), free.x0 @ A.T, METHODS[name])
        torch.testing.assert_close(explained(x, level).x0, free.x0, rtol=1e-9, atol=1e-9)
        point = posterior(constant(MEAN), linear(std), Y, METHODS[name])(x, level)
        assert torch.equal(point.x0, MEAN.expand_as(x))
        twice = linear(std, torch.cat((A, A, 0 * A)))  # A Aᵀ is singular
        y = torch.cat((Y, Y, 0 * Y), dim=1)
        assert posterior(gaussian_data(), twice, y, METHODS[name])(x, level).x0.isfinite().all()


@pytest.mark.parametrize("process", [p for p in PROCESSES if p in ZERO_TERMINAL_SNR])
@methods
def test_walks_start_from_pure_noise(name, process):
    """α = 0: the first step has a direction, by σ_d, and the samples agree with y in the end."""
    y, levels = f64([[1.1, -0.4]]), Trailing()(PROCESSES[process], 30)
    guided = posterior(gaussian_data(), linear(0.0), y, METHODS[name])
    x = Noise.of(0, "start", 64).normal(0, (3,), torch.float64)
    *_, last = sample(guided, PROCESSES[process], levels, Heun(), x, None)
    off = (last.x @ A.T - y).norm(dim=1).median()
    assert off < (0.3 if name == "dps" else 0.05)  # a line search is not a solution


def test_to_move_is_to_nudge():
    """`moved` is `Prediction.nudged` where that is defined, in any target."""
    level, x = level_at(VP(), 0.4), states(level_at(VP(), 0.4))
    shift = states(level, seed=1)
    exact = gaussian_data()(x, level)
    for target in (V(),):
        p, q = target(VP(), level)
        said = Prediction(x, level, exact.target(target, VP()), p, q)
        nudged = said.nudged(level.alpha / level.sigma**2 * shift)
        torch.testing.assert_close(moved(said, shift).f, nudged.f, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moved(said, shift).x0, exact.x0 + shift)


@methods
def test_a_guided_model_can_be_differentiated_itself(name):
    """As the likelihood along the flow does: the pull-back agrees with finite differences, through
    a non-linear A, and for moment matching it is the posterior's own."""
    level = level_at(VP(), 0.5)
    x = states(level, 2)
    bent = Operator(lambda x0: torch.sinh(0.3 * x0 @ A.T), 0.3)
    guided = posterior(gaussian_data(), bent, Y, METHODS[name])

    def x0_of(x):
        return guided(x, level).x0

    assert torch.autograd.gradcheck(x0_of, x.requires_grad_(), atol=1e-5, rtol=1e-4)
    exact, straight = gaussian(*conditioned(0.3)), posterior(gaussian_data(), linear(0.3), Y)
    if name == "mmps":
        ours, theirs = (
            torch.autograd.functional.jacobian(lambda x, d=d: d(x, level).x0.sum(0), x)
            for d in (straight, exact)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@methods
def test_a_network_is_guided_like_anything_else(name):
    """Under no_grad, without a gradient left on its weights, with the spread it has learned, and
    for images of every measurement."""
    network = UNet(channels=(8,), blocks=1, middle_attention=True).build((3, 8, 8), 2)
    model = Denoiser(network, VP(), V(), learn_spread=True)
    x = Noise.of(0, "x", 2).normal(0, (3, 8, 8))
    for measurement in (
        Mask(torch.arange(8) < 4, 0.1),
        Blur(1.0, 0.1),
        Downsample(2),
        Grey(),
    ):
        guided = posterior(bind(model), measurement, measurement(0.3 * x), METHODS[name])
        *_, last = sample(guided, VP(), LogSNR()(VP(), 4), Jump(), x, None)
        assert last.x.isfinite().all()
        assert not last.x.requires_grad
        level = level_at(VP(), 0.5)
        said = guided(x, level)
        assert torch.equal(said.spread, bind(model)(x, level).spread)
    assert all(p.grad is None for p in model.parameters())


def test_editing_goes_with_guidance():
    """A guided model is a model: SDEdit of it agrees with y, too."""
    guided = posterior(gaussian_data(), linear(0.0), Y)
    x = MEAN.expand(4, 3)
    *_, last = sdedit(guided, VP(), LogSNR()(VP(), 30), Heun(), x, 0.5, Noise.of(0, "edit", 4))
    assert (last.x @ A.T - Y).abs().max() < 0.02


# --- the linear solver ------------------------------------------------------------------------


def test_conjugate_gradients_solve_each_sample_by_itself():
    roots = Noise.of(0, "roots", 5).normal(0, (6, 6), torch.float64)
    matrices = roots @ roots.mT + 0.1 * torch.eye(6, dtype=torch.float64)
    matrices[3] = 2 * torch.eye(6, dtype=torch.float64)  # done after one iteration
    matrices[4] = -torch.eye(6, dtype=torch.float64)  # not positive: left at 0
    b = Noise.of(1, "b", 5).normal(0, (6,), torch.float64)
    found = solve(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, 40)
    torch.testing.assert_close(found[:4], torch.linalg.solve(matrices[:4], b[:4]))
    assert torch.equal(found[4], 0 * b[4])
    calls = []
    solve(lambda v: calls.append(1) or 2 * v, b, 40)
    assert len(calls) == 1


# --- what cannot work -------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    level = level_at(VP(), 0.5)
    x = states(level)
    with pytest.raises(ConfigError, match=r"y has the shape \[1, 3\].*\[6, 2\].*one y for each"):
        posterior(gaussian_data(), linear(0.1), f64([[1.0, 2.0, 3.0]]))(x, level)
    with pytest.raises(ConfigError, match=r"y has the shape \[2, 2\]"):
        posterior(gaussian_data(), linear(0.1), Y.expand(2, -1))(x, level)
    with pytest.raises(ConfigError, match="not finite; mask what is not known"):
        posterior(gaussian_data(), linear(0.1), f64([[1.0, torch.nan]]))
    with pytest.raises(ConfigError, match="sigma_data must be above 0, got 0"):
        posterior(gaussian_data(), linear(0.1), Y, sigma_data=0.0)
    for wrong in (lambda: DPS(scale=0), lambda: MMPS(iterations=0), lambda: PiGDM(iterations=0)):
        with pytest.raises(ValueError, match="greater than"):
            wrong()


def test_unknown_pixels_may_hold_anything():
    mask = Mask(f64([1, 0, 1]), 0.0)
    level = level_at(VP(), 0.5)
    x = states(level)
    for name in METHODS:
        clean = posterior(gaussian_data(), mask, f64([[0.5, 0.0, 1.0]]), METHODS[name])
        dirty = posterior(gaussian_data(), mask, f64([[0.5, torch.nan, 1.0]]), METHODS[name])
        assert torch.equal(clean(x, level).x0, dirty(x, level).x0)
