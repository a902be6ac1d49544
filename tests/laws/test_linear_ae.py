"""A linear autoencoder finds the subspace of the principal components, and leaves the rest.

P. Baldi, K. Hornik, "Neural networks and principal component analysis: learning from examples
without local minima", Neural Networks 2, 1989: at the minimum decoder · encoder is the projection
on the span of the first k eigenvectors of the covariance, and the error is the sum of the other
eigenvalues; every other critical point is a saddle.
"""

import math

import pytest
import torch

from ornstein.autoencoders.bottlenecks import Plain
from ornstein.autoencoders.likelihoods import Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.data.info import Batch, DataInfo
from ornstein.nn.codecnets import Dense
from ornstein.noise import Noise
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.objectives.base import Context
from tests.helpers import f64

N, DIM = 300, 7
STDS = f64([3.0, 2.0, 1.5, 1.0, 0.6, 0.4, 0.2])


def data():
    """Correlated vectors about a mean, their covariance's eigenvalues, rising, and its axes."""
    z = Noise.of(0, "z", N).normal(0, (DIM,), torch.float64)
    axes = torch.linalg.qr(Noise.of(0, "axes", DIM).normal(0, (DIM,), torch.float64)).Q
    x = z * STDS @ axes.T + torch.linspace(-0.5, 0.5, DIM, dtype=torch.float64)
    return x, *torch.linalg.eigh(torch.cov(x.T, correction=0))


def trained(x, units):
    """The codec and its mean loss after full-batch descent in the autoencoding objective."""
    info = DataInfo(
        name="x", kind="vector", shape=(DIM,), count=N, mean=0.0, std=1.0, fingerprint=""
    )
    chosen = Autoencoder(
        nets=Dense(hidden=()), units=units, bottleneck=Plain(), likelihood=Normal(std=0.5**0.5)
    )
    torch.manual_seed(0)
    model = chosen.build(info, lambda reference: reference).double()
    objective = Autoencoding().build(model, info, lambda reference: reference)
    context = Context(step=0, progress=0.0, noise=Noise.of(0, "train", N))
    batch = Batch(x, torch.arange(N))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-6, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = objective(model, batch, context).per_sample.mean()
        value.backward()
        return value

    optimizer.step(loss)
    return model, loss().item()


def angles(a, b):
    """The principal angles between the column spaces of two matrices, in radians.

    By their sines: cosines of angles below 1e-8 are all 1.
    """
    a, b = (torch.linalg.qr(m).Q for m in (a, b))
    return torch.linalg.svdvals(a - b @ (b.T @ a)).clamp(max=1).asin()


@pytest.mark.parametrize("units", [1, 3, 6])
def test_it_finds_the_principal_components(units):
    x, values, axes = data()
    model, loss = trained(x, units)
    encoder, decoder = model.encoder.net[0].weight, model.decoder.net[0].weight
    leading = axes[:, -units:]
    with torch.no_grad():
        assert angles(decoder, leading).max() < 1e-3
        assert angles(encoder.T, leading).max() < 1e-3
        torch.testing.assert_close(decoder @ encoder, leading @ leading.T, rtol=0, atol=1e-3)
        error = (x - model.reconstruct(x)).square().sum(1).mean().item()
    discarded = values[:-units].sum().item()
    assert error == pytest.approx(discarded, rel=1e-6)
    # −log N(x; m, ½) is the squared error and a constant, so this is notes eq 1.
    assert loss == pytest.approx(discarded + DIM * 0.5 * math.log(math.pi), rel=1e-6)
