"""Restorations without a model: against closed forms, and against each other where they agree."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import OAS

from ornstein.baselines import Moments, bicubic, filled, harmonic, linear, moments, wiener
from ornstein.diffusion.measurements import Blur, Downsample, Grey, Mask

SHAPE = (1, 6, 4)


def data(count, seed=0, shape=SHAPE):
    """Images [count, *shape] whose values are correlated and do not have mean 0."""
    generator = torch.Generator().manual_seed(seed)
    size = shape[0] * shape[1] * shape[2]
    root = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    z = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return (z @ root + torch.linspace(-1, 2, size, dtype=torch.float64)).view(count, *shape)


def test_moments_are_those_of_the_data():
    x = data(5000)
    known = moments(x)
    flat = x.flatten(1)
    torch.testing.assert_close(known.mean.flatten(), flat.mean(0))
    sample = torch.cov(flat.T, correction=0)
    assert (known.covariance - sample).norm() < 0.01 * sample.norm()
    assert float(known.covariance.trace()) == pytest.approx(float(sample.trace()))
    # Parseval: the mean of the spectrum is the mean variance of a pixel.
    assert float(known.spectrum.mean()) == pytest.approx(float(sample.trace()) / 24)


def test_few_images_have_a_covariance_that_is_shrunk():
    """As scikit-learn has it, which leaves the terms 2/D out; and nearer to the true one."""
    x = data(16)
    flat = x.flatten(1)
    found = moments(x).covariance
    theirs = torch.from_numpy(OAS().fit(flat.numpy()).covariance_)
    assert (found - theirs).norm() < 0.05 * theirs.norm()
    true, sample = moments(data(20_000)).covariance, torch.cov(flat.T, correction=0)
    assert (found - true).norm() < 0.9 * (sample - true).norm()
    assert torch.linalg.eigvalsh(found)[0] > 0


def test_images_beyond_a_size_have_no_covariance():
    known = moments(torch.randn(2, 1, 64, 64))
    assert known.covariance is None
    assert known.spectrum.shape == (1, 64, 64)


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("what", ["mask", "blur", "means", "grey"])
def test_the_linear_estimate_is_the_conditional_mean(what, std):
    """Of the joint Gaussian of x and y, conditioned by its blocks."""
    shape = (3, 4, 4) if what == "grey" else SHAPE
    mask = torch.ones(shape[1:])
    mask[1:4, 1:3] = 0
    measurement = {
        "mask": Mask(mask, std),
        "blur": Blur(0.7, std),
        "means": Downsample(2, std),
        "grey": Grey(std),
    }[what]
    x = data(400, shape=shape)
    known = moments(x)
    size = x[0].numel()
    columns = [measurement(unit.view(1, *shape)).flatten() for unit in torch.eye(size).double()]
    matrix = torch.stack(columns, dim=1)  # A
    if what == "mask":  # rows that say nothing
        matrix = matrix[mask.flatten().bool()]
    joint = torch.cat((torch.eye(size).double(), matrix))
    cov = joint @ known.covariance @ joint.T
    cov[size:, size:] += std**2 * torch.eye(len(matrix))
    y = measurement(x[:5])
    flat = y.flatten(1)[:, mask.flatten().bool()] if what == "mask" else y.flatten(1)
    rest = flat - known.mean.flatten() @ matrix.T
    gain = cov[:size, size:] @ torch.linalg.pinv(cov[size:, size:], rtol=1e-13, hermitian=True)
    expected = (known.mean.flatten() + rest @ gain.T).view(5, *shape)
    found = linear(known, measurement, std, y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def cyclic(x):
    """A lopsided blur that wraps around."""
    return 0.6 * x + 0.3 * x.roll(1, -1) + 0.1 * x.roll(-1, -2)


def test_the_wiener_filter_is_the_linear_estimate_of_cyclic_data():
    """A covariance that is diagonal in Fourier modes, where both are exact."""
    shape = (1, 6, 6)
    k = torch.fft.fftfreq(6, dtype=torch.float64)
    spectrum = 1 / (0.05 + k[:, None] ** 2 + 2 * k**2)[None]
    units = torch.eye(36, dtype=torch.float64).view(36, *shape)
    covariance = torch.fft.ifft2(spectrum * torch.fft.fft2(units)).real.flatten(1)
    known = Moments(data(1, shape=shape)[0], covariance, spectrum)
    y = data(3, seed=2, shape=shape)
    for measure, std in ((cyclic, 0.2), (lambda x: x, 1.5)):
        torch.testing.assert_close(
            wiener(known, measure, std, y), linear(known, measure, std, y), rtol=1e-9, atol=1e-9
        )


def test_harmonic_filling():
    """A plane is its own, inside; and no filling leaves the values around it."""
    down, right = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    plane = torch.stack((0.5 * down - right + 3, down + 2 * right))[None].double()
    seen = torch.ones(1, 9, 12)
    seen[:, 2:7, 3:10] = 0
    torch.testing.assert_close(harmonic(seen, plane * seen), plane, rtol=0, atol=1e-3)
    x = torch.rand(3, 1, 9, 12, generator=torch.Generator().manual_seed(0)).double()
    found = harmonic(seen, x * seen)
    assert torch.equal(found[:, seen.bool()], x[:, seen.bool()])
    hole = found[:, 0, 2:7, 3:10]
    around = (
        found[:, 0, 1:6, 3:10] + found[:, 0, 3:8, 3:10]
        + found[:, 0, 2:7, 2:9] + found[:, 0, 2:7, 4:11]
    )  # fmt: skip
    torch.testing.assert_close(hole, around / 4, rtol=0, atol=1e-4)
    side = torch.ones(1, 9, 12)
    side[:, :, 6:] = 0  # to the border: half of each row goes on as it is at the edge of the rest
    constant = torch.full((1, 1, 9, 12), 4.0).double()
    torch.testing.assert_close(harmonic(side, constant * side), constant, rtol=0, atol=1e-3)


def test_the_simplest():
    x = data(50)
    known = moments(x)
    seen = torch.ones(1, 6, 4)
    seen[:, :3] = 0
    found = filled(known, seen, x * seen)
    assert torch.equal(found[:, :, 3:], x[:, :, 3:])
    assert torch.equal(found[0, :, :3], known.mean[:, :3])
    flat = torch.full((1, 1, 3, 2), 0.7)
    torch.testing.assert_close(bicubic(flat, (6, 4)), torch.full((1, 1, 6, 4), 0.7).double())
