"""The probability flow against flows that are known, and the solver against equations that are.

For Gaussian data the flow is affine: along each axis of the covariance a sample keeps its place in
units of the marginal's standard deviation.
"""

import math

import pytest
import torch

from ornstein.diffusion import runge_kutta
from ornstein.diffusion.flow import (
    Adaptive,
    decode,
    encode,
    follow,
    norm_of,
    slerp,
    smallest_level,
    start_scale,
    time_of,
    velocity,
)
from ornstein.diffusion.grid import LogSNR, Trailing
from ornstein.diffusion.levels import CLEAN, level_at, level_of_log_snr
from ornstein.diffusion.prediction import clipped, resolve
from ornstein.diffusion.process import VE, VP, Cosine, Straight
from ornstein.diffusion.runge_kutta import rms, solve
from ornstein.diffusion.steps import Heun
from ornstein.diffusion.walk import sample
from ornstein.errors import NumericsError
from ornstein.noise import Noise
from tests.helpers import (
    COVARIANCE,
    MEAN,
    PAIRS,
    PROCESSES,
    TARGETS,
    ZERO_TERMINAL_SNR,
    NoNoise,
    f64,
    gaussian_data,
    slope,
    two_dim_mixture,
)

VARIANCES, AXES = torch.linalg.eigh(COVARIANCE)
TOLERANCES = (1e-3, 1e-5, 1e-7)


def normal(count, shape, purpose="z"):
    return Noise.of(0, purpose, count).normal(0, shape, torch.float64)


def flown(x, t, s):
    """The exact flow of the Gaussian data from level t to level s."""
    spread = [(level.alpha**2 * VARIANCES + level.sigma**2).sqrt() for level in (t, s)]
    along = (x - t.alpha * MEAN) @ AXES
    return (along / spread[0] * spread[1]) @ AXES.T + s.alpha * MEAN


def counted(denoise):
    """The denoiser, and how many samples it has been asked of."""
    asked = []

    def counting(x, level):
        asked.append(len(x))
        return denoise(x, level)

    return counting, asked


# --- the equation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_slope_is_that_of_dx(name):
    """u = x/N along dx = x̂0 dα + ε̂ dσ, by a central difference over a hundred-thousandth of τ."""
    process, data = PROCESSES[name], two_dim_mixture()
    first, last = level_at(process, 1.0), smallest_level(process)
    for share in (0.02, 0.6):
        time = f64([time_of(first) + share * (time_of(last) - time_of(first))])

        def at(tau):
            level = level_of_log_snr(process, 2 * torch.log(torch.expm1(-tau)))
            return level, torch.hypot(level.alpha, level.sigma)

        level, norm = at(time)
        u = f64([[0.4, -0.9]])
        h = 1e-5 * abs(time)
        (before, n0), (after, n1) = at(time - h), at(time + h)
        here = data(norm * u, level)
        dx = here.x0 * (after.alpha - before.alpha) + here.eps * (after.sigma - before.sigma)
        expected = dx / (2 * h) / norm - u * (n1 - n0) / (2 * h) / norm
        ours = velocity(data, process, u, time, torch.float64)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("target", "name"), PAIRS)
def test_the_slope_is_the_same_for_every_target(target, name):
    """What a network with another target says leads to the same flow, up to pure noise itself."""
    process, data, goal = PROCESSES[name], two_dim_mixture(), TARGETS[target]
    ends = (time_of(level_at(process, 1.0)), time_of(smallest_level(process)))
    times = torch.linspace(*ends, 9, dtype=torch.float64)
    u = normal(9, (2,))

    def through_target(x, level):
        said = data(x, level).target(goal, process)
        return resolve(x, level, said, *goal(process, level))

    ours = velocity(through_target, process, u, times, torch.float64)
    assert torch.isfinite(ours).all()
    expected = velocity(data, process, u, times, torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_all_processes_are_one_circle():
    """At equal τ, which is equal σ/α, u moves alike under every process."""
    data, times, u = two_dim_mixture(), f64([-0.05, -0.7, -3.0, -4.0]), normal(4, (2,))
    found = [velocity(data, process, u, times, torch.float64) for process in PROCESSES.values()]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-7, atol=1e-9)


# --- the solver -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(0.0, 3.0), (3.0, 0.0), (-1.0, 0.5)])
def test_known_equations_are_solved_forth_and_back(ends):
    """y' = λ (y − cos τ) − sin τ, with y = cos τ + C e^{λτ}: an error in proportion to the
    tolerance."""
    start, end = ends
    rate = f64([-2.0, -0.5, 0.3, 1.0])

    def derivative(y, time, rows):
        tau = time.unsqueeze(1)
        return rate[rows].unsqueeze(1) * (y - torch.cos(tau)) - torch.sin(tau)

    def truth(tau):
        return (math.cos(tau) + torch.exp(rate * tau)).unsqueeze(1)

    errors = [
        (solve(derivative, truth(start), start, end, tolerance, rms).y - truth(end)).abs().max()
        for tolerance in TOLERANCES
    ]
    assert errors[-1] < 1e-5
    assert slope([1 / t for t in TOLERANCES], errors) > 0.7


def test_the_method_is_of_order_five():
    """y' = cos(τ) y with a step that is never refused nor changed: an error of h⁵."""
    errors = []
    counts = (4, 8, 16, 32)
    for count in counts:
        y, t, h = f64([[1.0]]), f64([0.0]), f64([2.0 / count])

        def derivative(y, time, rows):
            return torch.cos(time).unsqueeze(1) * y

        for _ in range(count):  # one step each: an immense tolerance, the end one step away
            y = _one_step(derivative, y, t.item(), (t + h).item())
            t = t + h
        errors.append(abs(y.item() - math.exp(math.sin(2.0))))
    assert slope(counts, errors) == pytest.approx(5, abs=0.4)


def _one_step(derivative, y, start, end):
    before = runge_kutta.FIRST
    runge_kutta.FIRST = 10.0
    try:
        found = solve(derivative, y, start, end, 1e9, rms)
    finally:
        runge_kutta.FIRST = before
    assert found.evaluations.item() == 7
    return found.y


def test_a_sample_does_not_depend_on_its_neighbours():
    """Alone or beside one that is a hundred times as hard: the same result, the same cost."""
    stiff = f64([0.1, 1.0, 30.0, 300.0])

    def derivative(y, time, rows):
        return -stiff[rows].unsqueeze(1) * (y - torch.sin(5 * time).unsqueeze(1))

    y = normal(4, (3,))
    together = solve(derivative, y, 0.0, 2.0, 1e-5, rms)
    assert together.evaluations[3] > 5 * together.evaluations[0]
    for b in range(4):

        def alike(y, time, rows, b=b):
            return derivative(y, time, rows + b)

        alone = solve(alike, y[b : b + 1], 0.0, 2.0, 1e-5, rms)
        assert torch.equal(alone.y[0], together.y[b])
        assert alone.evaluations[0] == together.evaluations[b]


def test_who_arrives_leaves_the_batch():
    data, asked = counted(two_dim_mixture())
    x = torch.cat((f64([[40.0, 40.0]] * 3), f64([[0.3, 0.2]])))
    follow(data, VP(), x, level_at(VP(), 1.0), smallest_level(VP()), 1e-5)
    assert asked[0] == 4
    assert asked[-1] < 4
    assert asked == sorted(asked, reverse=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_flow_that_cannot_be_followed_is_refused_in_a_sentence(bad, monkeypatch):
    monkeypatch.setattr(runge_kutta, "MOST", 500)

    def derivative(y, time, rows):
        return torch.where(time.unsqueeze(1) > 0.5, bad, y)

    def of_the_second(y, time, rows):
        return torch.where(rows.unsqueeze(1) > 0, derivative(y, time, rows), y)

    with pytest.raises(NumericsError, match="1 of 2 samples") as caught:
        solve(of_the_second, f64([[1.0], [1.0]]), 0.0, 1.0, 1e-3, rms)
    assert "\n" not in str(caught.value)


# --- known flows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_gaussian_data_flow_exactly(name):
    """From t = 1, pure noise where α = 0 there, to the smallest level and back: the error is in
    proportion to the tolerance, and needs no special case at either end."""
    process = PROCESSES[name]
    first, last = level_at(process, 1.0), smallest_level(process)
    assert (first.alpha == 0) == (name in ZERO_TERMINAL_SNR)
    x = start_scale(first, 1.0) * normal(8, (3,))
    # Toward noise what is narrow becomes wide, and its error with it.
    for t, s, bound in ((first, last, 5e-3), (last, first, 5e-2)):
        given = x if t == first else flown(x, first, last)
        errors = []
        for tolerance in TOLERANCES:
            y = follow(gaussian_data(), process, given, t, s, tolerance)
            errors.append(rms((y - flown(given, t, s)) / norm_of(s)).max().item())
        assert errors[0] < bound
        assert errors[-1] < 1e-3 * bound
        assert slope([1 / t for t in TOLERANCES], errors) > 0.8


def test_a_mixture_flows_as_small_steps_of_another_method_say():
    """Runge and Kutta's own method in y = x/α and log σ/α, where dy = (y − x̂0) d log(σ/α)."""
    process, data = VP(), two_dim_mixture()
    t, s = level_at(process, 1.0), smallest_level(process)
    ends = [math.log(level.sigma / level.alpha) for level in (t, s)]
    x = t.sigma * normal(6, (2,))
    y, count = x / t.alpha, 500
    h = (ends[1] - ends[0]) / count

    def derivative(y, l):  # noqa: E741
        level = level_of_log_snr(process, -2 * l)
        return y - data(level.alpha * y, level).x0

    for i in range(count):
        l = ends[0] + i * h  # noqa: E741
        k1 = derivative(y, l)
        k2 = derivative(y + 0.5 * h * k1, l + 0.5 * h)
        k3 = derivative(y + 0.5 * h * k2, l + 0.5 * h)
        k4 = derivative(y + h * k3, l + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    ours = follow(data, process, x, t, s, 1e-8)
    torch.testing.assert_close(ours, s.alpha * y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_precision_is_that_of_x(precision):
    seen = []

    def denoise(x, level):
        seen.append(x.dtype)
        return gaussian_data()(x, level)

    t, s = level_at(VP(), 1.0), smallest_level(VP())
    x = normal(4, (3,)).to(precision)
    y = follow(denoise, VP(), x, t, s, 1e-4)
    assert y.dtype == precision
    assert set(seen) == {precision}
    expected = flown(x.double(), t, s)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-3)


# --- the step -------------------------------------------------------------------------------------


def last_of(step, levels, x, denoise, process):
    *_, state = sample(denoise, process, levels, step, x, NoNoise())
    assert state.level == CLEAN
    return state.x


@pytest.mark.parametrize("name", ["vp", "edm", "straight", "rescaled"])
def test_the_step_is_the_limit_of_heun_and_needs_no_grid(name):
    process, data = PROCESSES[name], two_dim_mixture()
    ends = LogSNR(sigma_max=80.0) if name in ZERO_TERMINAL_SNR else LogSNR()
    levels = {n: ends(process, n) for n in (2, 7, 400)}
    x = levels[2][0].sigma * normal(5, (2,))
    limit = last_of(Heun(), levels[400], x, data, process)
    tight, loose = Adaptive(tolerance=1e-7), Adaptive()
    for n in (2, 7):
        ours = last_of(tight, levels[n], x, data, process)
        torch.testing.assert_close(ours, limit, rtol=0, atol=2e-3)
    both = [last_of(tight, levels[n], x, data, process) for n in (2, 7)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-5)
    rough = last_of(loose, levels[2], x, data, process)
    torch.testing.assert_close(rough, both[0], rtol=0, atol=2e-2)
    assert tight.evaluations(2) is None


def test_the_step_starts_from_pure_noise():
    """On a grid in t under a process with α = 0 at t = 1."""
    process = Cosine()
    levels = Trailing()(process, 4)
    x = normal(3, (3,))
    ours = last_of(Adaptive(tolerance=1e-8), levels, x, gaussian_data(), process)
    at_last = flown(x, levels[0], levels[3])
    expected = gaussian_data()(at_last, levels[3]).x0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_clipped_and_pointlike_data_can_be_followed():
    x = normal(5, (3,))
    t, s = level_at(VP(), 1.0), smallest_level(VP())
    y = follow(clipped(gaussian_data(), -0.5, 0.5), VP(), x, t, s, 1e-4)
    assert torch.isfinite(y).all()
    inside = clipped(gaussian_data(), -50, 50)
    torch.testing.assert_close(
        follow(inside, VP(), x, t, s, 1e-7), flown(x, t, s), rtol=0, atol=1e-5
    )


# --- latents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "edm", "straight", "rescaled"])
def test_decoding_undoes_encoding(name):
    process, data = PROCESSES[name], two_dim_mixture()
    x = data.sample(Noise.of(3, "x", 10))
    errors = []
    for tolerance in (1e-3, 1e-6):
        z = encode(data, process, x, tolerance=tolerance)
        back = decode(data, process, z, tolerance=tolerance)
        errors.append(rms(back - x).max().item())
        torch.testing.assert_close(
            encode(data, process, back, tolerance=tolerance), z, rtol=0, atol=2e3 * tolerance
        )
    assert errors[0] < 0.2
    assert errors[1] < 5e-4


@pytest.mark.parametrize("name", ZERO_TERMINAL_SNR)
def test_latents_of_the_model_own_law_are_standard_normal(name):
    """Gaussian data at the smallest level, encoded: z = Λ^(−½) (y − m) along the axes, rotated
    back, which is N(0, I) and the same for all processes with one smallest σ/α."""
    process = PROCESSES[name]
    last = smallest_level(process)
    spread = (VARIANCES + (last.sigma / last.alpha) ** 2).sqrt()
    z = normal(20, (3,))
    y = (z @ AXES * spread) @ AXES.T + MEAN
    torch.testing.assert_close(
        encode(gaussian_data(), process, y, tolerance=1e-8), z, rtol=0, atol=1e-6
    )


def test_latents_do_not_depend_on_the_process():
    """Y. Song et al. 2021, §4.3: unique identifiability. VE with the ends of VP is VP."""
    vp = VP()
    low, high = (level.sigma / level.alpha for level in (smallest_level(vp), level_at(vp, 1.0)))
    ve = VE(sigma_min=low, sigma_max=high)
    data = two_dim_mixture()
    x = data.sample(Noise.of(4, "x", 6))
    found = [encode(data, process, x, sigma_data=1.0, tolerance=1e-9) for process in (vp, ve)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_slerp_follows_the_great_circle():
    a, b = normal(4, (2, 3), "a"), normal(4, (2, 3), "b")
    assert torch.equal(slerp(a, b, 0.0), a) or torch.allclose(slerp(a, b, 0.0), a, atol=1e-14)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=0, atol=1e-14)
    unit_a, unit_b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1) for x in (a, b))
    whole = torch.acos((unit_a * unit_b).flatten(1).sum(1))
    for share in (0.25, 0.5, 0.9):
        middle = slerp(unit_a, unit_b, share)
        torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(4).double())
        angle = torch.acos((unit_a * middle).flatten(1).sum(1))
        torch.testing.assert_close(angle, share * whole)
        torch.testing.assert_close(slerp(b, a, 1 - share), slerp(a, b, share))
    long = slerp(2 * unit_a, 4 * unit_b, 0.25).flatten(1).norm(dim=1)
    torch.testing.assert_close(long, torch.full((4,), 2.5).double())


def test_slerp_of_the_same_and_of_opposite_directions_is_finite():
    a = normal(2, (5,))
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    for b in (-a, torch.zeros_like(a)):
        assert torch.isfinite(slerp(a, b, 0.4)).all()
    near = a * (1 + 1e-9)
    torch.testing.assert_close(slerp(a, near, 0.5), a, rtol=1e-8, atol=0)


def test_a_straight_line_between_latents_would_be_too_short():
    """Why `slerp`: in many dimensions the middle of the line has 1/√2 of the length."""
    a, b = normal(8, (3000,), "a"), normal(8, (3000,), "b")
    lengths = [x.norm(dim=1) / math.sqrt(3000) for x in (slerp(a, b, 0.5), 0.5 * (a + b))]
    torch.testing.assert_close(lengths[0], torch.ones(8).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(lengths[1], torch.full((8,), 0.5**0.5).double(), rtol=0, atol=0.05)


def test_straight_paths_of_a_point_are_one_step():
    """Data at one point under straight paths: the flow is y ↦ a line, whatever the tolerance."""
    point = f64([[0.3, -0.7]])

    def denoise(x, level):
        from ornstein.diffusion.prediction import Prediction

        return Prediction.from_x0(x, level, point.expand_as(x))

    process = Straight()
    t, s = level_at(process, 1.0), smallest_level(process)
    x = normal(4, (2,))
    expected = s.alpha * point + s.sigma * x
    torch.testing.assert_close(follow(denoise, process, x, t, s, 1e-8), expected, rtol=0, atol=1e-6)
