"""The Brownian path: an exact linear map of independent normals, the same for every grid."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ornstein.diffusion import brownian
from ornstein.diffusion.brownian import DEPTH, LOWEST, Path, combination
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import PROCESSES, SPACINGS, f64, grid


def increments(clock, noise, dim=3, dtype=torch.float64):
    """B(v_{i+1}) − B(v_i) of a grid, [steps, B, dim]."""
    path, x = Path(clock), torch.zeros(len(noise.ids), dim, dtype=dtype)
    return torch.stack(
        [
            math.sqrt(abs(w - v)) * path.normal(noise, i, x)
            for i, (v, w) in enumerate(pairwise(clock))
        ]
    )


def snr(levels):
    return [(k.alpha / k.sigma) ** 2 for k in levels if k.sigma > 0]


# --- the law, exactly ------------------------------------------------------------------------


def check_law(clock):
    """Σ over nodes of c c' is the identity for the scaled increments, and nodes fit in a step."""
    rows = Path(clock).terms
    nodes = sorted(set().union(*rows))
    assert nodes[0] >= 0
    assert nodes[-1] < 2**32
    place = {node: k for k, node in enumerate(nodes)}
    matrix = torch.zeros(len(rows), len(nodes), dtype=torch.float64)
    for i, row in enumerate(rows):
        for node, c in row.items():
            matrix[i, place[node]] = c
    error = (matrix @ matrix.T - torch.eye(len(rows), dtype=torch.float64)).abs().max()
    assert error < 1e-10


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PROCESSES)
def test_increments_over_any_grid_are_independent_with_the_clocks_variances(name, spacing):
    levels = grid(spacing, name, 40)
    check_law(snr(levels))  # from 0 where the process begins in pure noise
    check_law([max(k.t, 0.0) for k in levels if k.sigma > 0])


@given(st.lists(st.floats(math.log(1e-4), math.log(1e8)), min_size=2, max_size=30), st.booleans())
def test_the_law_is_exact_for_any_clock(logs, falling):
    clock = [math.exp(logs[0])]
    for log in sorted(logs)[1:]:
        clock.append(max(math.exp(log), clock[-1] * (1 + 2.0 ** (1 - DEPTH))))
    check_law(clock[::-1] if falling else clock)


@pytest.mark.parametrize("clock", [[0.0, 1e-300, 1e300], [0.0, 2.0**LOWEST, 1.0, 2.0, 3.0]])
def test_any_clock_that_floats_can_hold_has_its_nodes(clock):
    check_law(clock)


def test_points_within_a_leaf_are_refused_and_its_ends_are_not():
    leaf = 2.0**-DEPTH
    check_law([1.0, 1 + leaf, 1 + 2.5 * leaf, 2 - 0.5 * leaf])
    check_law([1.0, 1 + 0.3 * leaf])
    with pytest.raises(ConfigError, match="use fewer steps or more distant times"):
        Path([1 + 0.3 * leaf, 1 + 0.7 * leaf])


def test_samples_have_the_law():
    """Means, covariances and fourth moments of 40,000 paths within five standard errors."""
    n, clock = 40_000, [1e8, 3.001, 3.0, 1e-4, 0.0]
    path, noise = Path(clock), Noise.of(0, "steps", n)
    z = torch.cat([path.normal(noise, i, torch.zeros(n, 2)) for i in range(4)], dim=1).double()
    assert (z.mean(0).abs() < 5 / math.sqrt(n)).all()
    error = (z.T @ z / n - torch.eye(8, dtype=torch.float64)).abs()
    assert (error < 5 * math.sqrt(2 / n)).all()
    assert ((z**4).mean(0) - 3).abs().max() < 5 * math.sqrt(96 / n)


# --- one path for every grid ------------------------------------------------------------------


def test_the_path_is_that_of_bisection():
    """Against the tree itself: middles around the chord, by recursion, and a bridge at the end."""
    noise, v = Noise.of(3, "steps", [37]), 5.7
    own = noise.child("brownian")

    def z(node):
        return own.at(node).normal(0, (1,), torch.float64).item()

    octave = (2 - LOWEST + 1) << (DEPTH + 1)  # [4, 8)

    def value(left, right, b_left, b_right, node, depth):
        if depth == DEPTH:
            share = (v - left) / (right - left)
            std = math.sqrt((v - left) * (right - v) / (right - left))
            return (1 - share) * b_left + share * b_right + std * z(octave + node)
        middle = 0.5 * (left + right)
        b = 0.5 * (b_left + b_right) + 0.5 * math.sqrt(right - left) * z(octave + node)
        if v < middle:
            return value(left, middle, b_left, b, 2 * node, depth + 1)
        return value(middle, right, b, b_right, 2 * node + 1, depth + 1)

    expected = value(4.0, 8.0, 0.0, 2 * z(octave), 1, 0)
    (ours,) = increments([4.0, v], noise, dim=1).flatten().tolist()
    assert ours == pytest.approx(expected, rel=1e-10)


@settings(max_examples=30)
@given(
    st.lists(st.floats(-9, 18), min_size=3, max_size=12, unique_by=lambda v: round(v, 3)),
    st.data(),
)
def test_refining_a_grid_keeps_its_increments(logs, data):
    """Whatever points are added between two, the increments add up to that of the two."""
    fine = [math.exp(v) for v in sorted(logs, reverse=True)]
    inner = data.draw(st.sets(st.integers(1, len(fine) - 2), max_size=len(fine) - 2))
    kept = [0, *sorted(inner), len(fine) - 1]
    noise = Noise.of(0, "steps", [37, 5])
    parts = increments(fine, noise)
    whole = increments([fine[k] for k in kept], noise)
    for row, (first, last) in zip(whole, pairwise(kept), strict=True):
        torch.testing.assert_close(
            row, parts[first:last].sum(0), rtol=0, atol=1e-12 * math.sqrt(fine[first])
        )


def test_the_way_there_is_the_way_back():
    for v, w in ((0.0, 3.0), (0.2, 0.3), (1e-4, 1e8)):
        assert combination(w, v) == {node: -c for node, c in combination(v, w).items()}


def test_ten_steps_and_a_thousand_end_at_one_point():
    """The same ends, by unrelated points between: a real sampling grid of VP."""
    noise = Noise.of(1, "steps", 4)
    few, many = (snr(grid("log_snr", "vp", n)) for n in (10, 1000))
    total = increments(few, noise).sum(0)
    torch.testing.assert_close(increments(many, noise).sum(0), total, rtol=1e-6, atol=1e-6)
    single = increments(few, noise, dtype=torch.float32).sum(0)
    assert (single - total).abs().max() < 1e-5 * math.sqrt(few[-1])


# --- a pure function of its key ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_has_its_own_path(dtype):
    """Bit-equal in any batch; other ids, seeds and purposes have other paths."""
    clock = snr(grid("karras", "edm", 12))

    def of(ids, seed=0, purpose="steps", dim=5):
        return increments(clock, Noise.of(seed, purpose, ids), dim, dtype)

    batch = of(range(30, 41))
    assert torch.equal(of([37])[:, 0], batch[:, 7])
    assert torch.equal(of([4, 37, 2**40, 37])[:, [1, 3]], batch[:, [7, 7]])
    for other in (of([38]), of([37 + 2**32]), of([37], seed=1), of([37], purpose="else")):
        assert not (other[:, 0] == batch[:, 7]).any()


@pytest.mark.parametrize("ahead", [0, 40, 10**6])
def test_order_and_drawing_ahead_change_no_bit(ahead, monkeypatch):
    clock = snr(grid("log_snr", "vp", 12))
    noises = [Noise.of(seed, "steps", 2) for seed in (0, 1)]
    expected = [increments(clock, noise) for noise in noises]
    monkeypatch.setattr(brownian, "AHEAD", ahead)
    path, x = Path(clock), torch.zeros(2, 3, dtype=torch.float64)
    for i in (0, 1, 1, 10, 5, 6, 0):
        for k, noise in enumerate(noises):
            z = path.normal(noise, i, x)
            assert torch.equal(math.sqrt(abs(clock[i + 1] - clock[i])) * z, expected[k][i])
    assert torch.equal(increments(clock, noises[1].at(5)), expected[1])
    for k, noise in enumerate(noises):
        assert torch.equal(increments(clock, noise), expected[k])


def test_the_precision_is_that_of_x():
    clock, noise = snr(grid("log_snr", "vp", 6)), Noise.of(0, "steps", 3)
    path = Path(clock)
    single = path.normal(noise, 0, torch.zeros(3, 2))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(path.normal(noise, 0, torch.zeros(3, 2, dtype=dtype)), single.to(dtype))
    double = path.normal(noise, 0, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(double, Path(clock).normal(noise, 0, torch.zeros_like(double)))
    torch.testing.assert_close(double, single.double(), rtol=1e-4, atol=1e-5)
    x = f64([[1.0, 2.0]] * 3)
    assert torch.equal(path.added(x.clone(), 0.25, noise, 0), x.add(double, alpha=0.25))


def test_other_draws_of_the_same_noise_are_independent_of_the_path():
    """A corrector may draw from the steps of the very noise that drives the path."""
    noise = Noise.of(0, "steps", 1)
    path = Path([1.0, 2.0, 4.0])
    own = [path.normal(noise, i, torch.zeros(1, 8)) for i in range(2)]
    nodes = [0, *path.terms[0], *path.terms[1]]
    others = torch.cat([noise.at(node).normal(0, (8,)) for node in nodes])
    assert all((z != others).all() for z in own)


def test_a_step_costs_less_where_steps_are_many():
    """Nodes drawn per step: what neighbours share is drawn once."""

    def drawn(n):
        return len(set().union(*Path(snr(grid("log_snr", "vp", n))).terms)) / (n - 1)

    assert drawn(20) < DEPTH + 4
    assert drawn(1000) < DEPTH - 3
