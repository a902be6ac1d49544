"""Langevin dynamics at one level, and annealed over many: laws, rules of step size, and a claim."""

import itertools
import math

import pytest
import torch

from ornstein.diffusion.grid import LogSNR, Trailing
from ornstein.diffusion.langevin import (
    Annealed,
    Corrected,
    Fixed,
    Keep,
    Langevin,
    SignalToNoise,
)
from ornstein.diffusion.levels import CLEAN, Level, level_at
from ornstein.diffusion.oracle import Finite, Mixture
from ornstein.diffusion.process import VE, VP, Straight
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import (
    ANY,
    PROCESSES,
    Given,
    affine,
    constant,
    f64,
    gaussian_data,
    grid,
    marginal,
    slope,
    two_dim_mixture,
)

EYE = torch.eye(3, dtype=torch.float64)
LEVELS = [level_at(p, t) for p in (VP(), VE(), Straight()) for t in (0.3, 0.7)]
levels_of = pytest.mark.parametrize(
    "level", LEVELS, ids=lambda level: f"{level.alpha:.2g},{level.sigma:.2g}"
)


def close(ours, theirs, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def at_one_level(langevin, denoise, level, dim=3):
    """A, b and S of one update x' = A x + b + S z at a level."""
    return affine(langevin.but(updates=1), denoise, (level, level), 0, dim)


def normal(purpose, n, dim):
    return Noise.of(0, purpose, n).normal(0, (dim,), torch.float64)


# --- the two forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [Fixed(step=0.02), Annealed(eps=1e-4)], ids=lambda s: s.kind)
def test_the_half_form_with_twice_the_step_is_the_full_form(size):
    """δ = 2a, bit for bit."""
    (name,) = set(type(size).model_fields) - {"kind"}
    doubled = size.but(**{name: 2 * getattr(size, name)})
    ends = []
    for form, chosen in (("full", size), ("half", doubled)):
        step = Corrected(corrector=Langevin(updates=3, form=form, size=chosen), predictor=Keep())
        levels, x = grid("karras", "vp", 5), normal("start", 4, 2)
        *_, last = sample(two_dim_mixture(), VP(), levels, step, x, Noise.of(1, "steps", 4))
        ends.append(last.x)
    assert torch.equal(*ends)


@pytest.mark.parametrize(("form", "unit"), [("full", 1.0), ("half", 0.5)])
def test_an_update_is_the_equation(form, unit):
    """x + a s + √(2a) z and, with δ, x + (δ/2) s + √δ z, with the score by autograd."""
    oracle, level, step = two_dim_mixture(), level_at(VP(), 0.4), 0.03
    x, z = normal("x", 6, 2).requires_grad_(), normal("z", 6, 2)
    (score,) = torch.autograd.grad(oracle.log_prob(x, level).sum(), x)
    move = Langevin(form=form, size=Fixed(step=step)).along(ANY, (level, level))
    ours, _ = move(oracle, 0, x.detach(), Given(z), None)
    close(ours, x.detach() + unit * step * score + math.sqrt(2 * unit * step) * z)


# --- the law that it settles at ---------------------------------------------------------------


@levels_of
@pytest.mark.parametrize(("form", "unit"), [("full", 1.0), ("half", 0.5)])
def test_stationary_law_of_a_gaussian(level, form, unit):
    """On p_t = N(m, C) the chain settles at N(m, C (I − a C⁻¹/2)⁻¹): N(0, v/(1 − a/2v)) for each
    variance v of C, a little too wide, and from a point it gets there."""
    mean, c = marginal(level)
    a = 0.5 * torch.linalg.eigvalsh(c)[0].item()
    settled = c @ torch.linalg.inv(EYE - a / 2 * torch.linalg.inv(c))
    langevin = Langevin(form=form, size=Fixed(step=a / unit))
    gain, b, noise = at_one_level(langevin, gaussian_data(), level)
    close(gain @ mean + b, mean)
    close(gain @ settled @ gain.T + noise @ noise.T, settled)
    covariance = 0 * EYE
    for _ in range(600):
        covariance = gain @ covariance @ gain.T + noise @ noise.T
    close(covariance, settled)


@levels_of
def test_one_update_leaves_the_law_but_for_the_square_of_its_step(level):
    """From p_t = N(m, C) itself: the mean stays, and C becomes C + a² C⁻¹, exactly."""
    mean, c = marginal(level)
    for a in (1e-3, 1e-2, 0.1):
        gain, b, noise = at_one_level(Langevin(size=Fixed(step=a)), gaussian_data(), level)
        close(gain @ mean + b, mean)
        close(gain @ c @ gain.T + noise @ noise.T, c + a**2 * torch.linalg.inv(c), atol=1e-9)


def test_to_first_order_it_is_the_general_step_from_a_level_to_itself():
    """α x̂0 + √(σ² − ν²) ε̂ + ν z with ν² = 2a is the update, but for a²/2σ³ and more."""
    level = level_at(VP(), 0.5)
    x, z = normal("x", 5, 2), normal("z", 5, 2)
    prediction = two_dim_mixture()(x, level)
    sizes, errors = (4e-3, 2e-3, 1e-3), []
    for a in sizes:
        move = Langevin(size=Fixed(step=a)).along(ANY, (level, level))
        ours, _ = move(two_dim_mixture(), 0, x, Given(z), None)
        general = prediction.point(level.alpha, math.sqrt(level.sigma**2 - 2 * a))
        errors.append((general + math.sqrt(2 * a) * z - ours).abs().max().item())
    assert slope([1 / a for a in sizes], errors) == pytest.approx(2, abs=0.05)


# --- notes eq 1.17 ----------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VE(), VE(sigma_min=0.3, sigma_max=7), VP()], ids=str)
@pytest.mark.parametrize(("updates", "share"), [(1, 0.3), (5, 0.062), (40, 0.01)])
def test_eq_1_17(process, updates, share):
    """Point data, x/α from N(0, σ_{i−1}² I) of the level before: after T updates its variance is
    s_T² of eq 1.17, and s_T²/σ_i² is the same at all levels. (σ is σ/α where α ≠ 1.)"""
    levels = LogSNR()(process, 12)
    noisy = [level.sigma / level.alpha for level in levels[:-1]]
    gamma, last = noisy[0] / noisy[1], noisy[-1]
    eps = share * last**2
    settled = 2 * eps / (last**2 - last**2 * (1 - eps / last**2) ** 2)
    expected = (1 - eps / last**2) ** (2 * updates) * (gamma**2 - settled) + settled
    langevin = Langevin(size=Annealed(eps=eps))
    for i, level in list(enumerate(levels[:-1]))[1:]:
        gain, _, noise = affine(langevin, constant(f64([0.0])), levels, i, dim=1)
        variance = f64([[noisy[i - 1] ** 2 * level.alpha**2]])
        for _ in range(updates):
            variance = gain @ variance @ gain.T + noise @ noise.T
        close(variance, f64([[expected * level.sigma**2]]), rtol=1e-9)


def test_eq_1_17_has_the_published_answer():
    """σ 50 to 0.01 in steps of γ = 1.0376, T = 5, ε = 6.2e-6: s_T²/σ² = 1.0555; and an ε that is
    half or twice as large is further from 1 (arXiv:2006.09011 on CIFAR-10)."""
    steps = round(math.log(50 / 0.01) / math.log(1.0376)) + 1
    levels = LogSNR()(VE(sigma_min=0.01, sigma_max=50), steps)
    assert steps == 232
    assert levels[0].sigma / levels[1].sigma == pytest.approx(1.0376, abs=5e-5)
    ratios = []
    for eps in (6.2e-6, 3.1e-6, 1.24e-5):
        move = affine(Langevin(size=Annealed(eps=eps)), constant(f64([0.0])), levels, 7, dim=1)
        gain, noise = move[0].item(), move[2].item()
        variance = levels[6].sigma ** 2
        for _ in range(5):
            variance = gain**2 * variance + noise**2
        ratios.append(variance / levels[7].sigma ** 2)
    assert ratios[0] == pytest.approx(1.0555, abs=5e-4)
    assert min(ratios) == ratios[0]


@pytest.mark.parametrize("form", ["half", "full"])
@pytest.mark.parametrize("name", ["edm", "vp"])
def test_a_step_that_is_left_open_is_that_of_eq_1_17(name, form):
    """232 levels in steps of γ = 1.0376 and 5 updates: the published ε/σ_L² = 0.062 (δ is twice
    that), so that after 5 updates (1 − 0.062)^5 of a start is left. Filled in, it is the same."""
    levels = LogSNR(sigma_min=0.015, sigma_max=0.015 * 1.0376**231)(PROCESSES[name], 232)
    langevin = Langevin(updates=5, form=form, size=Annealed())
    fitted = Corrected(corrector=langevin, predictor=Keep()).fitted(levels).corrector
    assert fitted.size.eps == pytest.approx(0.062 * 0.015**2 * (1 + (form == "half")), rel=0.01)
    for chosen in (langevin, fitted):
        left, _, _ = affine(chosen, constant(f64([0.0])), levels, 7, dim=1)
        assert 1 - left.item() ** 0.2 == pytest.approx(0.062, abs=5e-4)
    assert fitted.fitted(levels) == fitted
    with pytest.raises(ConfigError, match="a grid of two or more levels"):
        langevin.along(PROCESSES[name], levels[-2:])


def test_without_updates_nothing_is_asked():
    levels = grid("log_snr", "ve", 3)
    move = Langevin(updates=0, size=Annealed()).along(VE(), levels)
    x = normal("x", 3, 3)
    assert torch.equal(move(None, 0, x, None, None)[0], x)


# --- steps at a set signal-to-noise ratio -----------------------------------------------------


def literal_corrector(score, x, noises, ratio, alpha):
    """Algorithm 5 of arXiv:2011.13456 (4 is α = 1), for one sample x [D] as it is written there."""
    for z in noises:
        g = score(x)
        eps = 2 * alpha * (ratio * torch.linalg.norm(z) / torch.linalg.norm(g)) ** 2
        x = x + eps * g + torch.sqrt(2 * eps) * z
    return x


@pytest.mark.parametrize("name", ["ve", "vp", "sub_vp", "straight"])
@pytest.mark.parametrize("form", ["half", "full"])
def test_signal_to_noise_against_the_published_algorithm(name, form):
    """Sample by sample with the same z, in 24 dimensions; 1 − β_i is (α_i/α_{i+1})²."""
    oracle = Finite(1.5 * normal("points", 5, 24))
    levels = grid("trailing", name, 6)
    x = normal("x", 3, 24)
    langevin = Langevin(updates=2, form=form, size=SignalToNoise(ratio=0.16))
    move, noise = langevin.along(PROCESSES[name], levels), Noise.of(1, "z", 3)
    for i in range(1, 6):
        t, s = levels[i], levels[i + 1]
        start = t.alpha * 0.3 + t.sigma * x
        ours, _ = move(oracle, i, start, noise, None)
        z = [noise.at(2 * i + j).normal(0, (24,), torch.float64) for j in (0, 1)]
        for row in range(3):

            def score(y, t=t):
                return oracle(y.unsqueeze(0), t).score[0]

            alpha = (t.alpha / s.alpha) ** 2
            close(
                ours[row],
                literal_corrector(score, start[row], [draw[row] for draw in z], 0.16, alpha),
                rtol=1e-9,
            )


def test_the_drift_is_the_named_share_of_the_noise():
    """|a s| = r √α_i |√(2a) z| for each sample, whatever its score."""
    level, ratio = level_at(VP(), 0.6), 0.1
    oracle, x, z = Finite(normal("points", 5, 24)), normal("x", 4, 24), normal("z", 4, 24)
    move = Langevin(size=SignalToNoise(ratio=ratio)).along(ANY, (level, level))
    moved, _ = move(oracle, 0, x, Given(z), None)
    score = oracle(x, level).score
    a = 2 * (ratio * z.norm(dim=1) / score.norm(dim=1)) ** 2
    shake = (2 * a).sqrt().unsqueeze(1) * z
    close((moved - x - shake).norm(dim=1), ratio * shake.norm(dim=1), rtol=1e-8)


def test_where_the_score_vanishes_the_step_is_bounded():
    """At s = 0 (a mode, a network that says nothing yet) a = σ², and no sample is lost."""
    level = Level(0.5, 0.8, 0.6)
    x = torch.cat((torch.zeros(1, 2), torch.tensor([[1e-6, 0.0]]))).double()
    z = normal("z", 2, 2)
    move = Langevin(size=SignalToNoise(ratio=0.16)).along(ANY, (level, level))
    moved, _ = move(constant(f64([0.0, 0.0])), 0, x, Given(z), None)
    close(moved, math.sqrt(2) * level.sigma * z, atol=2e-6)


def test_pure_noise_is_not_corrected_at_a_set_ratio():
    """Zero terminal SNR: 1 − β of the first step is 0, and x there is right as it is."""
    levels = Trailing()(Straight(), 4)
    x = normal("x", 3, 3)
    move = Langevin(updates=2).along(Straight(), levels)
    moved, _ = move(gaussian_data(), 0, x, Noise.of(0, "z", 3), None)
    assert levels[0].alpha == 0
    assert torch.equal(moved, x)


def test_annealed_and_fixed_steps_are_defined_at_pure_noise():
    """N(0, σ²) there is a Gaussian like others: an update leaves σ² (1 + (a/σ²)²)."""
    levels = LogSNR(sigma_max=20)(Straight(), 5)
    levels = (level_at(Straight(), 1.0), *levels)
    for size, a in ((Fixed(step=0.1), 0.1), (Annealed(eps=1e-8), None)):
        gain, b, noise = affine(Langevin(size=size), gaussian_data(), levels, 0)
        a = a or 1e-8 * (levels[-2].alpha / levels[-2].sigma) ** 2
        close(b, 0 * b)
        close(gain @ gain.T + noise @ noise.T, (1 + a**2) * EYE)


# --- annealed ---------------------------------------------------------------------------------


def test_annealed_langevin_is_figure_1_3():
    """The loop as it is printed, over the levels of NCSN, with the same numbers z."""
    oracle, process = two_dim_mixture(), VE(sigma_min=0.05, sigma_max=8)
    levels, eps, updates = LogSNR()(process, 7), 2e-4, 4
    start, noise = 8 * normal("start", 5, 2), Noise.of(3, "steps", 5)
    annealed = Langevin(updates=updates, form="half", size=Annealed(eps=eps))
    *_, last = sample(
        oracle, process, levels, Corrected(corrector=annealed, predictor=Keep()), start, noise
    )
    x, draws = start, itertools.count()
    for level in levels[:-1]:
        step = eps * level.sigma**2 / levels[-2].sigma ** 2
        for _ in range(updates):
            z = noise.child("corrector").at(next(draws)).normal(0, (2,), torch.float64)
            x = x + step / 2 * oracle(x, level).score + math.sqrt(step) * z
    close(last.x, x, rtol=1e-9)


@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin_takes_one_path_under_every_process(denoise):
    """On equal σ/α, x/α is the same under all of them: VE's path."""
    annealed, paths = Langevin(updates=2, size=Annealed(eps=1e-3)), []
    step = Corrected(corrector=annealed, predictor=Keep(denoise=denoise))
    for process in PROCESSES.values():
        levels = LogSNR(sigma_min=0.1, sigma_max=10)(process, 7)
        x = levels[0].alpha * f64([[3.0, -4.0], [-9.0, 7.0]])
        walk = sample(two_dim_mixture(), process, levels, step, x, Noise.of(0, "steps", 2))
        paths.append(torch.stack([state.x / state.level.alpha for state in walk]))
    for path in paths[1:]:
        close(path, paths[0], rtol=1e-7, atol=1e-7)


def test_keep_keeps_and_at_the_end_says_what_is_clean():
    oracle, levels = two_dim_mixture(), grid("karras", "vp", 3)
    x = normal("x", 4, 2)
    kept, clean = (Keep(denoise=d).along(VP(), levels) for d in (False, True))
    for i in (0, 1):
        t, s = levels[i : i + 2]
        for move in (kept, clean):
            close(move(oracle, i, x, None, None)[0] / s.alpha, x / t.alpha)
    assert levels[3] is CLEAN
    close(kept(oracle, 2, x, None, None)[0], x / levels[2].alpha)
    close(clean(oracle, 2, x, None, None)[0], oracle(x, levels[2]).x0)


def test_the_last_step_of_ncsnv2_is_the_denoised_sample():
    """x + σ² s(x) (arXiv:2006.09011, algorithm 1 with denoising) is x̂0 under VE."""
    oracle, levels, x = two_dim_mixture(), grid("log_snr", "ve", 4), normal("x", 4, 2)
    sigma = levels[3].sigma
    clean, _ = Keep(denoise=True).along(VE(), levels)(oracle, 3, x, None, None)
    close(clean, x + sigma**2 * oracle(x, levels[3]).score)


def test_x_over_alpha_cannot_be_kept_from_pure_noise():
    with pytest.raises(ConfigError, match="starts where α = 0; give a grid in σ a sigma_max"):
        Keep().along(Straight(), Trailing()(Straight(), 3))


@pytest.mark.parametrize(("form", "most"), [("full", 0.02), ("half", 0.04)])
def test_an_annealed_step_that_diverges_is_refused(form, most):
    """At a = 2σ² and above; just below it the chain on point data stays finite."""
    levels = LogSNR()(VE(sigma_min=0.1, sigma_max=10), 4)

    def spread(eps):
        langevin = Langevin(updates=2000, form=form, size=Annealed(eps=eps))
        move = langevin.along(ANY, levels)
        return move(constant(f64([0.0])), 2, f64([[1.0]]), Given(f64([[0.0]])), None)[0].item()

    assert abs(spread(0.999 * most)) < 1
    with pytest.raises(ConfigError, match=f"size.eps well below {most:g}"):
        spread(1.001 * most)


# --- the notes' claim -------------------------------------------------------------------------

FAR = Mixture(f64([0.8, 0.2]), f64([[5.0, 5.0], [-5.0, -5.0]]), EYE[:2, :2].expand(2, 2, 2))


def heavy(x):
    """The share of samples at the mode whose weight is 0.8."""
    return (x.sum(1) > 0).double().mean().item()


def test_plain_langevin_gets_the_weights_wrong():
    """Notes after eq 1.13. 0.8 N((5, 5), I) + 0.2 N((−5, −5), I), as in arXiv:1907.05600, §3.2.2.

    From a start that covers the square, each mode gets the half of it that is nearer; from one
    mode the other is never found. Within a mode all is well: that is what makes it treacherous."""
    level, plain = Level(0.5, 1.0, 0.01), Langevin(size=Fixed(step=0.1))
    square = 16 * (Noise.of(0, "start", 2000).uniform(0, (2,), torch.float64) - 0.5)
    modes = {0.5: square, 1.0: FAR.means[0].expand(1000, 2), 0.0: FAR.means[1].expand(1000, 2)}
    for share, start in modes.items():
        noise = Noise.of(0, "plain", len(start))
        *_, last = sample(FAR, ANY, (level,) * 301, plain, start, noise)
        assert heavy(last.x) == pytest.approx(share, abs=0.04 if share == 0.5 else 0)
        right = (last.x.sum(1) > 0).long()
        within = last.x - FAR.means[1 - right]
        assert within.mean(0).abs().max() < 0.15
        assert within.square().mean().item() == pytest.approx(1 / (1 - 0.05), abs=0.1)


def test_annealed_langevin_gets_the_weights_right():
    """The same modes from pure noise of σ = 10, with 800 updates a sample.

    In the limit of many samples the share is 0.791, by quadrature of the chain, and more updates
    bring it closer to 0.8; the standard error of 4000 samples is 0.0064."""
    n, process = 4000, VE(sigma_min=0.5, sigma_max=10)
    step = Corrected(
        corrector=Langevin(updates=20, size=Annealed(eps=0.05)), predictor=Keep(denoise=True)
    )
    start = 10 * normal("start", n, 2)
    *_, last = sample(FAR, process, LogSNR()(process, 40), step, start, Noise.of(0, "steps", n))
    assert heavy(last.x) == pytest.approx(0.8, abs=0.02)
