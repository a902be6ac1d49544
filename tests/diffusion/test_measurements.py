"""Measurements: what they see, the maps that automatic differentiation makes of them, and the way
back into an image."""

import pytest
import torch

from ornstein.diffusion.measurements import (
    Blur,
    Downsample,
    Grey,
    Mask,
    Operator,
    adjoint,
    dot,
    measured,
    tangent,
)
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import f64

HALF = torch.arange(8) < 4
LINEAR = {
    "mask": Mask(HALF),
    "mask of channels": Mask(torch.ones(3, 1, 1) * f64([1, 0, 1]).view(3, 1, 1)),
    "blur": Blur(0.8),
    "blur, zero": Blur(1.5, boundary="zero"),
    "kernel": Blur(kernel=f64([[0.0, 1.0, 0.0], [0.0, 0.5, 2.0], [0.0, 0.0, 0.0]])),
    "downsample": Downsample(4),
    "grey": Grey(),
    "operator": Operator(
        lambda x: x.flatten(1) @ torch.linspace(-1, 1, 192 * 5).view(192, 5).to(x)
    ),
}
each = pytest.mark.parametrize("name", LINEAR)


def images(seed=0, count=3, shape=(3, 8, 8)):
    return Noise.of(seed, "images", count).normal(0, shape, torch.float64)


@each
def test_the_adjoint_is_the_adjoint(name):
    """⟨A v, u⟩ = ⟨v, Aᵀ u⟩, and the tangent of a linear map is the map."""
    measurement, x, v = LINEAR[name], images(), images(1)
    y = measurement(v)
    u = Noise.of(2, "u", len(y)).normal(0, y.shape[1:], torch.float64)
    torch.testing.assert_close(tangent(measurement, x, v), y)
    torch.testing.assert_close(dot(y, u), dot(v, adjoint(measurement, x, u)))


@each
def test_each_sample_is_measured_by_itself(name):
    x = images()
    alone = torch.cat([LINEAR[name](x[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(LINEAR[name](x), alone, rtol=1e-12, atol=1e-12)


@each
def test_what_comes_back_is_an_image_that_measures_the_same(name):
    """A(back(y)) = y, but for a blur, of which back is y, and for an operator, where it is the
    nearest along one direction."""
    measurement = LINEAR[name]
    y = measurement(images())
    image = measurement.back(y, (3, 8, 8))
    assert image.shape == (3, 3, 8, 8)
    if "blur" in name or "kernel" in name:
        assert torch.equal(image, y)
    elif name == "operator":
        assert ((measurement(image) - y).norm(dim=1) < y.norm(dim=1)).all()
        left = y - measurement(image)
        assert dot(left, measurement(image)).abs().max() < 1e-9
    else:
        torch.testing.assert_close(measurement(image), y)


def test_a_tangent_is_the_derivative():
    """Of a function that is not linear, by finite differences."""
    bent = Operator(lambda x: torch.sin(x).flatten(1).cumsum(1))
    x, v = images(), images(1)
    h = 1e-6
    slope = (bent(x + h * v) - bent(x - h * v)) / (2 * h)
    torch.testing.assert_close(tangent(bent, x, v), slope, rtol=1e-6, atol=1e-6)


def test_known_values():
    """Small cases by hand: 4 pixels averaged, luminance, a shift by a kernel, edges."""
    x = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
    assert Downsample(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    back = Downsample(2).back(Downsample(2)(x), (1, 4, 4))
    assert back[0, 0, 0].tolist() == [2.5, 2.5, 4.5, 4.5]
    colour = f64([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    assert Grey()(colour).item() == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    shift = f64([[0.0, 0.0, 1.0]])  # convolution: what was at the left is now here
    assert Blur(kernel=shift, boundary="zero")(x)[0, 0, 0].tolist() == [0, 0, 1, 2]
    assert Blur(kernel=shift)(x)[0, 0, 0].tolist() == [1, 0, 1, 2]
    assert Mask(f64([1, 0, 0, 1]))(x)[0, 0, 1].tolist() == [4, 0, 0, 7]
    filled = Mask(f64([1, 0, 0, 1])).back(x, (1, 4, 4))
    assert filled[0, 0, 1].tolist() == [4, 7.5, 7.5, 7]


def test_a_gaussian_blur_has_its_width_and_keeps_the_mean():
    """The variance of a blurred point is the width's square, and a flat image stays flat."""
    point = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    point[0, 0, 15, 15] = 1
    blurred, place = Blur(2.0)(point)[0, 0], torch.arange(31) - 15.0
    assert blurred.sum().item() == pytest.approx(1)
    assert (blurred.sum(0) * place**2).sum().item() == pytest.approx(4, rel=0.03)
    flat = torch.full((1, 2, 9, 9), 0.7, dtype=torch.float64)
    torch.testing.assert_close(Blur(1.0)(flat), flat)
    assert Blur(1.0, boundary="zero")(flat)[0, 0, 0, 0] < 0.35


def test_a_mask_without_a_known_channel_is_filled_with_the_mean_of_the_others():
    mask = Mask(f64([1, 0, 1]).view(3, 1, 1))
    x = torch.ones(1, 3, 2, 2) * f64([1.0, 5.0, 3.0]).view(1, 3, 1, 1)
    assert mask.back(mask(x), (3, 2, 2))[0, :, 0, 0].tolist() == [1.0, 2.0, 3.0]
    vector = Mask(f64([1, 0, 1]))
    assert vector.back(f64([[1.0, torch.nan, 2.0]]), (3,)).tolist() == [[1.0, 1.5, 2.0]]


def test_what_is_measured_has_its_noise_where_something_is_seen():
    noise = Noise.of(0, "read", 500)
    x = torch.ones(500, 1, 8, 8, dtype=torch.float64)
    y = measured(Mask(HALF, std=0.25), x, noise)
    assert torch.equal(y[..., 4:], torch.zeros(500, 1, 8, 4, dtype=torch.float64))
    assert (y[..., :4] - 1).std().item() == pytest.approx(0.25, rel=0.03)
    alone = measured(Mask(HALF, std=0.25), x[7:8], noise.of_samples(slice(7, 8)))
    assert torch.equal(alone, y[7:8])
    assert torch.equal(measured(Downsample(2), x, noise), Downsample(2)(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(HALF, std=-0.1), "noise std must be 0 or more, got -0.1"),
        (lambda: Grey(std=float("nan")), "noise std must be 0 or more, got nan"),
        (lambda: Mask(0 * HALF), "hides every pixel; it must be 1 where x0 is seen"),
        (lambda: Mask(HALF)(images(shape=(3, 8, 6))), r"mask of shape \[8\].*\[3, 8, 6\]"),
        (lambda: Mask(torch.ones(2, 3, 8, 8))(images()), r"does not fit samples of shape"),
        (lambda: Blur(), "either a width in pixels or a kernel"),
        (lambda: Blur(1.0, kernel=torch.ones(3, 3)), "either a width in pixels or a kernel"),
        (lambda: Blur(0.0), "width must be above 0 pixels, got 0"),
        (lambda: Blur(kernel=torch.ones(2, 3)), r"two odd sides, such as 5 by 5; got \[2, 3\]"),
        (lambda: Blur(1.0, boundary="wrap"), "reflect or zero, not 'wrap'"),
        (lambda: Blur(3.0)(images()), "reaches 9 pixels is too wide for images of 8 by 8"),
        (lambda: Blur(1.0)(images(shape=(4,))), r"takes images \[C, H, W\], not.*\[4\]"),
        (lambda: Downsample(1), "a factor of 2 or more, got 1"),
        (lambda: Downsample(3)(images()), "8 by 8 cannot be down-sampled by 3"),
        (lambda: Grey()(images(shape=(1, 8, 8))), r"takes images \[3, H, W\], not.*\[1, 8, 8\]"),
        (lambda: Operator(torch.sum)(images()), "must be that of the batch"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
