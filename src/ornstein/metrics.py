"""How far generated samples are from real ones, and how near to those that were trained on.

Fréchet distance of two Gaussians (D. Dowson, B. Landau, "The Fréchet distance between
multivariate normal distributions", 1982), used on features of images by M. Heusel et al., "GANs
trained by a two time-scale update rule", 2017, arXiv:1706.08500, eq. 6:

    d² = |m₁ - m₂|² + tr C₁ + tr C₂ - 2 tr (C₁^½ C₂ C₁^½)^½

The last term is the sum of the roots of the eigenvalues of a *symmetric* matrix, so nothing
complex can appear and singular covariances (fewer samples than features, constant features) are
no special case. It is a squared distance, in squared units of the features.

The estimate from N samples is biased upwards by about c / N: compare scores of equal N only.

Memorisation: a sample counts as memorised when its nearest training sample is no farther than
the 1st percentile of what *held-out* data show, so unseen data score 1 % by construction, and
copies of training data 100 %.

Mathematics is in float64. Nothing here knows a method, a network or a file.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import ConfigError, NumericsError
from ornstein.noise import Noise

_BLOCK = 1 << 24  # elements of the largest temporary: 64 MiB in float32
_QUERIES = 2048  # held-out samples that set the memorisation threshold


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] (divided by N - 1) of features [N, D], in float64.

    ConfigError for fewer than two rows, NumericsError for values that are not finite.
    """
    x = _checked(features)
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared Fréchet distance of N(mean1, cov1) and N(mean2, cov2); 0 or more.

    Dowson & Landau 1982; Heusel et al. 2017, eq. 6. Means are [D], covariances [D, D],
    symmetric and positive semi-definite, of any rank.
    """
    return _frechet(mean1.double(), cov1.double(), mean2.double(), _root(cov2.double()))


def frechet_bootstrap(
    features: Tensor, reference_features: Tensor, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of the Fréchet distance of generated `features` [N, D] to a fixed reference.

    The interval is for what N samples score *on average*: how far the score would move if N
    others were drawn from the same generator. With θ the score, θ* those of resamples of the
    generated features and m the mean of θ*, it is [θ - (q₉₇.₅ - m), θ - (q₂.₅ - m)], the basic
    bootstrap (A. Davison, D. Hinkley, "Bootstrap methods and their application", 1997, §5.2)
    about m: resampling adds the bias c / N a second time, and the plain percentiles of θ* may
    well lie above θ altogether. The ends are at least 0, the second at least the first.

    The reference [M, D] is not resampled: it is the data that all scores are measured against.
    A pure function of (features, resamples, seed).
    """
    if resamples < 40:
        raise ConfigError(f"a 95 % interval needs at least 40 resamples, not {resamples}")
    x = _checked(features)
    mean, cov = moments(reference_features)
    root = _root(cov)
    value = _frechet(*moments(x), mean, root)
    count, shift = len(x), x.mean(0)
    x = x - shift  # so that the second moments below lose no digits
    noise = Noise.of(seed, "frechet bootstrap", resamples)
    scores = torch.empty(resamples, dtype=torch.float64)
    for r in range(resamples):
        drawn = noise.of_samples(slice(r, r + 1)).integers(0, count, (count,))[0]
        weight = torch.bincount(drawn, minlength=count).double()
        m = weight @ x / count
        # Weighted moments: the resample itself, N x D, is never made.
        c = (x.T @ (weight.unsqueeze(1) * x) - count * torch.outer(m, m)) / (count - 1)
        scores[r] = _frechet(m + shift, c, mean, root)
    spread = torch.quantile(scores, torch.tensor([0.975, 0.025], dtype=torch.float64))
    low, high = (value - (spread - scores.mean())).clamp_min(0).tolist()
    return low, high


def nearest_distances(
    queries: np.ndarray, reference: np.ndarray, exclude: np.ndarray | None = None
) -> Tensor:
    """Distance of each query to its nearest reference sample, float64 [N].

    queries [N, *shape], reference [M, *shape], any number type. The distance is the root of the
    mean over a sample's values of the squared difference, in the units of the data: a distance
    of 3 on 8-bit images is three grey levels in a typical pixel. `exclude` [N] gives for each
    query one reference sample that does not count (itself, when it is one of them).

    The nearest is sought in float32 by |q|² + |r|² - 2 q·r, in blocks, and its distance is then
    taken from the difference in float64: exactly 0 for a copy.
    """
    if queries.shape[1:] != reference.shape[1:]:
        raise ConfigError(
            f"samples of shape {queries.shape[1:]} cannot be compared with samples of shape "
            f"{reference.shape[1:]}"
        )
    if len(reference) < (1 if exclude is None else 2):
        raise ConfigError("the nearest sample of an empty set does not exist")
    if len(queries) == 0:
        return torch.empty(0, dtype=torch.float64)
    width = max(1, math.prod(queries.shape[1:]))
    # Both are measured from the queries' mean: |q|² and |r|² stay small, and so do their errors.
    centre = queries.reshape(len(queries), -1).mean(0, dtype=np.float64).astype(np.float32)
    q = _rows(queries, slice(None)) - torch.from_numpy(centre)
    own = None if exclude is None else torch.from_numpy(np.array(exclude, dtype=np.int64))
    best = torch.full((len(q),), math.inf)
    nearest = torch.zeros(len(q), dtype=torch.int64)
    rows = max(1, min(8192, _BLOCK // width))
    block = max(1, _BLOCK // rows)
    for start in range(0, len(reference), rows):
        r = _rows(reference, slice(start, start + rows)) - torch.from_numpy(centre)
        square = r.square().sum(1)
        for first in range(0, len(q), block):
            part = slice(first, first + block)
            partial = torch.addmm(square, q[part], r.T, alpha=-2)  # |r|² - 2 q·r, [queries, rows]
            if own is not None:
                column = own[part] - start
                inside = ((column >= 0) & (column < len(r))).nonzero().squeeze(1)
                partial[inside, column[inside]] = math.inf
            low, where = partial.min(1)
            nearer = low < best[part]
            best[part] = torch.where(nearer, low, best[part])
            nearest[part] = torch.where(nearer, where + start, nearest[part])
    found = torch.empty(len(q), dtype=torch.float64)
    block = max(1, _BLOCK // (4 * width))
    for first in range(0, len(q), block):
        part = slice(first, first + block)
        there = reference[nearest[part].numpy()].astype(np.float64)
        difference = torch.from_numpy(queries[part].astype(np.float64) - there)
        found[part] = difference.reshape(len(difference), -1).square().mean(1).sqrt()
    return found


def memorisation_threshold(train: np.ndarray, held_out: np.ndarray) -> float:
    """The 1st percentile of the distances of held-out samples to their nearest training sample.

    Of n distances it is the ⌈n/100⌉-th smallest: 1 % of the held-out samples are no farther
    (one of them if there are fewer than a hundred). Without held-out data, each training sample
    is compared with all the others. At most 2,048 evenly spaced samples are asked. Units and
    shapes are those of `nearest_distances`.
    """
    asked = held_out if len(held_out) else train
    chosen = np.arange(len(asked))
    if len(asked) > _QUERIES:
        chosen = np.linspace(0, len(asked) - 1, _QUERIES).round().astype(np.int64)
    distances = nearest_distances(asked[chosen], train, None if len(held_out) else chosen)
    rank = -(-len(distances) // 100)
    return float(distances.kthvalue(rank).values)


def memorisation(
    generated: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    threshold: float | None = None,
) -> tuple[float, float]:
    """The fraction of generated samples that are as good as copies of training samples.

    Counted are those whose nearest training sample is no farther than the threshold,
    `memorisation_threshold(train, held_out)` where none is given: copies score 1, unseen data
    0.01 by construction. Arrays are [N, *shape] in the same units. Returns (fraction in [0, 1],
    threshold as a root mean squared difference).
    """
    if len(generated) == 0:
        raise ConfigError("memorisation of no samples is not defined; generate at least one")
    if threshold is None:
        threshold = memorisation_threshold(train, held_out)
    near = nearest_distances(generated, train) <= threshold
    return float(near.double().mean()), threshold


def _frechet(mean: Tensor, cov: Tensor, other_mean: Tensor, other_root: Tensor) -> float:
    """The distance, given C^½ of the other Gaussian; tr C is its sum of squares."""
    middle = other_root @ cov @ other_root
    roots = _eigenvalues(torch.linalg.eigvalsh((middle + middle.T) / 2)).sqrt()
    square = (mean - other_mean).square().sum() + cov.trace() + other_root.square().sum()
    return max(0.0, float(square - 2 * roots.sum()))


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    root: Tensor = (vectors * _eigenvalues(values).sqrt()) @ vectors.T
    return root


def _eigenvalues(values: Tensor) -> Tensor:
    """Eigenvalues with those at the level of rounding set to 0.

    The root of an error of 1e-16 is one of 1e-8, and a singular matrix has many of them.
    """
    level = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > level, values, torch.zeros_like(values))


def _rows(x: np.ndarray, part: slice) -> Tensor:
    rows = np.array(x[part], dtype=np.float32)  # a copy: memory-mapped arrays are read-only
    return torch.from_numpy(rows.reshape(len(rows), -1))


def _checked(features: Tensor) -> Tensor:
    if features.dim() != 2 or len(features) < 2:
        raise ConfigError(
            f"a covariance needs at least 2 samples as rows of a matrix, not {list(features.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        bad = int((~torch.isfinite(features)).any(1).sum())
        raise NumericsError(f"{bad} of {len(features)} samples have features that are not finite")
    return features.double()
