"""PSNR and SSIM: exact values, closed forms, sums by hand, and torchmetrics."""

import math
import warnings

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.metrics.reconstruction import K1, K2, psnr, ssim, window
from ornstein.noise import Noise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )


def images(shape, count=4, seed=0, span=255.0):
    """Smooth random images, so that neighbours correlate as those of pictures do."""
    x = Noise.of(seed, "images", count).uniform(0, shape, torch.float64)
    return span * (0.5 * x + 0.25 * x.roll(1, -1) + 0.25 * x.roll(1, -2))


def test_what_is_equal_has_no_error():
    x = images((3, 16, 20))
    assert torch.equal(psnr(x, x, 255.0), torch.full((4,), math.inf, dtype=torch.float64))
    torch.testing.assert_close(ssim(x, x, 255.0), torch.ones(4, dtype=torch.float64))


def test_a_shift_of_all_values_in_closed_form():
    """An error d everywhere is 20 log10(span/d) dB. A shift of what is constant leaves the factor
    of the means; a shift of anything leaves σ alone."""
    shifts = torch.tensor([1.0, 16.0, 255.0], dtype=torch.float64).view(3, 1, 1, 1)
    level, span = 40.0, 255.0
    x = torch.full((3, 2, 12, 13), level, dtype=torch.float64)
    expected = 20 * (span / shifts.flatten()).log10()
    torch.testing.assert_close(psnr(x + shifts, x, span), expected, rtol=1e-12, atol=1e-12)
    c1 = (K1 * span) ** 2
    other = level + shifts.flatten()
    light = (2 * level * other + c1) / (level**2 + other**2 + c1)
    torch.testing.assert_close(ssim(x + shifts, x, span), light, rtol=1e-12, atol=1e-12)
    # Means of 0 on both sides: x and −x have the covariance −σ², and the rest is 1.
    wave = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(6, 6).view(1, 1, 6, 12)
    found = ssim(10 * wave, 10 * wave + 3, span)
    weights = window(5)
    mean = 10 * abs(float((weights * wave[0, 0, 0, :5]).sum()))
    lights = [(2 * m * (m + 3) + c1) / (m**2 + (m + 3) ** 2 + c1) for m in (mean, -mean)]
    assert float(found) == pytest.approx(sum(lights) / 2, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 3, 9), (2, 5, 5), (1, 1, 7), (1, 14, 11)])
def test_windows_summed_by_hand(shape):
    """Each window by NumPy, of the largest odd side that fits into a small image."""
    x, y, span = images(shape, 2, span=16.0), images(shape, 2, 1, 16.0), 16.0
    channels, height, width = shape
    side = max(k for k in (1, 3, 5, 7, 9, 11) if k <= min(height, width))
    place = np.arange(side) - side // 2
    weights = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    for n in range(2):
        values = []
        for c in range(channels):
            for i in range(height - side + 1):
                for j in range(width - side + 1):
                    a, b = (t[n, c, i : i + side, j : j + side].numpy() for t in (x, y))
                    ma, mb = (weights * a).sum(), (weights * b).sum()
                    va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                    vab = (weights * (a - ma) * (b - mb)).sum()
                    light = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
                    values.append(light * (2 * vab + c2) / (va + vb + c2))
        assert float(ssim(x, y, span)[n]) == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 40)])
def test_torchmetrics_says_the_same(shape):
    x, y = images(shape), images(shape, seed=1)
    y = 0.7 * x + 0.3 * y
    # Theirs goes on over the edges, where the image is reflected; the paper's does not.
    _, theirs = structural_similarity_index_measure(
        y, x, data_range=255.0, reduction="none", return_full_image=True
    )
    inside = theirs[..., 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(ssim(y, x, 255.0), inside, rtol=1e-10, atol=0)
    theirs = peak_signal_noise_ratio(y, x, data_range=255.0, reduction="none", dim=(1, 2, 3))
    # Theirs multiplies by 10/ln 10 as a float32.
    torch.testing.assert_close(psnr(y, x, 255.0), theirs, rtol=1e-7, atol=0)


def test_units_and_sides_do_not_matter():
    x, y = images((1, 12, 12)), images((1, 12, 12), seed=1)
    for metric in (psnr, ssim):
        found = metric(x, y, 255.0)
        torch.testing.assert_close(metric(x / 255, y / 255, 1.0), found, rtol=1e-9, atol=0)
        moved = [2 * t / 255 - 1 for t in (x, y)]
        low = {"low": -1.0} if metric is ssim else {}
        torch.testing.assert_close(metric(*moved, 2.0, **low), found, rtol=1e-9, atol=0)
        torch.testing.assert_close(metric(y, x, 255.0), found, rtol=1e-12, atol=0)
        assert found.dtype == metric(x.float(), y.float(), 255.0).dtype == torch.float64
        alone = torch.cat([metric(x[i : i + 1], y[i : i + 1], 255.0) for i in range(len(x))])
        torch.testing.assert_close(alone, found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_compared(metric):
    x = images((1, 8, 8))
    with pytest.raises(ConfigError, match=r"not \[4, 1, 8, 8\] and \[3, 1, 8, 8\]"):
        metric(x, x[:3], 1.0)
    with pytest.raises(ConfigError, match="as many samples"):
        metric(x[:0], x[:0], 1.0)
    for span in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="a number above 0"):
            metric(x, x, span)
    with pytest.raises(ConfigError, match=r"of images \[N, C, H, W\]"):
        ssim(x[:, 0], x[:, 0], 1.0)
