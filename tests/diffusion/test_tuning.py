"""A solver fitted to a denoiser: exact where it can be, better elsewhere, else left alone."""

import math
from itertools import pairwise

import pytest
import torch

from ornstein.diffusion.oracle import Mixture, gaussian
from ornstein.diffusion.tuning import (
    DEFAULT,
    FITTED,
    Flow,
    Truth,
    _Fit,
    damped,
    distance,
    fitted,
    fixed,
    ratio_of,
    solver_of,
    truth,
    verdict,
)
from ornstein.noise import Noise
from tests.helpers import PROCESSES, constant, f64

SPREAD = 0.5
BEGINNING = "multistep of order 3"


def mixture(dim=8, components=5):
    """Narrow components of unequal weight, with mean 0 and standard deviation 0.5 over all."""
    noise = Noise.of(3, "mixture", components)
    means = noise.normal(0, (dim,), torch.float64)
    means = means / means.norm(dim=1, keepdim=True)
    weights = 0.5 + noise.uniform(1, (), torch.float64)
    weights = weights / weights.sum()
    means = means - weights @ means
    widths = 0.1 + 0.2 * noise.uniform(2, (dim,), torch.float64)
    size = ((weights @ (means**2 + widths**2)).mean()).sqrt()
    return Mixture(weights, means * SPREAD / size, torch.diag_embed((widths * SPREAD / size) ** 2))


def flow_of(denoise, process="edm", spread=SPREAD):
    return Flow(denoise, PROCESSES[process], spread=spread, scale=spread, batch=1000)


def starts(flow, dim, seen=128, unseen=256):
    """Starts for a fit, and others."""
    z = Noise.of(0, "tune", seen + unseen).normal(0, (dim,), torch.float64)
    true = truth(flow, z)
    return true.part(slice(seen)), true.part(slice(seen, None))


def tuned(flow, seen, evaluations, rounds=12, name=BEGINNING):
    *_, last = fitted(flow, seen, solver_of(fixed(flow, evaluations)[name], flow.process), rounds)
    return last


def judged(flow, unseen, solver, evaluations):
    ways = {**fixed(flow, evaluations), FITTED: solver.sampling(flow.process)}
    errors = {name: distance(flow.end(how, unseen.z), unseen.end) for name, how in ways.items()}
    return verdict(errors, unseen.error)


@pytest.mark.parametrize("process", ["edm", "vp", "straight"])
def test_it_beats_every_fixed_solver_on_starts_it_has_not_seen(process):
    flow = flow_of(mixture(), process)
    seen, unseen = starts(flow, 8)
    assert seen.error < 1e-3
    said = judged(flow, unseen, tuned(flow, seen, 6).solver, 6)
    assert said.clear
    assert said.chosen == FITTED
    assert said.ratio.high < 0.6
    assert said.errors[FITTED].high < said.errors[said.best].low
    assert len(said.errors) >= 9  # all of them go with these processes


def test_it_is_exact_for_a_gaussian():
    """Along each axis of a Gaussian the flow multiplies by √((λ + s²)/(λ + t²)): of three axes, six
    evaluations can have it exactly."""
    law = gaussian(f64([0.5, -1.0, 0.2]), torch.diag(f64([0.2, 0.5, 1.0])))
    flow = flow_of(law, "vp", 0.7)
    seen, unseen = starts(flow, 3, 64, 64)
    said = judged(flow, unseen, tuned(flow, seen, 6).solver, 6)
    assert said.chosen == FITTED
    assert said.errors[FITTED].value < 1e-5
    assert said.errors[said.best].value > 1e-3


def test_the_teacher_is_right_and_says_how_far():
    variances = f64([0.2, 0.5, 1.0])
    flow = flow_of(gaussian(torch.zeros(3, dtype=torch.float64), torch.diag(variances)), "edm", 0.7)
    z = Noise.of(0, "tune", 40).normal(0, (3,), torch.float64)
    true = truth(flow, z)
    # From x at σ_1 to x̂0 at the smallest level, both in closed form.
    low, high = (ratio**2 for ratio in flow.ends)
    x = math.sqrt(high + 0.7**2) * z * ((variances + low) / (variances + high)).sqrt()
    error = float(distance(true.end, x * variances / (variances + low)).mean())
    assert error < 1e-4
    assert error < 3 * true.error + 1e-9


def test_what_cannot_be_better_is_left_alone():
    """A point: every solver is exact, so no round is made and a fixed one stays."""
    flow = flow_of(constant(f64([0.3, -0.4])))
    seen, unseen = starts(flow, 2, 16, 16)
    last = tuned(flow, seen, 5)
    assert last.rounds == 0
    said = judged(flow, unseen, last.solver, 5)
    assert not said.clear
    assert said.chosen == said.best != FITTED


def test_chance_and_the_teachers_error_do_not_count():
    known = torch.linspace(1, 2, 100).double()
    wave = torch.sin(torch.arange(100).double())
    for errors, teacher, clear in (
        (0.5 * known, 0.0, True),
        (0.5 * known, 10.0, False),  # as far as the truth is known, it could be otherwise
        (known + 0.1 * wave - 0.001, 0.0, False),  # within the interval
        (1.1 * known, 0.0, False),
    ):
        said = verdict({DEFAULT: known, "other": known + 1, FITTED: errors}, teacher)
        assert said.clear == clear
        assert said.chosen == (FITTED if clear else DEFAULT)
        assert said.best == DEFAULT
    assert said.ratio.value == 1  # of what is chosen, so that it is never worse


def test_a_ratio_of_means_is_as_sure_as_its_pairs():
    below = 1 + torch.rand(400, generator=torch.Generator().manual_seed(0)).double()
    exact = ratio_of(0.3 * below, below)
    assert exact.value == pytest.approx(0.3)
    assert exact.high - exact.low < 1e-12
    draws = torch.rand(200, 400, generator=torch.Generator().manual_seed(1)).double()
    found = [ratio_of(0.6 * draw, below) for draw in draws]
    held = sum(one.low < 0.3 / 1.5 < one.high for one in found) / len(found)
    assert held > 0.9  # `below` is one draw, and a little off its own mean


def test_the_same_seed_fits_the_same_solver():
    flow = flow_of(mixture())
    seen, _ = starts(flow, 8, 32, 1)
    assert tuned(flow, seen, 4, 3) == tuned(flow, seen, 4, 3)
    other = Truth(seen.z.flip(0)[:16], seen.end.flip(0)[:16], seen.error)
    assert tuned(flow, other, 4, 3).solver != tuned(flow, seen, 4, 3).solver


def test_solvers_stay_within_the_process_and_its_first_level_may_fall():
    flow = flow_of(mixture(), "vp")
    seen, _ = starts(flow, 8, 32, 1)
    low, high = flow.ends
    for step in fitted(flow, seen, solver_of(fixed(flow, 5)[BEGINNING], flow.process), 6):
        logs = step.solver.logs
        assert math.log(low) < logs[-1]
        assert logs[0] <= math.log(high) + 1e-12
        assert all(a > b for a, b in pairwise(logs))
        assert all(sum(row) == pytest.approx(1) for row in step.solver.rows)
    assert logs[0] < math.log(high)


def test_rounds_only_lower_what_is_minimised():
    flow = flow_of(mixture())
    seen, _ = starts(flow, 8, 64, 1)
    steps = list(fitted(flow, seen, solver_of(fixed(flow, 6)[BEGINNING], flow.process), 10))
    level_off = 0.1 * steps[0].error
    costs = [
        float((distance(end, seen.end).square() + level_off**2).sqrt().mean())
        for end in (flow.end(step.solver.sampling(flow.process), seen.z) for step in steps)
    ]
    assert len(costs) > 5
    assert all(later < earlier for earlier, later in pairwise(costs))


def test_a_walk_that_goes_on_from_another_is_the_whole_walk():
    flow = flow_of(mixture())
    seen, _ = starts(flow, 8, 16, 1)
    solver = solver_of(fixed(flow, 6)["corrected multistep of order 3"], flow.process)
    fit = _Fit(flow, seen, 0.1)
    walk = fit.walked(solver)
    end = flow.end(solver.sampling(flow.process), seen.z)
    assert torch.equal(walk.end, end)
    row = (solver.rows[3][0] - 0.2, solver.rows[3][1] + 0.2, *solver.rows[3][2:])
    changed = solver._replace(rows=(*solver.rows[:3], row, *solver.rows[4:]))
    assert torch.equal(fit.walked(changed, walk, 3).end, fit.walked(changed).end)
    logs = (*solver.logs[:3], solver.logs[3] - 0.1, *solver.logs[4:])
    changed = solver._replace(logs=logs)
    assert torch.equal(fit.walked(changed, walk, 2).end, fit.walked(changed).end)
    # The shares of the last step need no evaluation: their derivative is exact, and linear.
    last = fit.slope(walk)[..., -1]
    moved = solver._replace(
        rows=(
            *solver.rows[:5],
            (solver.rows[5][0] - 1, *solver.rows[5][1:3], solver.rows[5][3] + 1),
        )
    )
    expected = (fit.walked(moved).end - walk.end) / math.sqrt(8)
    assert (last - expected).abs().max() < 1e-7


def test_a_damped_step_is_newtons_or_as_long_as_it_may_be():
    root = Noise.of(0, "root", 5).normal(0, (5,), torch.float64)
    normal, gradient = root @ root.T, f64([1.0, -2.0, 0.5, 3.0, 0.1])
    newton = -torch.linalg.solve(normal, gradient)
    assert (damped(normal, gradient, 1e9) - newton).norm() < 1e-6 * newton.norm()
    for radius in (1e-3, 0.1, 0.9 * float(newton.norm())):
        step = damped(normal, gradient, radius)
        assert float(step.norm()) == pytest.approx(radius, rel=1e-6)
        assert float(gradient @ step) < 0
