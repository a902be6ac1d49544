"""SDEdit: for Gaussian data an edit is affine in the image, of known law at every strength."""

import itertools
import math

import pytest
import torch

from ornstein.diffusion.grid import LogSNR, Trailing
from ornstein.diffusion.levels import CLEAN, level_at
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.process import VE, VP
from ornstein.diffusion.sdedit import below, sdedit
from ornstein.diffusion.steps import Heun, Jump
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import (
    COVARIANCE,
    MEAN,
    PROCESSES,
    SPACINGS,
    f64,
    gaussian_data,
    grid,
    marginal,
    propagate,
    slope,
)

EYE = torch.eye(3, dtype=torch.float64)
X = f64([2.0, 1.0, -1.0])


def root(matrix):
    values, axes = torch.linalg.eigh(matrix)
    return axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T


def edited(level, last):
    """Mean and covariance of the edits of X by the flow from `level` to `last`: the map
    x ↦ α_s m + Σ_s^½ Σ_t^{−½} (x − α_t m) of N(α_t X, σ_t² I)."""
    gain = root(marginal(last)[1]) @ torch.linalg.inv(root(marginal(level)[1]))
    mean = last.alpha * MEAN + level.alpha * gain @ (X - MEAN)
    return mean, level.sigma**2 * gain @ gain.T


@pytest.mark.parametrize("process", ["vp", "ve", "straight"])
@pytest.mark.parametrize("strength", [0.25, 0.6, 0.9])
def test_mean_and_covariance_are_the_closed_form(process, strength):
    """By exact propagation along the sub-grid, to the order of Heun's rule."""
    counts, errors = (40, 80, 160), []
    for n in counts:
        levels = below(PROCESSES[process], grid("log_snr", process, n), strength)
        levels = tuple(k for k in levels if k.sigma > 0.02 * k.alpha)
        first = levels[0]
        assert first == level_at(PROCESSES[process], strength)
        moments = propagate(Heun(), gaussian_data(), levels, first.alpha * X, first.sigma**2 * EYE)
        gaps = zip(moments[-1], edited(first, levels[-1]), strict=True)
        errors.append(max((a - b).abs().max().item() for a, b in gaps))
    assert slope(counts, errors) > 1.5
    assert errors[-1] < 5e-3


def test_the_edits_themselves_have_that_law():
    n, strength = 6000, 0.5
    *_, last = sdedit(
        gaussian_data(),
        VP(),
        LogSNR()(VP(), 60),
        Multistep(),
        X.expand(n, 3),
        strength,
        Noise.of(0, "edit", n),
    )
    mean, covariance = edited(level_at(VP(), strength), CLEAN)
    variances = covariance.diagonal()
    assert ((last.x.mean(0) - mean).abs() < 5 * (variances / n).sqrt() + 0.01).all()
    error = ((covariance**2 + variances.outer(variances)) / n).sqrt()
    assert ((torch.cov(last.x.T) - covariance).abs() < 5 * error + 0.02).all()


def test_the_reverse_sde_forgets_more_than_the_flow():
    """With fresh noise on the way back, q(x0 | x_t): mean m + K (α X − α m), K = α C Σ_t⁻¹."""
    levels = below(VP(), LogSNR()(VP(), 400), 0.5)[:-1]
    first = levels[0]
    mean, _ = propagate(
        Jump(eta=1), gaussian_data(), levels, first.alpha * X, first.sigma**2 * EYE
    )[-1]
    gain = first.alpha * COVARIANCE @ torch.linalg.inv(marginal(first)[1])
    last = levels[-1]
    torch.testing.assert_close(
        mean, last.alpha * (MEAN + first.alpha * gain @ (X - MEAN)), rtol=0, atol=0.01
    )


@pytest.mark.parametrize("process", ["vp", "ve", "straight", "cosine"])
@pytest.mark.parametrize("step", [Jump(eta=1), Multistep(), Heun()], ids=lambda s: s.kind)
def test_little_strength_gives_the_image_back_and_full_strength_forgets_it(process, step):
    kind, noise = PROCESSES[process], Noise.of(0, "edit", 4)
    levels = grid("log_snr", process, 30)
    x = X.expand(4, 3)
    strength = 0.002
    *_, kept = sdedit(gaussian_data(), kind, levels, step, x, strength, noise)
    assert (kept.x - x).abs().max() < 0.1
    ends = []
    for image in (x, -x):
        *_, last = sdedit(gaussian_data(), kind, levels, step, image, 1.0, noise)
        ends.append(last.x)
    # What is left of an image is α/σ of the first level, at most: 1/50 for VE.
    assert (ends[0] - ends[1]).abs().max() < 2 * 1.5 * X.norm() / 50


def test_full_strength_is_the_law_of_the_data():
    mean, covariance = edited(level_at(VE(), 1.0), CLEAN)
    assert (mean - MEAN).abs().max() < 0.1
    assert (covariance - COVARIANCE).abs().max() < 0.01
    exact = edited(level_at(PROCESSES["straight"], 1.0), CLEAN)
    torch.testing.assert_close(exact[0], MEAN)
    torch.testing.assert_close(exact[1], COVARIANCE)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_sub_grid_starts_at_the_strength_and_has_no_crumbs(process, spacing):
    """t0 first, then levels of the grid, all of them but those just below t0."""
    kind, levels = PROCESSES[process], grid(spacing, process, 12)

    def log_ratio(level):
        return math.log(level.sigma / level.alpha)

    for strength in (0.97, 0.5, levels[4].t, levels[4].t + 1e-9, levels[4].t - 1e-9, 0.011):
        if not kind.smallest <= strength < levels[0].t:
            continue
        rest = below(kind, levels, strength)
        assert rest[0] == level_at(kind, strength)
        assert rest[1:] == levels[len(levels) - len(rest) + 1 :]
        assert rest[-1] == CLEAN
        if len(rest) > 3:
            strides = [log_ratio(a) - log_ratio(b) for a, b in itertools.pairwise(rest[:3])]
            assert strides[0] >= 0.5 * strides[1]
        left_out = [k for k in levels if rest[1].t < k.t < strength]
        assert all(k.t > 0.5 * strength for k in left_out) or len(left_out) <= 1
    assert below(kind, levels, levels[3].t)[1:] == levels[4:]
    assert below(kind, levels, 1.0) == levels  # also where the grid starts below t = 1


def test_multistep_bears_a_start_between_two_levels():
    """A second-order step from just above a level of the grid: as good as from just below."""
    levels, ends = LogSNR()(VP(), 20), []
    for nudge in (-1e-7, 1e-7):
        noise = Noise.of(0, "edit", 16)
        x = X.expand(16, 3)
        *_, last = sdedit(gaussian_data(), VP(), levels, Multistep(), x, levels[6].t + nudge, noise)
        ends.append(last.x)
    assert (ends[0] - ends[1]).abs().max() < 0.05


def test_a_path_does_not_depend_on_its_neighbours():
    x = f64([[1.0, 2, 3], [4, 5, 6]])
    levels = Trailing()(VP(), 5)

    def final(x, ids):
        noise = Noise.of(0, "edit", ids)
        *_, last = sdedit(gaussian_data(), VP(), levels, Jump(eta=1), x, 0.55, noise)
        return last.x

    torch.testing.assert_close(final(x, [0, 1])[1:], final(x[1:], [1]))


def test_what_cannot_work_is_refused():
    levels, noise = LogSNR()(VP(), 5), Noise.of(0, "edit", 1)
    for strength in (0.0, -0.1, 1.2, float("nan"), 5e-4):
        with pytest.raises(ConfigError, match="strength is a time from 0.001"):
            next(sdedit(gaussian_data(), VP(), levels, Jump(), X[None], strength, noise))
