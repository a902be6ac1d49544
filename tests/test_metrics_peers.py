"""Metrics against torchmetrics, on the same features.

torchmetrics is given float64 features by a module that passes them through, so both sides work in
double precision and agree to 1e-10 of the value (measured: 1e-14, and 2e-12 for a kernel distance
that is nearly 0). Where a covariance is singular the Fréchet distances agree to 1e-6 only (3e-8):
torchmetrics takes the roots of the eigenvalues of a product that is not symmetric, where an error
of 1e-16 becomes one of 1e-8.
"""

import warnings

import pytest
import torch
from torch import nn

from ornstein.metrics.classes import inception_score
from ornstein.metrics.frechet import fit, frechet
from ornstein.metrics.kernel import kernel_distance
from ornstein.noise import Noise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")


class Given(nn.Module):
    """A network that says what it is told."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, x):
        return x


def features(count, size, seed=0, shift=0.0):
    """Features that are correlated, of unequal variance, and 0 or more, as those of networks."""
    z = Noise.of(seed, "peer", count).normal(0, (size,), torch.float64)
    mix = Noise.of(7, "mix", size).normal(0, (size,), torch.float64) / size**0.5
    return (z @ mix + shift).relu()


def told(metric, x, y):
    """What torchmetrics says of generated x and real y, given in two batches."""
    for part in y.chunk(2):
        metric.update(part, real=True)
    for part in x.chunk(2):
        metric.update(part, real=False)
    return metric.compute()


@pytest.mark.parametrize(
    ("count", "real", "size", "rel"),
    [(300, 500, 16, 1e-10), (400, 200, 64, 1e-10), (30, 500, 64, 1e-6), (40, 50, 100, 1e-6)],
)
def test_frechet(count, real, size, rel):
    x, y = features(count, size, 1, 0.2), features(real, size, 2)
    theirs = told(FrechetInceptionDistance(feature=Given(size)), x, y)
    assert theirs.dtype == torch.float64
    assert frechet(x, fit(y)).value == pytest.approx(float(theirs), rel=rel)


@pytest.mark.parametrize("size", [3, 64])
def test_kernel(size):
    """torchmetrics draws equal numbers of both sides; one subset of all is the whole statistic."""
    x, y = features(150, size, 1, 0.2), features(150, size, 2)
    theirs, _ = told(KernelInceptionDistance(feature=Given(size), subsets=1, subset_size=150), x, y)
    assert theirs.dtype == torch.float64
    assert kernel_distance(x, y).value == pytest.approx(float(theirs), rel=1e-10)


def test_subsets_are_noisier_and_have_the_same_mean():
    """The mean over random subsets, as published, tends to the statistic of all pairs."""
    x, y = features(400, 8, 1, 0.2), features(400, 8, 2)
    torch.manual_seed(0)
    theirs, spread = told(
        KernelInceptionDistance(feature=Given(8), subsets=400, subset_size=50), x, y
    )
    assert abs(kernel_distance(x, y).value - float(theirs)) < 4 * float(spread) / 400**0.5


@pytest.mark.parametrize("sharp", [0.1, 1.0, 20.0])
def test_inception_score(sharp):
    logits = Noise.of(0, "logits", 200).normal(0, (10,), torch.float64) * sharp
    metric = InceptionScore(feature=Given(10), splits=1)
    metric.update(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it also takes the spread of its one group
        theirs, _ = metric.compute()
    assert inception_score(logits.softmax(1)).value == pytest.approx(float(theirs), rel=1e-10)
