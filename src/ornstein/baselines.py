"""Restorations without a diffusion model: what one has to beat, from y = A x + s z, z ~ N(0, I).

    linear     m + C Aᵀ (A C Aᵀ + s² I)⁻¹ (y − A m)     the mean of p(x | y) for data N(m, C), and
                                                        of all linear functions of y the best one
    wiener     the same for stationary data and a cyclic blur, where Fourier modes stand alone:
               m + Ĥ* S/(|Ĥ|² S + s²) (y − A m)̂          S the power spectrum of x − m
    harmonic   what is missing solves Laplace's equation, the known pixels around it being given
    bicubic    the cubic spline through the pixels of a small image
    mean       what is missing is the mean of the data

m, C and S are of training data. C is drawn toward a multiple of the identity, by as much as is
optimal for Gaussian samples of this number, since a covariance of few images fits those alone (Y.
Chen, A. Wiesel, Y. Eldar, A. Hero 2010, "Shrinkage algorithms for MMSE covariance estimation",
arXiv:0907.4698, eq 23).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 3072  # values of an image whose covariance is kept: 3 x 32 x 32
_PART = 1024  # images that are worked on at a time
_EXACT = 1e-10  # of the variance of y: a measurement without noise is as good as one with this

Linear = Callable[[Tensor], Tensor]
"""A of a measurement: [B, *shape] -> [B, *]."""


class Moments(NamedTuple):
    """What is known of the data, float64. mean: [*shape]. covariance: [D, D], None for images of
    more than `LARGEST` values. spectrum: [C, H, W], variances of the Fourier modes of each
    channel, so that their mean over all modes is the mean variance of a pixel."""

    mean: Tensor
    covariance: Tensor | None
    spectrum: Tensor


def moments(x: Tensor) -> Moments:
    """Of images x [N, C, H, W], N at least 2."""
    count, shape = len(x), x.shape[1:]
    size = math.prod(shape)
    parts = [x[start : start + _PART] for start in range(0, count, _PART)]
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    spectrum = torch.zeros(shape, dtype=torch.float64)
    outer = torch.zeros(size, size, dtype=torch.float64) if size <= LARGEST else None
    for part in parts:
        rest = part.double() - mean
        spectrum += torch.fft.fft2(rest).abs().square().sum(0) / (count * shape[-1] * shape[-2])
        if outer is not None:
            outer.addmm_(rest.flatten(1).T, rest.flatten(1))
    covariance = None if outer is None else _shrunk(outer / count, count)
    return Moments(mean, covariance, spectrum)


def _shrunk(covariance: Tensor, count: int) -> Tensor:
    """(1 − ρ) S + ρ (tr S/D) I with the ρ of oracle approximating shrinkage."""
    size = len(covariance)
    trace, squares = covariance.trace(), covariance.square().sum()
    above = (1 - 2 / size) * squares + trace**2
    below = (count + 1 - 2 / size) * (squares - trace**2 / size)
    share = min(1.0, float(above / below)) if below > 0 else 1.0
    shrunk = (1 - share) * covariance
    shrunk.diagonal().add_(share * float(trace) / size)
    return shrunk


def linear(known: Moments, measure: Linear, std: float, y: Tensor) -> Tensor:
    """The best linear estimate [B, *shape] of x from y, `measure` being linear, s = `std`."""
    assert known.covariance is not None
    shape, size = known.mean.shape, known.mean.numel()
    units = torch.eye(size, dtype=torch.float64).view(size, *shape)
    # A Cᵀ row by row, C being symmetric; and A itself for its other side.
    matrix = measure(units).flatten(1)
    both = measure(known.covariance.view(size, *shape)).flatten(1)  # C Aᵀ
    of_y = both.T @ matrix
    ridge = max(std**2, _EXACT * float(of_y.diagonal().max()))
    of_y.diagonal().add_(ridge)
    rest = (y.double() - measure(known.mean[None])).flatten(1)
    gain: Tensor = torch.linalg.solve(of_y, rest.T)
    return known.mean + (both @ gain).T.reshape(-1, *shape)


def wiener(known: Moments, measure: Linear, std: float, y: Tensor) -> Tensor:
    """The Wiener filter of images y [B, C, H, W], `measure` being a blur of each channel."""
    height, width = known.mean.shape[-2:]
    impulse = torch.zeros_like(known.mean)
    impulse[..., height // 2, width // 2] = 1
    response = measure(impulse[None])[0].roll((-(height // 2), -(width // 2)), (-2, -1))
    transfer = torch.fft.fft2(response)
    below = transfer.abs().square() * known.spectrum + std**2
    gain = transfer.conj() * known.spectrum / below.clamp(min=_EXACT * float(below.max()))
    rest = y.double() - measure(known.mean[None])
    filtered: Tensor = torch.fft.ifft2(gain * torch.fft.fft2(rest)).real
    return known.mean + filtered


def filled(known: Moments, seen: Tensor, y: Tensor) -> Tensor:
    """y [B, *shape] where it is seen (1, elsewhere 0), and the mean of the data elsewhere."""
    return torch.where(seen.bool(), y.double(), known.mean)


def harmonic(seen: Tensor, y: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Laplace's equation Σ (u − u of a neighbour) = 0 in each unseen pixel of y [B, C, H, W],
    where `seen` is 0; at the border of the image there are fewer neighbours.

    By conjugate gradients, to this share of the first residual.
    """
    known = seen.to(torch.float64).expand_as(y)
    free = 1 - known
    u = known * y.double()
    rest = -free * _laplace(u)
    way, square = rest.clone(), _dot(rest, rest)
    enough = tolerance**2 * square
    for _ in range(20 * sum(y.shape[-2:])):
        if (square <= enough).all():
            break
        bent = free * _laplace(way)
        step = square / _dot(way, bent).clamp(min=1e-300)
        u, rest = u + step * way, rest - step * bent
        before, square = square, _dot(rest, rest)
        way = rest + square / before.clamp(min=1e-300) * way
    return u


def bicubic(y: Tensor, size: tuple[int, int]) -> Tensor:
    """y [B, C, h, w] enlarged to `size`."""
    return torch.nn.functional.interpolate(
        y.double(), size=size, mode="bicubic", align_corners=False
    )


def _laplace(u: Tensor) -> Tensor:
    """Of each pixel, the sum of its differences to its neighbours."""
    out = torch.zeros_like(u)
    for axis in (-2, -1):
        step = u.diff(dim=axis)
        length = step.shape[axis]
        out.narrow(axis, 0, length).sub_(step)
        out.narrow(axis, 1, length).add_(step)
    return out


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each channel of each image, [B, C, 1, 1]."""
    return (a * b).sum((-2, -1), keepdim=True)
