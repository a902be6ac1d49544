"""A table of shares is every linear multistep method, and knows no process."""

import math

import pytest
import torch
from pydantic import ValidationError

from ornstein.diffusion.grid import Budget, Explicit, Karras, LogSNR, Trailing
from ornstein.diffusion.learned import Learned, rows_of
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Heun, Jump
from ornstein.diffusion.tuning import Solver
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import PROCESSES, NoNoise, constant, f64, two_dim_mixture

METHODS = {
    "ddim": Jump(),
    "default": Multistep(),
    "order 5": Multistep(order=5),
    "2M": Multistep(order=2, clock="log_snr"),
    "lms": Multistep(order=3, field="eps", clock="ratio"),
    "deis": Multistep(order=3, field="eps", clock="log_snr"),
    "unipc": Multistep(order=2, clock="log_snr", corrector=True),
    "corrected": Multistep(order=3, corrector=True),
}


def ends(denoise, process, levels, step, scale=1.0):
    first = levels[0]
    z = Noise.of(0, "start", 20).normal(0, (2,), torch.float64)
    x = math.hypot(first.sigma, scale * first.alpha) * z
    *_, state = sample(denoise, process, levels, step, x, NoNoise())
    return state.x


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("process", ["vp", "edm", "linear", "sub_vp"])
@pytest.mark.parametrize("name", METHODS)
def test_it_is_every_multistep_method(name, process, steps):
    rule, step = PROCESSES[process], METHODS[name]
    levels = Budget()(rule, steps)
    learned = Learned(rows=rows_of(step, rule, levels))
    expected = ends(two_dim_mixture(), rule, levels, step)
    assert (ends(two_dim_mixture(), rule, levels, learned) - expected).abs().max() < 1e-11


def test_it_starts_from_pure_noise_as_well():
    rule = PROCESSES["straight"]
    levels = Trailing()(rule, 6)
    assert levels[0].alpha == 0
    learned = Learned(rows=rows_of(Multistep(order=2), rule, levels))
    expected = ends(two_dim_mixture(), rule, levels, Multistep(order=2))
    assert (ends(two_dim_mixture(), rule, levels, learned) - expected).abs().max() < 1e-11


def test_ddim_has_one_share_and_2m_the_published_two():
    levels = LogSNR()(PROCESSES["edm"], 5)
    ddim = rows_of(Jump(), PROCESSES["edm"], levels)
    assert all(row == pytest.approx([1.0, *[0.0] * i]) for i, row in enumerate(ddim))
    # On equal steps h of log r, the mean of e^-u over a step weighs x̂0's slope: arXiv:2211.01095.
    (_, row, *_) = rows_of(Multistep(order=2, clock="log_snr"), PROCESSES["edm"], levels)
    h = math.log(levels[0].sigma / levels[1].sigma)
    slope = (h - 1 + math.exp(-h)) / (h * (1 - math.exp(-h)))
    assert row == pytest.approx([1 + slope, -slope])


def test_any_shares_are_exact_for_a_point():
    point = f64([0.3, -2.0])
    rows = ((1.0,), (3.5, -2.5), (0.1, 0.2, 0.7))
    for process in PROCESSES.values():
        levels = Explicit(times=(0.9, 0.5, 0.1))(process, 3)
        found = ends(constant(point), process, levels, Learned(rows=rows))
        assert (found - point).abs().max() < 1e-12


def test_the_same_table_walks_the_same_way_for_every_process():
    """In y = x/α: levels at the same σ/α and the same start there end at the same point."""
    solver = Solver((1.5, 0.1, -1.4, -2.5), ((1.0,), (1.6, -0.6), (1.5, -0.8, 0.3), (1.2, -0.2)))
    z = Noise.of(0, "start", 20).normal(0, (2,), torch.float64)
    found = []
    for name in ("vp", "edm", "straight", "cosine", "shifted_flow"):
        process = PROCESSES[name]
        levels = solver.grid(process)(process, 4)
        assert [math.log(k.sigma / k.alpha) for k in levels[:-1]] == pytest.approx(solver.logs)
        x = levels[0].alpha * 4 * z
        *_, state = sample(
            two_dim_mixture(), process, levels, Learned(rows=solver.rows), x, NoNoise()
        )
        found.append(state.x)
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-9


def test_it_is_chosen_stored_and_read_as_any_sampler():
    rows = ((1.0,), (1 / 3, 2 / 3), (0.1, 0.2, 0.7))
    how = Sampling(step=Learned(rows=rows), grid=Explicit(times=(0.9, 0.5, 0.1)), steps=3)
    assert Sampling.model_validate_json(how.model_dump_json()) == how
    assert how.evaluations == 3
    assert how.no_law is None  # it follows the flow, which has a likelihood


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "at least 1"),
        ([[]], "row 1 must have 1 to 1 shares"),
        ([[0.5, 0.5]], "row 1 must have 1 to 1 shares"),
        ([[1.0], [0.5, 0.6]], "must sum to 1, not to 1.1"),
        ([[math.nan]], "finite"),
    ],
)
def test_rows_that_are_no_solver_are_refused(rows, said):
    with pytest.raises(ValidationError, match=said):
        Learned(rows=rows)


def test_a_grid_of_another_length_is_refused():
    process = PROCESSES["edm"]
    with pytest.raises(ConfigError, match="has 2 steps and the grid 3; write steps=2"):
        Learned(rows=((1.0,), (1.0,))).along(process, Karras()(process, 3))


@pytest.mark.parametrize("step", [Heun(), Multistep(field="v")])
def test_a_method_of_two_evaluations_or_of_another_field_is_no_table(step):
    process = PROCESSES["edm"]
    with pytest.raises(ConfigError, match="one evaluation a step"):
        rows_of(step, process, Karras()(process, 3))
