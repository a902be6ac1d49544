"""Whole trajectories: all targets × processes × spacings, and an independent solver."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.grid import LogSNR, Trailing
from ornstein.diffusion.levels import CLEAN, level_at, level_of_log_snr
from ornstein.diffusion.multistep import Multistep, Suited
from ornstein.diffusion.oracle import Mixture
from ornstein.diffusion.process import VP, drift_diffusion
from ornstein.diffusion.steps import Ancestral, Heun, Jump, Renoise
from ornstein.diffusion.stochastic import StochasticHeun
from ornstein.diffusion.walk import sample
from ornstein.noise import Noise
from tests.helpers import (
    PAIRS,
    PROCESSES,
    SPACINGS,
    TARGETS,
    NoNoise,
    Truth,
    constant,
    f64,
    gaussian_data,
    grid,
    slope,
    two_dim_mixture,
)

STEPS = {
    "ddim": Jump(),
    "eta": Jump(eta=0.5),
    "ddpm": Jump(eta=1),
    "ancestral": Ancestral(spread=0.6),
    "renoise": Renoise(),
    "heun": Heun(),
    "suited": Suited(),
    "stochastic_heun": StochasticHeun(),
}
DETERMINISTIC = ("ddim", "heun", "suited")


def start_of(level, n=3, dim=3, seed=0, dtype=torch.float64):
    scale = math.hypot(level.alpha, level.sigma)
    return scale * Noise.of(seed, "start", n).normal(0, (dim,), dtype)


# --- all targets × processes × spacings ------------------------------------------------------


@given(
    st.sampled_from(PAIRS),
    st.sampled_from(SPACINGS),
    st.sampled_from(sorted(STEPS)),
    st.integers(1, 12),
)
def test_changing_the_target_changes_no_sample(pair, spacing, step, n):
    """A network that says the exact target gives the oracle's own trajectory, state by state."""
    target, process = TARGETS[pair[0]], PROCESSES[pair[1]]
    oracle, levels = gaussian_data(), grid(spacing, pair[1], n)
    network = Truth(oracle, target, process, levels[:-1], sigma_data=0.8)
    denoise = bind(Denoiser(network, process, target, sigma_data=0.8))
    x, noise = start_of(levels[0]), Noise.of(1, "steps", 3)
    ours = sample(denoise, process, levels, STEPS[step], x, noise)
    exact = sample(oracle, process, levels, STEPS[step], x, noise)
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        assert a.step == b.step == i + 1
        assert a.level == b.level == levels[i + 1]
        torch.testing.assert_close(a.x, b.x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("target", "process"), PAIRS)
def test_deterministic_samplers_are_exact_in_the_plane(target, process, spacing):
    """If the data are one point, every state is α_i x0 + σ_i ε with the same ε: no order, no
    spacing, no target and no process makes an error, and the end is x0."""
    x0, goal, path = f64([0.7, -1.3, 0.4]), TARGETS[target], PROCESSES[process]
    levels = grid(spacing, process, 5)
    denoise = bind(Denoiser(Truth(constant(x0), goal, path, levels[:-1]), path, goal))
    eps = Noise.of(0, "eps", 2).normal(0, (3,), torch.float64)
    start = levels[0].alpha * x0 + levels[0].sigma * eps
    for name in DETERMINISTIC:
        for state in sample(denoise, path, levels, STEPS[name], start, NoNoise()):
            exact = state.level.alpha * x0 + state.level.sigma * eps
            torch.testing.assert_close(state.x, exact, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.x, x0.expand(2, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("name", STEPS)
def test_evaluations_are_as_announced_and_never_at_clean_data(name, n):
    oracle, asked = gaussian_data(), []

    def denoise(x, level):
        asked.append(level)
        return oracle(x, level)

    levels = grid("karras", "vp", n)
    states = list(
        sample(
            denoise, PROCESSES["vp"], levels, STEPS[name], start_of(levels[0]), Noise.of(1, "s", 3)
        )
    )
    assert len(asked) == STEPS[name].evaluations(n)
    assert CLEAN not in asked
    assert [s.level for s in states] == list(levels[1:])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_steps_draw_no_noise(name):
    levels = grid("karras", "vp", 6)
    *_, last = sample(
        gaussian_data(), PROCESSES["vp"], levels, STEPS[name], start_of(levels[0]), NoNoise()
    )
    assert last.x.isfinite().all()


def test_stochastic_steps_do_draw_and_a_new_number_at_each_step():
    """Two equal neighbours on the path of point data would show one z used twice."""
    levels = grid("uniform", "vp", 6)
    for name in set(STEPS) - set(DETERMINISTIC):
        with pytest.raises(AssertionError, match="drew noise"):
            list(
                sample(
                    gaussian_data(),
                    PROCESSES["vp"],
                    levels,
                    STEPS[name],
                    start_of(levels[0]),
                    NoNoise(),
                )
            )
    states = sample(
        constant(f64([0.0])), PROCESSES["vp"], levels, Renoise(), f64([[1.0]]), Noise.of(0, "s", 1)
    )
    z = [s.x.item() / s.level.sigma for s in states if s.level.sigma > 0]
    assert len(set(z)) == 5


# --- the path of a sample is its own ---------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_does_not_depend_on_its_neighbours(name, dtype):
    """Sample 37 alone, in a batch, or beside others: bit-equal at equal batch size, and equal to
    rounding otherwise."""
    levels, oracle = grid("karras", "vp", 8), two_dim_mixture()

    def final(ids):
        x = Noise.of(0, "start", ids).normal(0, (2,), dtype)
        *_, last = sample(
            oracle, PROCESSES["vp"], levels, STEPS[name], x, Noise.of(0, "steps", ids)
        )
        assert last.x.dtype == dtype
        return last.x

    batch = final(range(32, 40))
    assert torch.equal(final([1, 7, 90, 3, 5, 37, 2**40, 4])[5], batch[5])
    tight = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(final([37])[0], batch[5], **tight)
    torch.testing.assert_close(torch.cat([final([i]) for i in range(32, 40)]), batch, **tight)


# --- an independent solver -------------------------------------------------------------------


def runge_kutta(oracle, process, x, first, last, n=60):
    """Notes eq 1.22, dx/dt = f x − ½ g² ∇log p_t(x), by classical Runge-Kutta of order 4.

    Nothing of the plane is used: f and g of the SDE, and the score by autograd. Integrated in
    λ = log-SNR, dt = dλ/λ̇, where the field is smooth."""

    def slope_at(x, lam):
        level = level_of_log_snr(process, lam)
        f, g = (c.item() for c in drift_diffusion(process, f64(level.t)))
        h = 1e-6
        later, sooner = level_at(process, level.t + h), level_at(process, level.t - h)
        rate = math.log(later.alpha * sooner.sigma / (later.sigma * sooner.alpha)) / h
        leaf = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(oracle.log_prob(leaf, level).sum(), leaf)
        return (f * x - 0.5 * g**2 * score) / rate

    lam, end = (2 * math.log(k.alpha / k.sigma) for k in (first, last))
    h = (end - lam) / n
    for _ in range(n):
        k1 = slope_at(x, lam)
        k2 = slope_at(x + h / 2 * k1, lam + h / 2)
        k3 = slope_at(x + h / 2 * k2, lam + h / 2)
        k4 = slope_at(x + h * k3, lam + h)
        x, lam = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), lam + h
    return x


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "straight"])
def test_orders_on_a_mixture(name):
    """Orders 1, 2 and 2 by regression, with the probability-flow ODE (eq 1.22) as the reference."""
    oracle, process = two_dim_mixture(), PROCESSES[name]
    spacing = LogSNR(sigma_min=0.1, sigma_max=10.0)
    ends = spacing(process, 2)
    x = ends[0].alpha * f64([[0.3, -0.4]]) + ends[0].sigma * f64([[-0.9, 0.3], [0.8, 1.1]])
    reference = runge_kutta(oracle, process, x, ends[0], ends[1])
    counts = (40, 80, 160)
    for step, order in ((Jump(), 1), (Heun(), 2), (Multistep(order=2, clock="log_snr"), 2)):
        errors = []
        for n in counts:
            *_, last = sample(oracle, process, spacing(process, n)[:-1], step, x, NoNoise())
            errors.append((last.x - reference).abs().max().item())
        assert slope(counts, errors) == pytest.approx(order, abs=0.1)
        assert errors[-1] < {1: 0.01, 2: 2e-4}[order]


@pytest.mark.parametrize("name", [k for k in STEPS if k not in ("ancestral", "heun")])
def test_on_equal_sigma_over_alpha_all_processes_give_one_path(name):
    """x/α follows the same path under every process: a step of the plane sees σ/α only.

    (Not so for β, which is a VP notion, nor for Heun, whose trapezoid is in α and σ.)"""
    oracle, paths = two_dim_mixture(), []
    for process in PROCESSES.values():
        levels = LogSNR(sigma_min=0.1, sigma_max=10)(process, 7)
        x = levels[0].alpha * f64([[3.0, -4.0], [-9.0, 7.0]])
        walk = sample(oracle, process, levels, STEPS[name], x, Noise.of(0, "steps", 2))
        paths.append(torch.stack([state.x / state.level.alpha for state in walk]))
    for path in paths[1:]:
        torch.testing.assert_close(path, paths[0], rtol=1e-7, atol=1e-7)


# --- DDIM's consistency ----------------------------------------------------------------------


def test_ddim_keeps_its_content_whatever_the_number_of_steps():
    """Same start, 10 to 200 steps: the same image, ever more exactly (notes after eq 43).

    64 starts in 16 dimensions, four clusters: relative RMS distance to 400 steps falls with the
    number of steps, the cluster is the same for 95 % at 20 steps. DDPM forgets its start."""
    dim, n = 16, 64
    means = 1.5 * Noise.of(5, "means", 4).normal(0, (dim,), torch.float64)
    oracle = Mixture(torch.ones(4), means, 0.15 * torch.eye(dim).expand(4, dim, dim))

    def content(steps, step, seed=0):
        levels = Trailing()(VP(), steps)
        x = Noise.of(0, "start", n).normal(0, (dim,), torch.float64)
        *_, last = sample(oracle, VP(), levels, step, x, Noise.of(seed, "steps", n))
        return last.x, torch.cdist(last.x, means).argmin(1)

    reference, cluster = content(400, Jump())
    size = reference.square().mean().sqrt()
    distance, same = {}, {}
    for steps in (10, 20, 50, 200):
        x, k = content(steps, Jump())
        distance[steps] = ((x - reference).square().mean().sqrt() / size).item()
        same[steps] = (k == cluster).double().mean().item()
    assert list(distance.values()) == sorted(distance.values(), reverse=True)
    assert distance[10] < 0.2
    assert distance[50] < 0.03
    assert distance[200] < 0.005
    assert min(same[20], same[50], same[200]) >= 0.95
    assert (
        content(50, Jump(eta=1), seed=1)[1] == content(50, Jump(eta=1))[1]
    ).double().mean() < 0.6


@pytest.mark.parametrize("step", [Jump(eta=0.8), Ancestral(spread=0.5), Renoise()])
@pytest.mark.parametrize("ahead", [0, 7 * 3 * 2, 10**6])
def test_noise_drawn_ahead_changes_nothing(step, ahead, monkeypatch):
    """However many steps are drawn at once, and for two walks at the same time."""
    oracle, levels = gaussian_data(), grid("trailing", "vp", 6)
    noises = [Noise.of(seed, "steps", 2) for seed in (0, 1)]
    start = start_of(levels[0], n=2)
    with monkeypatch.context() as patch:
        patch.setattr("ornstein.diffusion.walk.AHEAD", 0)
        alone = [
            [s.x for s in sample(oracle, PROCESSES["vp"], levels, step, start, noise)]
            for noise in noises
        ]
    monkeypatch.setattr("ornstein.diffusion.walk.AHEAD", ahead)
    walks = zip(
        *(sample(oracle, PROCESSES["vp"], levels, step, start, noise) for noise in noises),
        strict=True,
    )
    for i, pair in enumerate(walks):
        for expected, state in zip(alone, pair, strict=True):
            assert torch.equal(state.x, expected[i])
    move = step.along(PROCESSES["vp"], levels)  # one rule for two walks in turn, and a step again
    for i in (0, 1, 1, 3):
        for noise in noises:
            x, _ = move(oracle, i, start, noise, None)
            fresh, _ = step.along(PROCESSES["vp"], levels)(oracle, i, start, noise, None)
            assert torch.equal(x, fresh)
