"""Nearest codes against all distances, and k-means against another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.autoencoders import kmeans as module
from ornstein.autoencoders.kmeans import added, counted, kmeans, nearest
from ornstein.noise import Noise
from tests.helpers import f64


def one(seed: int = 0) -> Noise:
    return Noise.of(seed, "after step", 1)


@given(
    n=st.integers(0, 40),
    size=st.integers(1, 140),
    dim=st.integers(1, 9),
    block=st.sampled_from([1, 100, 1 << 19]),
    seed=st.integers(0, 2**32),
)
def test_the_nearest_code_has_the_least_distance(n, size, dim, block, seed):
    noise = Noise.of(seed, "points", n + size)
    points = noise.normal(0, (dim,), torch.float64)
    rows, codebook = points[:n], points[n:]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "BLOCK", {"cpu": block})
        found = nearest(rows, codebook)
    assert torch.equal(found, torch.cdist(rows, codebook).argmin(1))


def test_single_precision_is_as_near_as_its_rounding():
    points = Noise.of(0, "points", 1000).normal(0, (16,))
    rows, codebook = points[:700], points[700:]
    exact = torch.cdist(rows.double(), codebook.double())
    found = exact.gather(1, nearest(rows, codebook)[:, None]).squeeze(1)
    torch.testing.assert_close(found, exact.amin(1), rtol=1e-5, atol=0)


def test_the_block_bounds_the_memory(monkeypatch):
    sizes = []
    multiplied = torch.addmm

    def watched(*args, **kwargs):
        sizes.append(kwargs["out"].numel())
        return multiplied(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", watched)
    monkeypatch.setattr(module, "BLOCK", {"cpu": 500})
    nearest(torch.zeros(100, 2), torch.zeros(200, 2))
    assert max(sizes) <= 500
    assert sum(sizes) == 100 * 224  # codes in whole groups of 32


def test_rows_that_are_not_numbers_have_a_code():
    rows = torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0], [1.0, 1.0]])
    found = nearest(rows, torch.tensor([[4.0, 4.0], [2.0, 2.0]]))
    assert found.max() < 2  # and not one of those that fill a group
    assert found[2] == 1


def test_sums_by_code():
    rows = f64([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])
    sums, counts = added(rows, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[3, 5], [0, 0], [8, 13], [0, 0]]
    assert counts.tolist() == counted(torch.tensor([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]


def test_steps_are_lloyds():
    """Scikit-learn, from the same start, for as many steps."""
    from sklearn.cluster import KMeans

    points = Noise.of(0, "points", 300).normal(0, (3,), torch.float64)
    start, _ = kmeans(points, 7, one(), steps=0)
    for steps in (1, 3, 200):
        means, counts = kmeans(points, 7, one(), steps)
        peer = KMeans(7, init=start.numpy(), n_init=1, max_iter=200, tol=0, algorithm="lloyd")
        if steps == 200:
            peer.fit(points.numpy())
            np.testing.assert_allclose(means.numpy(), peer.cluster_centers_, rtol=1e-9, atol=1e-12)
            assert counts.tolist() == np.bincount(peer.labels_, minlength=7).tolist()
        else:
            expected = start.clone()
            for _ in range(steps):
                near = torch.cdist(points, expected).argmin(1)
                expected = torch.stack([points[near == i].mean(0) for i in range(7)])
            torch.testing.assert_close(means, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rounds", [256, 8])
def test_separated_clusters_are_all_found(monkeypatch, rounds):
    """40 clusters far apart and 40 codes; a start from random points would miss a third."""
    monkeypatch.setattr(module, "ROUNDS", rounds)
    centres = torch.arange(40.0).unsqueeze(1) * torch.tensor([[100.0, -70.0]])
    points = centres.repeat(20, 1) + Noise.of(0, "points", 800).normal(0, (2,))
    found = 0
    for seed in range(5):
        means, counts = kmeans(points, 40, one(seed))
        assert counts.sum() == 800
        found += len(torch.cdist(centres, means).argmin(1).unique())
    # One by one they are all found; several at a time, a few are met twice.
    assert found == 200 if rounds == 256 else found > 0.85 * 200


def test_a_seed_is_drawn_by_its_squared_distance():
    """From the points 0, 1 and 3: after the first, i, j is taken with chance d²(i, j)/Σ d²."""
    points = f64([[0.0], [1.0], [3.0]])
    pairs = torch.zeros(3, 3)
    for seed in range(500):
        i, j = kmeans(points, 2, one(seed), steps=0)[0].squeeze(1).tolist()
        pairs[[0, 1, 3].index(i), [0, 1, 3].index(j)] += 1 / 500
    squared = torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]])
    expected = squared / squared.sum(1, keepdim=True) / 3
    torch.testing.assert_close(pairs, expected, rtol=0, atol=0.05)
    assert pairs.diagonal().sum() == 0


def test_fewer_points_than_codes():
    points = f64([[0.0], [1.0], [1.0]])
    means, counts = kmeans(points, 5, one())
    assert torch.isfinite(means).all()
    assert sorted(counts.tolist()) == [0, 0, 0, 1, 2]
