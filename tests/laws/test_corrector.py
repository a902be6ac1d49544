"""Predictor-corrector: any step to the next level, and Langevin updates that mend what it did."""

import pytest
import torch

from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.langevin import (
    Annealed,
    Corrected,
    Fixed,
    Keep,
    Langevin,
    SignalToNoise,
)
from ornstein.diffusion.levels import CLEAN
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.process import VP
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral, Heun, Jump
from ornstein.diffusion.stochastic import EulerMaruyama, StochasticHeun
from ornstein.diffusion.walk import sample
from ornstein.noise import Noise
from tests.helpers import (
    PROCESSES,
    TARGETS,
    Truth,
    affine,
    gaussian_data,
    grid,
    marginal,
    two_dim_mixture,
)

PREDICTORS = {
    "ddim": Jump(),
    "ddpm": Jump(eta=1),
    "ancestral": Ancestral(spread=0.6),
    "heun": Heun(),
    "churn": Heun(churn=4.0),
    "multistep": Multistep(),
    "euler_maruyama": EulerMaruyama(),
    "stochastic_heun": StochasticHeun(),
    "keep": Keep(),
    "keep_denoised": Keep(denoise=True),
}
SIZES = {"fixed": Fixed(step=1e-3), "annealed": Annealed(), "snr": SignalToNoise()}
predictors = pytest.mark.parametrize("name", PREDICTORS)
sizes = pytest.mark.parametrize("size", SIZES)


def corrected(name, size="snr", updates=2):
    corrector = Langevin(updates=updates, size=SIZES[size])
    return Corrected(corrector=corrector, predictor=PREDICTORS[name])


def walked(step, denoise, process="vp", n=6, ids=range(4), dim=3, spacing="karras", dtype=None):
    """The states of a walk from noise of the first level's size."""
    levels = grid(spacing, process, n)
    scale = (levels[0].alpha ** 2 + levels[0].sigma ** 2) ** 0.5
    x = scale * Noise.of(0, "start", ids).normal(0, (dim,), dtype or torch.float64)
    states = sample(denoise, PROCESSES[process], levels, step, x, Noise.of(0, "steps", ids))
    return levels, list(states)


# --- what it is made of -----------------------------------------------------------------------


@sizes
@predictors
def test_it_is_the_updates_and_then_the_step(name, size):
    """Move by move, with the predictor's memory and the noise of each its own: the corrector has a
    child of the noise, the predictor draws what it would draw by itself."""
    oracle, process, levels = gaussian_data(), PROCESSES["vp"], grid("karras", "vp", 5)
    x, noise = Noise.of(0, "start", 3).normal(0, (3,), torch.float64), Noise.of(1, "steps", 3)
    step = corrected(name, size)
    correct = step.corrector.along(process, levels)
    predict = step.predictor.along(process, levels)
    child, memory, y = noise.child("corrector"), None, x
    for i, state in enumerate(sample(oracle, process, levels, step, x, noise)):
        y, _ = correct(oracle, i, y, child, None)
        y, memory = predict(oracle, i, y, noise, memory)
        assert torch.equal(state.x, y)


@predictors
def test_without_updates_it_is_the_predictor(name):
    _, ours = walked(corrected(name, updates=0), two_dim_mixture(), dim=2)
    _, theirs = walked(PREDICTORS[name], two_dim_mixture(), dim=2)
    assert all(torch.equal(a.x, b.x) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("n", "updates"), [(2, 1), (3, 0), (7, 3)])
@predictors
def test_evaluations_are_as_announced_and_never_at_clean_data(name, n, updates):
    oracle, asked = gaussian_data(), []

    def denoise(x, level):
        asked.append(level)
        return oracle(x, level)

    step = corrected(name, updates=updates)
    levels, states = walked(step, denoise, n=n)
    assert len(asked) == step.evaluations(n)
    assert CLEAN not in asked
    assert [state.level for state in states] == list(levels[1:])
    assert Sampling(step=step, steps=n).evaluations == len(asked)


@pytest.mark.parametrize("process", ["vp", "ve", "sub_vp", "edm", "linear"])
@predictors
def test_every_predictor_goes_with_it_under_every_process(name, process):
    """From start to end on a grid of σ/α, and the end is near the data: within five standard
    deviations of their mean. With `Keep` it takes steps that are made for it."""
    size = "annealed" if name.startswith("keep") else "snr"
    _, states = walked(corrected(name, size), gaussian_data(), process, n=20, spacing="log_snr")
    mean, covariance = marginal(CLEAN)
    assert ((states[-1].x - mean) / covariance.diagonal().sqrt()).abs().max() < 5


@pytest.mark.parametrize("process", ["cosine", "straight", "rescaled"])
@pytest.mark.parametrize(
    "name", sorted({*PREDICTORS} - {"keep", "keep_denoised", "euler_maruyama"})
)
def test_it_starts_from_pure_noise_where_its_predictor_does(name, process):
    for size in ("fixed", "snr"):
        _, states = walked(corrected(name, size), gaussian_data(), process, spacing="trailing")
        assert (states[-1].x - marginal(CLEAN)[0]).abs().max() < 10


@predictors
def test_changing_the_target_changes_no_sample(name):
    oracle, process, levels = gaussian_data(), VP(), grid("karras", "vp", 4)
    _, exact = walked(corrected(name), oracle, n=4)
    more = PREDICTORS["churn"]._starts(process, levels) if name == "churn" else ()
    for target in TARGETS.values():
        network = Truth(oracle, target, process, [*levels[:-1], *more], sigma_data=0.8)
        denoise = bind(Denoiser(network, process, target, sigma_data=0.8))
        _, ours = walked(corrected(name), denoise, n=4)
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a.x, b.x, rtol=1e-7, atol=1e-7)


# --- randomness -------------------------------------------------------------------------------


@predictors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_does_not_depend_on_its_neighbours(name, dtype):
    """With steps at a set signal-to-noise ratio, which depend on the sample: on nothing else."""

    def final(ids):
        _, states = walked(corrected(name), two_dim_mixture(), ids=ids, dim=2, dtype=dtype)
        assert states[-1].x.dtype == dtype
        return states[-1].x

    batch = final(range(32, 40))
    assert torch.equal(final([1, 7, 90, 3, 5, 37, 2**40, 4])[5], batch[5])
    tight = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(final([37])[0], batch[5], **tight)


@pytest.mark.parametrize("name", ["ddpm", "churn", "euler_maruyama", "stochastic_heun"])
def test_no_number_is_drawn_twice(name):
    """20,000 walks have the moments of walks whose corrector draws from another seed: a z that is
    in both, or in two updates, would add up to another variance. Five standard errors."""
    n, oracle, process = 20_000, gaussian_data(), PROCESSES["vp"]
    step = Corrected(
        corrector=Langevin(updates=2, size=Fixed(step=0.02)), predictor=PREDICTORS[name]
    )
    levels = grid("log_snr", "vp", 5)[:-1]
    x = Noise.of(0, "start", n).normal(0, (3,), torch.float64)
    *_, last = sample(oracle, process, levels, step, x, Noise.of(0, "steps", n))
    correct = step.corrector.along(process, levels)
    predict = step.predictor.along(process, levels)
    apart, memory = Noise.of(17, "apart", n), None
    for i in range(len(levels) - 1):
        x, _ = correct(oracle, i, x, apart, None)
        x, memory = predict(oracle, i, x, Noise.of(0, "steps", n), memory)
    covariance = torch.cov(x.T)
    variances = covariance.diagonal()
    assert ((last.x.mean(0) - x.mean(0)).abs() < 5 * (2 * variances / n).sqrt()).all()
    error = (2 * (covariance**2 + variances.outer(variances)) / n).sqrt()
    assert ((torch.cov(last.x.T) - covariance).abs() < 5 * error).all()


# --- what it is good for ----------------------------------------------------------------------


def moments(step, levels, process):
    """Mean and covariance of Gaussian data at every level, exactly: every draw is another z."""
    oracle, once = gaussian_data(), step.corrector.but(updates=1)
    mean, covariance = marginal(levels[0])
    found = [(mean, covariance)]
    for i in range(len(levels) - 1):
        for part in (*[once] * step.corrector.updates, step.predictor):
            a, b, s = affine(part, oracle, levels, i, 3, process)
            mean, covariance = a @ mean + b, a @ covariance @ a.T + s @ s.T
        found.append((mean, covariance))
    return found


def distances(found, levels):
    """KL(found ‖ true) in nats at each level that holds noise."""
    divergences = []
    for (mean, covariance), level in zip(found, levels, strict=False):
        if level.sigma > 0:
            true_mean, true = marginal(level)
            gap = torch.linalg.solve(true, covariance)
            shift = mean - true_mean
            size = (
                torch.trace(gap) - 3 - torch.logdet(gap) + shift @ torch.linalg.solve(true, shift)
            )
            divergences.append(0.5 * size.item())
    return divergences


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("process", ["vp", "ve", "sub_vp"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_on_coarse_grids_it_keeps_the_marginals_better_than_its_predictor(name, process, n):
    """Gaussian data, exact moments: at every noisy level but the first, where there is nothing to
    mend, KL to the true marginal is lower with three annealed updates than without."""
    levels = grid("log_snr", process, n)
    size = Annealed(eps=0.2 * (levels[-2].sigma / levels[-2].alpha) ** 2)
    alone, mended = (
        distances(
            moments(
                Corrected(
                    corrector=Langevin(updates=updates, size=size), predictor=PREDICTORS[name]
                ),
                levels,
                PROCESSES[process],
            ),
            levels,
        )
        for updates in (0, 3)
    )
    assert sum(mended) < 0.9 * sum(alone)
    assert mended[-1] < 0.9 * alone[-1]


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("process", ["vp", "ve"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "stochastic_heun"])
def test_a_step_at_the_published_ratio_mends_the_last_level(name, process, n):
    """r = 0.16, one update a level, moments of 4000 samples: KL to the true marginal falls by a
    third and more."""
    ends = []
    for updates in (0, 1):
        step = corrected(name, updates=updates)
        levels = grid("log_snr", process, n)
        mean, covariance = marginal(levels[0])
        z = Noise.of(0, "start", 4000).normal(0, (3,), torch.float64)
        x = mean + z @ torch.linalg.cholesky(covariance).T
        *_, last, _ = sample(
            gaussian_data(), PROCESSES[process], levels, step, x, Noise.of(0, "steps", 4000)
        )
        ends += distances([(last.x.mean(0), torch.cov(last.x.T))], levels[-2:])
    assert ends[1] < 0.7 * ends[0]


def test_its_own_error_does_not_fall_with_the_grid():
    """Heun on ever finer grids gains two orders; with updates of a fixed share of σ² it ends at
    a/2v too much variance for each v, whatever the grid."""
    alone, mended = [], []
    for n in (10, 20, 40):
        levels = grid("log_snr", "vp", n)
        share = 0.1
        size = Annealed(eps=share * (levels[-2].sigma / levels[-2].alpha) ** 2)
        for updates, ends in ((0, alone), (4, mended)):
            step = Corrected(corrector=Langevin(updates=updates, size=size), predictor=Heun())
            ends.append(max(distances(moments(step, levels, VP()), levels)))
    assert alone[2] < alone[0] / 50
    assert mended[2] > mended[0] / 5
    assert mended[2] > 5 * alone[2]
