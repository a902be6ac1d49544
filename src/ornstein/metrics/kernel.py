"""Kernel distance: the squared distance of two laws in the space of a cubic kernel.

M. Bińkowski, D. Sutherland, M. Arbel, A. Gretton, "Demystifying MMD GANs", 2018,
arXiv:1801.01401, §4; A. Gretton et al., "A kernel two-sample test", JMLR 2012, eq. 3:

    k(x, y) = (x·y / D + 1)³
    MMD²    = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)

It compares the first three moments, and is unbiased: samples of the reference's own law score 0
on average at any count, and a single score may be negative. All pairs are used. (The paper
averages over random subsets; that has the same expectation and a larger variance.)

Sample i has the influence φ_i = 2 (mean_{j≠i} k(x_i, x_j) - mean_j k(x_i, y_j)) + constant. Where
both laws are equal this vanishes in the limit, and what is left of it makes the interval up to
√2 too wide: it errs on the safe side there.

With x̃ = (x/√D, 1) the kernel is (x̃·ỹ)³, so the mean over all y is one tensor of third moments:

    mean_j k(x, y_j) = Σ_abc x̃_a x̃_b x̃_c T_abc,    T = mean_j ỹ_j ⊗ ỹ_j ⊗ ỹ_j

which costs D³ for each sample where pairs cost M·D. Few features go that way, many by pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import ConfigError
from ornstein.metrics.estimate import estimate, rows
from ornstein.scores import Estimate

_BLOCK = 1 << 22  # elements of the largest temporary: 32 MiB in float64


def kernel_distance(
    features: Tensor, reference: Tensor, reference_mean: float | None = None
) -> Estimate:
    """MMD² of generated features [N, D] and reference features [M, D], N and M at least 2.

    reference_mean: `mean_kernel(reference)`, if it is known already: the largest part of the work.
    ConfigError for other shapes, NumericsError for values that are not finite.
    """
    x, y = rows(features), rows(reference)
    if x.shape[1] != y.shape[1]:
        raise ConfigError(f"{x.shape[1]} features cannot be compared with {y.shape[1]}")
    of_reference = mean_kernel(y) if reference_mean is None else reference_mean
    own, other = _to_others(x), row_means(x, y)
    value = float((own - 2 * other).mean()) + of_reference
    return estimate(value, 2 * (own - other))


def mean_kernel(features: Tensor) -> float:
    """The mean of k over all pairs of distinct samples of features [N, D], N at least 2."""
    return float(_to_others(rows(features)).mean())


def row_means(x: Tensor, y: Tensor) -> Tensor:
    """For each row of x [N, D] the mean of k to all rows of y [M, D], float64 [N]."""
    wide = (x.shape[1] + 1) ** 3
    cheaper = wide * (len(x) + len(y)) < len(x) * len(y) * x.shape[1]
    return _by_moments(x, y) if cheaper and wide <= 2 * _BLOCK else _by_pairs(x, y)


def _to_others(x: Tensor) -> Tensor:
    """For each row of x [N, D] the mean of k to all other rows."""
    own = (x.square().sum(1) / x.shape[1] + 1) ** 3
    return (len(x) * row_means(x, x) - own) / (len(x) - 1)


def _by_pairs(x: Tensor, y: Tensor) -> Tensor:
    one = torch.ones((), dtype=x.dtype)
    # Small results kept between large blocks would leave holes in the heap, gigabytes of them.
    means = torch.empty(len(x), dtype=x.dtype)
    for part in _parts(len(x), len(y)):
        base = torch.addmm(one, x[part], y.T, alpha=1 / x.shape[1])
        means[part] = base.square().mul_(base).mean(1)
    return means


def _by_moments(x: Tensor, y: Tensor) -> Tensor:
    x, y = (F.pad(z / z.shape[1] ** 0.5, (0, 1), value=1.0) for z in (x, y))
    width = x.shape[1]
    third = torch.zeros(width**2, width, dtype=x.dtype)
    for part in _parts(len(y), width**2):
        third.addmm_(_products(y[part]).T, y[part], alpha=1 / len(y))
    means = torch.empty(len(x), dtype=x.dtype)
    for part in _parts(len(x), width**2):
        means[part] = ((_products(x[part]) @ third) * x[part]).sum(1)
    return means


def _parts(count: int, width: int) -> list[slice]:
    height = max(1, _BLOCK // width)
    return [slice(i, i + height) for i in range(0, count, height)]


def _products(x: Tensor) -> Tensor:
    """x ⊗ x for each row, flattened: [N, D²]."""
    return (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
