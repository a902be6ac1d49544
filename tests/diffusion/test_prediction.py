"""The plane: every target says the same thing, at any level of any process."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.diffusion.levels import Level, level_at
from ornstein.diffusion.prediction import (
    EDM,
    X0,
    Eps,
    Prediction,
    Score,
    V,
    aim,
    check_admissible,
    clipped,
    mix,
    resolve,
)
from ornstein.diffusion.process import VE, VP, Tabulated, rates
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import PAIRS, PROCESSES, TARGETS, ZERO_TERMINAL_SNR, f64, two_dim_mixture

pairs = st.sampled_from(PAIRS)
shares = st.floats(0, 1)


def time_of(process, share):
    return process.smallest + share * (1 - process.smallest)


def draw(seed, shape=(4, 2, 3)):
    noise = Noise.of(seed, "plane", shape[0])
    return [noise.normal(i, shape[1:], torch.float64) for i in range(3)]


def column(values, like):
    return values.view(-1, *[1] * (like.dim() - 1))


@given(pairs, shares, st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_resolve_inverts_every_target(pair, share, seed, dtype):
    """x = α x0 + σ ε and f = p x0 + q ε give x0 and ε back, to the rounding of the inputs.

    An input rounded by u moves x0 by at most u (|q x| + |σ f|)/|αq − σp|.
    """
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    level = level_at(process, time_of(process, share))
    x0, eps, _ = draw(seed)
    p, q = target(process, level)
    x, f = level.alpha * x0 + level.sigma * eps, p * x0 + q * eps
    result = resolve(x.to(dtype), level, f.to(dtype), p, q)
    det = level.alpha * q - level.sigma * p
    unit = 8 * torch.finfo(dtype).eps
    assert result.x0.dtype == result.eps.dtype == dtype
    bound = unit * ((q * x).abs() + (level.sigma * f).abs()) / abs(det)
    assert ((result.x0.double() - x0).abs() <= bound + 1e-14).all()
    bound = unit * ((p * x).abs() + (level.alpha * f).abs()) / abs(det)
    assert ((result.eps.double() - eps).abs() <= bound + 1e-14).all()


@given(pairs, st.lists(shares, min_size=4, max_size=4), st.integers(0, 99))
def test_per_sample_levels_equal_one_level_at_a_time(pair, many, seed):
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    t = [time_of(process, 0.999 * share) for share in many]
    x, f, score = draw(seed)
    level = level_at(process, f64(t))
    together = resolve(x, level, f, *target(process, level)).nudged(score)
    for b in range(4):
        one = level_at(process, t[b])
        part = slice(b, b + 1)
        alone = resolve(x[part], one, f[part], *target(process, one)).nudged(score[part])
        for ours, theirs in (
            (together.x0[part], alone.x0),
            (together.eps[part], alone.eps),
            (together.score[part], alone.score),
            (together.at(level)[part], alone.at(one)),
            (together.target(target, process)[part], alone.target(target, process)),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@given(pairs, st.sampled_from(sorted(TARGETS)), shares, st.integers(0, 99))
def test_changing_the_target_changes_nothing(pair, other, share, seed):
    """target → resolve → other target → resolve: the same clean image and noise."""
    if (other, pair[1]) not in PAIRS:
        other = "x0"
    process = PROCESSES[pair[1]]
    level = level_at(process, time_of(process, share))
    x, x0, _ = draw(seed)
    first = Prediction.from_x0(x, level, x0)
    for name in (pair[0], other):
        f = first.target(TARGETS[name], process)
        first = resolve(x, level, f, *TARGETS[name](process, level))
    slack = 1e-12 * max(1.0, level.sigma / max(level.alpha, 1e-12)) ** 2
    torch.testing.assert_close(first.x0, x0, rtol=1e-8, atol=1e-9 + min(slack, 1e-6))
    torch.testing.assert_close(first.at(level), x, rtol=1e-10, atol=1e-10)


@given(pairs, shares, st.integers(0, 99), st.floats(-2, 9))
def test_mix_commutes_with_the_target(pair, share, seed, weight):
    """(1−w) f₁ + w f₂ resolved is the mix of the resolved; w = 1 is the second, exactly."""
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    level = level_at(process, time_of(process, share))
    x, f1, f2 = draw(seed)
    p, q = target(process, level)
    first, second = resolve(x, level, f1, p, q), resolve(x, level, f2, p, q)
    mixed = mix(first, second, weight)
    direct = resolve(x, level, (1 - weight) * f1 + weight * f2, p, q)
    scale = 1 + max(first.x0.abs().max().item(), second.x0.abs().max().item())
    torch.testing.assert_close(mixed.x0, direct.x0, rtol=1e-9, atol=1e-10 * scale)
    scale = 1 + max(first.eps.abs().max().item(), second.eps.abs().max().item())
    torch.testing.assert_close(mixed.eps, direct.eps, rtol=1e-9, atol=1e-10 * scale)
    assert torch.equal(mix(first, second, 0.0).x0, first.x0)
    torch.testing.assert_close(mix(first, second, 1.0).eps, second.eps)


@given(pairs, st.sampled_from(sorted(TARGETS)), shares, st.integers(0, 99), st.floats(-2, 9))
def test_mix_of_two_models_with_different_targets(pair, other, share, seed, weight):
    """Each says it in its own way: the mixed clean images and noises are mixed all the same."""
    if (other, pair[1]) not in PAIRS:
        other = "x0"
    process = PROCESSES[pair[1]]
    level = level_at(process, time_of(process, 0.999 * share))
    x, x0, better = draw(seed)
    first, second = (
        resolve(x, level, Prediction.from_x0(x, level, image).target(TARGETS[name], process),
                *TARGETS[name](process, level))
        for name, image in ((pair[0], x0), (other, better))
    )  # fmt: skip
    mixed = mix(first, second, weight)
    for part in ("x0", "eps"):
        a, b = getattr(first, part), getattr(second, part)
        scale = 1 + a.abs().max().item() + b.abs().max().item()
        torch.testing.assert_close(
            getattr(mixed, part), a + weight * (b - a), rtol=1e-7, atol=1e-8 * scale
        )


@given(pairs, shares, st.integers(0, 99), st.floats(-3, 3), st.floats(-3, 3))
def test_a_point_of_the_plane_is_the_sum_of_its_parts(pair, share, seed, a, b):
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    level = level_at(process, time_of(process, share))
    x0, eps, _ = draw(seed)
    x, f = level.alpha * x0 + level.sigma * eps, aim(target, process, level, x0, eps)
    found = resolve(x, level, f, *target(process, level)).point(a, b)
    p, q = target(process, level)
    det = abs(level.alpha * q - level.sigma * p)
    # What the rounding of x and f, 1e-16 of them, can do to it.
    lever = (abs(a * q - b * p) * x.abs() + abs(level.alpha * b - level.sigma * a) * f.abs()) / det
    assert ((found - (a * x0 + b * eps)).abs() <= 1e-14 + 4e-15 * lever).all()


def test_mix_is_guidance_with_the_conditional_model_at_one():
    """ε_u + w (ε_c − ε_u); notes eq 40 with weight w − 1: w ε_c − (w − 1) ε_u."""
    level = level_at(VP(), 0.4)
    x, e_u, e_c = draw(0)
    u, c = (resolve(x, level, e, 0.0, 1.0) for e in (e_u, e_c))
    torch.testing.assert_close(mix(u, c, 3.0).eps, 3.0 * e_c - 2.0 * e_u)


@given(st.sampled_from(sorted(PROCESSES)), shares, shares, st.integers(0, 99))
def test_at_keeps_clean_image_and_noise(name, share, other, seed):
    process = PROCESSES[name]
    level, elsewhere = (level_at(process, time_of(process, c)) for c in (share, other))
    x0, eps, _ = draw(seed)
    x = level.alpha * x0 + level.sigma * eps
    prediction = Prediction.from_x0(x, level, x0)
    torch.testing.assert_close(prediction.at(level), x, rtol=1e-12, atol=1e-12)
    expected = elsewhere.alpha * x0 + elsewhere.sigma * eps
    torch.testing.assert_close(prediction.at(elsewhere), expected, rtol=1e-9, atol=1e-9)


@given(st.sampled_from(sorted(set(PROCESSES) - set(ZERO_TERMINAL_SNR))), shares, st.integers(0, 99))
def test_nudging_adds_to_the_score_and_stays_in_the_plane(name, share, seed):
    """s = −ε/σ; adding g: s' = s + g, x = α x0' + σ ε', and Tweedie x0' = (x + σ² s')/α."""
    process = PROCESSES[name]
    level = level_at(process, time_of(process, share))
    x, x0, g = draw(seed)
    before = Prediction.from_x0(x, level, x0)
    torch.testing.assert_close(before.score, -before.eps / level.sigma)
    after = before.nudged(g)
    torch.testing.assert_close(after.score, before.score + g)
    torch.testing.assert_close(after.at(level), x, rtol=1e-9, atol=1e-9)
    tweedie = (x + level.sigma**2 * (before.score + g)) / level.alpha
    torch.testing.assert_close(after.x0, tweedie, rtol=1e-8, atol=1e-8)


def test_nudging_by_the_score_of_a_label_conditions_on_it():
    """∇log p(x|y) = ∇log p(x) + ∇log p(y|x), with y the component of a mixture."""
    mixture, level = two_dim_mixture(), level_at(VP(), 0.3)
    component = type(mixture)(f64([1.0]), mixture.means[1:2], mixture.covariances[1:2])
    x = f64([[0.3, 0.4], [-1.0, 0.2]]).requires_grad_()
    log_y = component.log_prob(x, level) - mixture.log_prob(x, level)
    (gradient,) = torch.autograd.grad(log_y.sum(), x)
    x = x.detach()
    guided = mixture(x, level).nudged(gradient)
    torch.testing.assert_close(guided.x0, component(x, level).x0, rtol=1e-9, atol=1e-9)


# --- what the targets are --------------------------------------------------------------------


def test_targets_are_their_definitions():
    """x0, ε, v = αε − σx0, score −ε/σ, velocity dx/dt at fixed (x0, ε)."""
    x0, eps, _ = draw(1)
    for process in PROCESSES.values():
        level = level_at(process, 0.4137)
        x = level.alpha * x0 + level.sigma * eps
        says = {k: aim(target, process, level, x0, eps) for k, target in TARGETS.items()}
        torch.testing.assert_close(says["x0"], x0)
        torch.testing.assert_close(says["eps"], eps)
        torch.testing.assert_close(says["v"], level.alpha * eps - level.sigma * x0)
        torch.testing.assert_close(says["score"], -(x - level.alpha * x0) / level.sigma**2)
        h = 1e-6
        later, sooner = level_at(process, 0.4137 + h), level_at(process, 0.4137 - h)
        moved = (later.alpha - sooner.alpha) * x0 + (later.sigma - sooner.sigma) * eps
        torch.testing.assert_close(says["velocity"], moved / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["edm", "ve", "vp", "straight", "sub_vp"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.3])
def test_edm_is_the_published_preconditioning(name, sigma_data):
    """D(x; σ) = c_skip x + c_out F with table 1 of Karras et al., at x/α and σ/α."""
    process = PROCESSES[name]
    level = level_at(process, 0.6)
    x, f, _ = draw(2)
    sigma = level.sigma / level.alpha
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
    target = EDM(sigma_data=sigma_data)
    ours = resolve(x, level, f, *target(process, level))
    torch.testing.assert_close(ours.x0, c_skip * x / level.alpha + c_out * f)


@given(st.sampled_from(sorted(PROCESSES)), shares, st.integers(0, 99))
def test_edm_with_unit_data_is_minus_v_of_the_normalised_process(name, share, seed):
    """For σ_d = 1, F = −(α' ε − σ' x0) with (α', σ') = (α, σ)/√(α² + σ²)."""
    process = PROCESSES[name]
    level = level_at(process, time_of(process, share))
    norm = math.hypot(level.alpha, level.sigma)
    x, x0, _ = draw(seed)
    prediction = Prediction.from_x0(x, level, x0)
    v = (level.alpha * prediction.eps - level.sigma * x0) / norm
    ours = prediction.target(EDM(sigma_data=1.0), process)
    torch.testing.assert_close(ours, -v, rtol=1e-10, atol=1e-10)


def test_edm_targets_have_unit_variance_for_data_of_sigma_data():
    """Var F = p² σ_d² + q² = 1 at every level: why EDM chose c_out."""
    for process in PROCESSES.values():
        level = level_at(process, torch.linspace(process.smallest, 1, 9).double())
        p, q = EDM(sigma_data=0.7)(process, level)
        torch.testing.assert_close(p**2 * 0.49 + q**2, torch.ones(9).double())


def test_edm_without_its_measure_says_so():
    with pytest.raises(ConfigError, match="sigma_data"):
        EDM()(VP(), level_at(VP(), 0.5))


@given(pairs, shares, st.integers(0, 99))
def test_losses_of_all_targets_are_one_loss(pair, share, seed):
    """‖f̂ − f‖² = ((αq − σp)/σ)² ‖x̂0 − x0‖², at the same x."""
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    level = level_at(process, time_of(process, share))
    x0, eps, guess = draw(seed)
    x = level.alpha * x0 + level.sigma * eps
    p, q = target(process, level)
    f = aim(target, process, level, x0, eps)
    f_hat = Prediction.from_x0(x, level, guess).target(target, process)
    factor = (level.alpha * q - level.sigma * p) / level.sigma
    loss = (f_hat - f).square().sum()
    torch.testing.assert_close(loss, factor**2 * (guess - x0).square().sum(), rtol=1e-6, atol=1e-9)


def test_progressive_distillation_is_resolve_at_the_destination():
    """Two teacher steps end at z; the x0 that one student step needs solves α_s x0 + σ_s ε = z:
    x̃0 = (z − (σ_s/σ_t) x)/(α_s − (σ_s/σ_t) α_t)   (Salimans & Ho 2022, algorithm 2)."""
    t, s = level_at(VP(), 0.8), level_at(VP(), 0.5)
    x, z, _ = draw(3)
    ratio = s.sigma / t.sigma
    published = (z - ratio * x) / (s.alpha - ratio * t.alpha)
    student = resolve(x, t, z, s.alpha, s.sigma)
    torch.testing.assert_close(student.x0, published)
    torch.testing.assert_close(student.at(s), z)


# --- admissible or refused -------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_admitted_or_refused_with_a_sentence(target, process):
    """ε and the score do not determine x0 where α = 0; all other pairs do, at every time."""
    if (target, process) in PAIRS:
        check_admissible(TARGETS[target], PROCESSES[process])
        return
    with pytest.raises(ConfigError) as caught:
        check_admissible(TARGETS[target], PROCESSES[process])
    message = str(caught.value)
    assert f"'{target}'" in message
    assert f"'{PROCESSES[process].kind}'" in message
    assert "t = 1," in message
    assert "use v, x0 or velocity" in message
    assert "\n" not in message


def test_a_target_that_fails_in_the_middle_is_refused():
    """f = x0 + 2ε is parallel to x where α = σ/2: both signs of αq − σp occur."""

    class Slanted:
        kind = "slanted"

        def __call__(self, process, level):
            return 1.0, 2.0

    with pytest.raises(ConfigError, match="slanted"):
        check_admissible(Slanted(), VP())


def test_a_target_that_only_rounding_determines_is_refused():
    """VP with β up to 200 ends at α = e^−50: ε is all of x there, to the last bit."""
    with pytest.raises(ConfigError, match="'eps'"):
        check_admissible(Eps(), VP(beta_max=200))
    check_admissible(V(), VP(beta_max=200))


@given(pairs, shares)
def test_admitted_pairs_determine_the_clean_image_everywhere(pair, share):
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    level = level_at(process, time_of(process, share))
    p, q = target(process, level)
    assert abs(level.alpha * q - level.sigma * p) > 1e-9 * math.hypot(p, q)


def test_a_level_may_hold_tensors_and_targets_follow():
    t = f64([0.2, 0.9])
    for process in (VP(), VE(), Tabulated()):
        level = level_at(process, t)
        alpha_dot, sigma_dot = rates(process, t)
        torch.testing.assert_close(TARGETS["velocity"](process, level), (alpha_dot, sigma_dot))
        torch.testing.assert_close(V()(process, level), (-level.sigma, level.alpha))
        torch.testing.assert_close(Score()(process, level)[1], -1 / level.sigma)
        assert X0()(process, level) == (1.0, 0.0)
        assert Eps()(process, level) == (0.0, 1.0)
    assert isinstance(TARGETS["velocity"](VP(), Level(0.2, 0.1, 0.1))[0], float)


# --- clipped ---------------------------------------------------------------------------------


def test_clipping_keeps_the_image_in_range_and_the_plane_exact():
    """x̂0 is clamped, ε̂ follows from x = α x̂0 + σ ε̂, the spread is kept; inside nothing changes."""
    level = level_at(VP(), 0.4)
    x = f64([[3.0, -0.1, -2.0]])
    spread = torch.full_like(x, 0.3)

    def denoise(x, level):
        return Prediction.from_x0(x, level, x / 2)._replace(spread=spread)

    kept = clipped(denoise, -1.0, 0.5)(x, level)
    torch.testing.assert_close(kept.x0, f64([[0.5, -0.05, -1.0]]))
    torch.testing.assert_close(level.alpha * kept.x0 + level.sigma * kept.eps, x)
    assert kept.spread is spread
    free = denoise(x, level)
    torch.testing.assert_close(clipped(denoise, -9.0, 9.0)(x, level).eps, free.eps)
