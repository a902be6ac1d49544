"""Grids: n + 1 levels from noise to data, for every spacing, process and number of steps."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ornstein.diffusion.grid import Explicit, Karras, Leading, LogSNR, Trailing, Uniform
from ornstein.diffusion.levels import CLEAN, level_at
from ornstein.diffusion.process import VE, VP, Straight, Tabulated
from ornstein.errors import ConfigError
from tests.helpers import PROCESSES, SPACINGS, ZERO_TERMINAL_SNR, f64, grid


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_every_grid_falls_from_noise_to_clean(name, spacing, steps):
    process = PROCESSES[name]
    levels = grid(spacing, name, steps)
    assert isinstance(levels, tuple)
    assert len(levels) == steps + 1
    assert levels[-1] == CLEAN == (0.0, 1.0, 0.0)
    assert all(isinstance(c, float) for level in levels for c in level)
    assert all(s.t < t.t for t, s in itertools.pairwise(levels[:-1]))
    assert all(s.sigma * t.alpha < t.sigma * s.alpha for t, s in itertools.pairwise(levels))
    assert all(process.smallest - 1e-9 <= level.t <= 1 + 1e-9 for level in levels[:-1])
    for level in levels[:-1]:  # a level is the process at its time
        assert level == pytest.approx(level_at(process, level.t), rel=1e-9, abs=1e-12)
    if spacing in ("karras", "log_snr") and name in ZERO_TERMINAL_SNR:
        assert levels[0].sigma / levels[0].alpha == pytest.approx(80)
    else:
        assert levels[0].t == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_ten_thousand_steps(name):
    """Grids that end at the smallest level take any number; strides finer than it are refused."""
    for spacing in ("uniform", "karras", "log_snr"):
        levels = grid(spacing, name, 10_000)
        assert len(levels) == 10_001
        assert levels[-2].t == pytest.approx(PROCESSES[name].smallest, abs=1e-9)
    for spacing in ("trailing", "leading"):
        if PROCESSES[name].smallest == 0:
            assert len(grid(spacing, name, 10_000)) == 10_001
        else:
            with pytest.raises(ConfigError, match="fewer steps"):
                grid(spacing, name, 10_000)


# --- each by its definition ------------------------------------------------------------------


@given(st.integers(1, 300), st.sampled_from([100, 1000]))
def test_times_of_uniform_trailing_and_leading(n, rows):
    process = Tabulated(steps=rows)

    def times(spacing):
        return f64([level.t for level in spacing(process, n)[:-1]])

    i = torch.arange(n, dtype=torch.float64)
    uniform = 1 - i * (1 - 1 / rows) / max(n - 1, 1)
    torch.testing.assert_close(times(Uniform()), uniform)
    if n <= rows:
        torch.testing.assert_close(times(Trailing()), 1 - i / n)
        # arXiv:2010.02502 counts 1 + k T/n from the clean end; our first level is t = 1 instead.
        published = (1 + (n - 1 - i) * rows / n) / rows
        published[0] = 1.0
        torch.testing.assert_close(times(Leading()), published)


def test_strides_that_divide_a_table_visit_its_rows():
    """All rows for n = T = 1000; for n = 20 rows 1000, 950 ... 50 or 1000, 901 ... 1."""
    process = Tabulated()

    def rows(spacing, n):
        return [round(1000 * level.t, 6) for level in spacing(process, n)[:-1]]

    for spacing in (Uniform(), Trailing(), Leading()):
        assert rows(spacing, 1000) == list(range(1000, 0, -1))
    assert rows(Trailing(), 20) == list(range(1000, 0, -50))
    assert rows(Leading(), 20) == [1000, *range(901, 0, -50)]


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_karras_levels_are_the_published_formula(name, rho):
    """σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, in σ/α (EDM eq 5)."""
    low, high, n = 0.05, 40.0, 12
    levels = Karras(rho=rho, sigma_min=low, sigma_max=high)(PROCESSES[name], n)
    published = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    assert [k.sigma / k.alpha for k in levels[:-1]] == pytest.approx(published, rel=1e-8)


def test_edm_levels_at_its_own_constants():
    """The 18 steps of EDM: σ from 80 to 0.002, σ_1 = 57.586 (published sampler, ρ = 7)."""
    levels = Karras()(VE(sigma_min=0.002, sigma_max=80), 18)
    assert [levels[i].sigma for i in (0, 1, 17)] == pytest.approx([80, 57.586, 0.002], rel=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_log_snr_levels_are_a_geometric_sequence(name):
    levels = LogSNR(sigma_min=0.05, sigma_max=40)(PROCESSES[name], 9)
    ratios = [k.sigma / k.alpha for k in levels[:-1]]
    assert ratios == pytest.approx([40 * (0.05 / 40) ** (i / 8) for i in range(9)], rel=1e-8)


def test_explicit_times_are_taken_as_they_are():
    times = (1.0, 0.31, 0.3, 0.002)
    levels = Explicit(times=times)(VP(), 4)
    assert tuple(k.t for k in levels) == (*times, 0.0)
    assert levels[:-1] == tuple(level_at(VP(), t) for t in times)


# --- refused, with a sentence ----------------------------------------------------------------


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.2, 0.8), (1.2, 0.5), (0.5, 0.0), (0.5, -1.0)])
def test_explicit_times_that_do_not_fall_in_the_interval(times):
    with pytest.raises(ValidationError):
        Explicit(times=times)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Explicit(times=(1.0, 0.5))(VP(), 3), "steps=2"),
        (lambda: Karras()(Straight(), 5), "sigma_max"),
        (lambda: LogSNR()(Straight(), 5), "sigma_max"),
        (lambda: Karras(sigma_min=2, sigma_max=1)(VP(), 5), "below"),
        (lambda: LogSNR(sigma_min=200)(VP(), 5), "below"),
        (lambda: Karras(sigma_max=80)(VE(), 5), "0.01 to 50"),  # t = 1.06
        (lambda: Karras(sigma_min=0.002)(VE(), 5), "0.01 to 50"),  # t = -0.19
        (lambda: LogSNR(sigma_max=1e6)(VP(), 5), "within"),
        (lambda: Trailing()(Tabulated(steps=10), 30), "fewer steps"),
        (lambda: Leading()(Tabulated(steps=10), 30), "fewer steps"),
    ],
)
def test_grids_that_cannot_work_are_refused_in_one_sentence(make, says):
    with pytest.raises(ConfigError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spacing", [Uniform(), Trailing(), Leading(), LogSNR(), Karras()])
@pytest.mark.parametrize("steps", [0, -3])
def test_a_grid_has_at_least_one_step(spacing, steps):
    with pytest.raises(ConfigError, match="at least 1 step"):
        spacing(VP(), steps)
