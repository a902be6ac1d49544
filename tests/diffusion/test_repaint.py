"""Inpainting by replacement: what is known is exact, and what is not comes nearer to the posterior
as steps are made again."""

import pytest
import torch

from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.langevin import Corrected
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.process import VP
from ornstein.diffusion.repaint import RePaint
from ornstein.diffusion.steps import Ancestral, Heun, Jump
from ornstein.diffusion.stochastic import StochasticHeun
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import COVARIANCE, MEAN, PROCESSES, f64, gaussian_data, grid

MASK = f64([1, 0, 1])
Y = f64([[1.2, 0.0, -0.6]])
STEPS = {
    "jump": Jump(),
    "ancestral": Ancestral(),
    "heun": Heun(),
    "multistep": Multistep(),
    "stochastic_heun": StochasticHeun(),
    "corrected": Corrected(),
}


def walked(step, process="vp", n=5, count=4, y=Y, dtype=torch.float64, denoise=None):
    levels, noise = grid("log_snr", process, n), Noise.of(0, "walk", count)
    x = levels[0].sigma * noise.child("start").normal(0, (3,), dtype)
    oracle = denoise or gaussian_data()
    return list(sample(oracle, PROCESSES[process], levels, step, x, noise))


def conditioned():
    """Mean and variance of the middle coordinate given the others."""
    known = [0, 2]
    own = COVARIANCE[known][:, known]
    gain = torch.linalg.solve(own, COVARIANCE[known, 1])
    mean = MEAN[1] + gain @ (Y[0, known] - MEAN[known])
    return mean.item(), (COVARIANCE[1, 1] - gain @ COVARIANCE[known, 1]).item()


@pytest.mark.parametrize("process", ["vp", "ve", "straight"])
@pytest.mark.parametrize("name", STEPS)
def test_known_pixels_are_y_in_the_end_and_noised_before(name, process):
    states = walked(RePaint(STEPS[name], MASK, Y, 2), process)
    assert torch.equal(states[-1].x[:, [0, 2]], Y[:, [0, 2]].expand(4, 2))
    assert not torch.equal(states[-1].x[:, 1], Y[:, 1].expand(4))
    for state in states[:-1]:
        z = (state.x - state.level.alpha * Y)[:, [0, 2]] / state.level.sigma
        assert 0.05 < z.abs().mean() < 3


def test_known_pixels_have_the_law_of_their_level():
    n = 4000
    for state in walked(RePaint(Jump(eta=1), MASK, Y, 2), n=4, count=n)[:-1]:
        z = ((state.x - state.level.alpha * Y) / state.level.sigma)[:, [0, 2]]
        assert z.mean(0).abs().max() < 5 / n**0.5
        assert (torch.cov(z.T) - torch.eye(2)).abs().max() < 8 / n**0.5


@pytest.mark.parametrize("step", [Jump(eta=1), Heun()], ids=["sde", "flow"])
def test_more_visits_come_nearer_to_the_posterior(step, capsys):
    """A Gaussian: the mean and the variance of what was not known, against the conditional's."""
    n, errors = 4000, []
    mean, variance = conditioned()
    for visits in (1, 3, 10):
        x = walked(RePaint(step, MASK, Y, visits), n=25, count=n)[-1].x[:, 1]
        errors.append(abs(x.mean().item() - mean) + abs(x.var().item() - variance))
    with capsys.disabled():
        shown = " ".join(f"{error:.4f}" for error in errors)
        print(f"\nRePaint, {step.kind}: 1, 3 and 10 visits are off by {shown}")
    assert errors[0] > 1.3 * errors[1]
    assert errors[1] > 1.2 * errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize("name", STEPS)
def test_evaluations_are_as_announced(name):
    oracle, asked = gaussian_data(), []

    def denoise(x, level):
        asked.append(level)
        return oracle(x, level)

    for visits in (1, 3):
        asked.clear()
        step = RePaint(STEPS[name], MASK, Y, visits)
        walked(step, n=4, denoise=denoise)
        assert len(asked) == step.evaluations(4)


@pytest.mark.parametrize("name", STEPS)
def test_a_path_does_not_depend_on_its_neighbours_or_on_what_is_masked(name):
    y = f64([[1.2, 0, -0.6], [0.1, 0, 0.3], [9, 0, 9], [0, 0, 0]])
    together = walked(RePaint(STEPS[name], MASK, y, 2))[-1].x
    levels = grid("log_snr", "vp", 5)
    noise = Noise.of(0, "walk", [2])
    x = levels[0].sigma * noise.child("start").normal(0, (3,), torch.float64)
    dirty = y[2:3].clone()
    dirty[0, 1] = torch.nan
    step = RePaint(STEPS[name], MASK, dirty, 2)
    *_, alone = sample(gaussian_data(), VP(), levels, step, x, noise)
    torch.testing.assert_close(alone.x, together[2:3], rtol=1e-10, atol=1e-12)


def test_with_everything_known_it_is_y_and_single_precision_stays():
    assert torch.equal(walked(RePaint(Jump(), f64([1, 1, 1]), Y, 3))[-1].x, Y.expand(4, 3))
    single = walked(RePaint(Jump(eta=1), MASK, Y.float(), 2), dtype=torch.float32)[-1].x
    assert single.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    levels = LogSNR()(VP(), 3)
    with pytest.raises(ConfigError, match="resamples must be 1 or more, got 0"):
        RePaint(Jump(), MASK, Y, 0).along(VP(), levels)
    with pytest.raises(ConfigError, match="not finite at pixels that the mask says are known"):
        RePaint(Jump(), MASK, Y * torch.nan).along(VP(), levels)
    with pytest.raises(ConfigError, match=r"y has the shape \[2, 3\], and the samples \[4, 3\]"):
        walked(RePaint(Jump(), MASK, Y.expand(2, -1)))
