"""The kernel distance against pairs, moments of Gaussians, and its own expectation."""

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics import kernel
from ornstein.metrics.kernel import kernel_distance, mean_kernel, row_means
from ornstein.noise import Noise


def normal(count, *shape, seed=0, purpose="test"):
    return Noise.of(seed, purpose, count).normal(0, shape, torch.float64)


def gaussian_mean_kernel(mean1, cov1, mean2, cov2):
    """E k(x, y) of independent Gaussians: a polynomial of their moments.

    With s = x·y, E s = m·m', E s² = tr S S' and E s³ the product of the third-moment tensors.
    """

    def third(m, c):
        mc = torch.einsum("a,bc->abc", m, c)
        cross = mc + mc.transpose(0, 1) + mc.permute(1, 2, 0)
        return torch.einsum("a,b,c->abc", m, m, m) + cross

    size = len(mean1)
    s1, s2 = cov1 + torch.outer(mean1, mean1), cov2 + torch.outer(mean2, mean2)
    once, twice = mean1 @ mean2 / size, (s1 * s2).sum() / size**2
    thrice = (third(mean1, cov1) * third(mean2, cov2)).sum() / size**3
    return float(1 + 3 * once + 3 * twice + thrice)


LAWS = [
    (torch.tensor([0.5, -1.0, 0.2]), torch.tensor([[1.0, 0.3, 0], [0.3, 0.5, 0], [0, 0, 2.0]])),
    (torch.tensor([0.0, 0.4, 0.4]), torch.tensor([[0.7, 0, 0.2], [0, 1.2, 0], [0.2, 0, 0.9]])),
]
LAWS = [(mean.double(), cov.double()) for mean, cov in LAWS]


def draw(law, count, seed, purpose):
    mean, cov = LAWS[law]
    return mean + normal(count, 3, seed=seed, purpose=purpose) @ torch.linalg.cholesky(cov).T


def population_distance():
    one, two = LAWS
    mixed = gaussian_mean_kernel(*one, *two)
    return gaussian_mean_kernel(*one, *one) + gaussian_mean_kernel(*two, *two) - 2 * mixed


def brute_force(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    own = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    other = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return np.mean(own) + np.mean(other) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_it_is_the_sum_over_pairs(monkeypatch):
    x, y = normal(11, 4) + 0.5, normal(17, 4, seed=1) * 1.5
    expected = brute_force(x, y)
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(x, y, mean_kernel(y)).value == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(kernel, "_BLOCK", 30)  # many small blocks
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_moments_and_pairs_agree(size, monkeypatch):
    """The mean over pairs and the third-moment tensor are one number, in blocks or not."""
    x, y = normal(40, size) + 0.3, normal(70, size, seed=1)
    pairs = kernel._by_pairs(x, y)
    torch.testing.assert_close(kernel._by_moments(x, y), pairs, rtol=1e-12, atol=0)
    monkeypatch.setattr(kernel, "_BLOCK", 1)
    torch.testing.assert_close(kernel._by_moments(x, y), pairs, rtol=1e-12, atol=0)
    torch.testing.assert_close(kernel._by_pairs(x, y), pairs, rtol=1e-12, atol=0)


def test_the_cheaper_way_is_taken(monkeypatch):
    taken = []
    for name in ("_by_pairs", "_by_moments"):
        monkeypatch.setattr(kernel, name, lambda x, y, name=name: taken.append(name))
    sizes = [
        ((1000, 2), (50_000, 2)),
        ((1000, 64), (1600, 64)),
        ((500_000, 250), (500_000, 250)),  # fewer operations, but 16 million third moments
    ]
    for x, y in sizes:
        row_means(torch.empty(x, device="meta"), torch.empty(y, device="meta"))
    assert taken == ["_by_moments", "_by_pairs", "_by_pairs"]


def test_it_is_unbiased():
    """Over many small draws of both sides the mean is the distance of the laws, in closed form."""
    times = 2000
    x, y = draw(0, 6 * times, 0, "x").view(times, 6, 3), draw(1, 9 * times, 0, "y").view(-1, 9, 3)
    found = [kernel_distance(a, b).value for a, b in zip(x, y, strict=True)]
    truth, error = population_distance(), np.std(found) / times**0.5
    assert error < truth / 10
    assert abs(np.mean(found) - truth) < 4 * error
    same = [kernel_distance(a, b).value for a, b in zip(x[:1000], x[1000:], strict=True)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 1000**0.5
    assert min(same) < 0  # an unbiased estimate of 0 has either sign


def test_large_samples_converge_to_the_closed_form():
    x, y = draw(0, 20_000, 0, "x"), draw(1, 20_000, 0, "y")
    assert kernel_distance(x, y).value == pytest.approx(population_distance(), rel=0.05)
    assert mean_kernel(x) == pytest.approx(gaussian_mean_kernel(*LAWS[0], *LAWS[0]), rel=0.05)


@pytest.mark.parametrize("law", [0, 1], ids=["the reference's law", "another"])
def test_intervals_cover_what_such_a_sample_scores_on_average(law):
    reference = draw(0, 2000, 0, "reference")
    known = mean_kernel(reference)
    found = [kernel_distance(draw(law, 200, s, "x"), reference, known) for s in range(120)]
    truth = np.mean([f.value for f in found])
    assert sum(f.low <= truth <= f.high for f in found) >= 102


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="3 features cannot be compared with 4"):
        kernel_distance(normal(5, 3), normal(5, 4))
    with pytest.raises(ConfigError, match="at least 2"):
        kernel_distance(normal(1, 3), normal(5, 3))
    with pytest.raises(NumericsError, match="5 of 5"):
        kernel_distance(normal(5, 3), normal(5, 3) * float("nan"))
