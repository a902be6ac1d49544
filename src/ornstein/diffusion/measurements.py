"""What was seen of an image: y = A(x0) + std n, n ~ N(0, I).

A measurement is the map A, of clean samples x0 [B, *] to numbers y [B, *], with the noise level at
which they were read. The posterior (`diffusion/inverse.py`) asks for three things:

    A(x0)        a call; differentiable, linear or not, each sample by itself
    seen(y)      y without what says nothing about x0: pixels behind a mask
    back(y)      an image that a person would take for y: the place from which restoring starts

Of the linear ones, Aᵀ and A itself on a tangent are taken by automatic differentiation, `adjoint`
and `tangent`, so that a new measurement is one function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in what the eye calls bright (ITU-R BT.601)."""


class Measurement(Protocol):
    """A and std of y = A(x0) + std n."""

    @property
    def std(self) -> float:
        """The standard deviation of the noise in y, at the scale of x0; 0: y is exact."""

    def __call__(self, x0: Tensor) -> Tensor:
        """A(x0), without noise."""

    def seen(self, y: Tensor) -> Tensor:
        """y with zeros where it says nothing about x0."""

    def back(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """y [B, *] as a sample of this shape, [B, *shape], as well as can be done without a model;
        of y without noise, A gives y again (a blur apart)."""


class Mask:
    """Inpainting: the pixels where `mask` is true (or not 0) are known, the others come as 0.

    mask: broadcasts to the shape of a sample, without the batch: [H, W], [1, H, W], [C, H, W].
    Raises: ConfigError where std is negative or nothing is known.
    """

    def __init__(self, mask: Tensor, std: float = 0.0) -> None:
        self.mask, self.std = mask != 0, checked_std(std)
        if not self.mask.any():
            raise ConfigError("the mask hides every pixel; it must be 1 where x0 is seen")

    def __call__(self, x0: Tensor) -> Tensor:
        return self.seen(x0)

    def seen(self, y: Tensor) -> Tensor:
        return torch.where(self.over(y), y, 0.0)

    def back(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """The rest is filled with the mean of what is known: of the channel, or of all if none of
        it is known."""
        mask = self.over(y)
        known, count = torch.where(mask, y, 0.0), mask.to(y.dtype).expand_as(y)
        places = tuple(range(2, y.dim()))
        everywhere = known.flatten(1).sum(1) / count.flatten(1).sum(1)
        mean = everywhere.view(-1, *[1] * (y.dim() - 1)).expand_as(y)
        if places:
            seen = count.sum(places, keepdim=True)
            mean = torch.where(seen > 0, known.sum(places, keepdim=True) / seen.clamp(min=1), mean)
        return torch.where(mask, y, mean)

    def over(self, x: Tensor) -> Tensor:
        """The mask, ready to be taken with x [B, *]. Raises: ConfigError where it does not fit."""
        own, sample = self.mask.shape, x.shape[1:]
        ends = zip(reversed(own), reversed(sample), strict=False)
        if len(own) > len(sample) or any(side not in (1, full) for side, full in ends):
            raise ConfigError(
                f"a mask of shape {list(own)} does not fit samples of shape {list(sample)}; give "
                "it their shape, or that of their last dimensions"
            )
        return self.mask.to(x.device)


class Blur:
    """Convolution of each channel, by a Gaussian of `width` (a standard deviation in pixels) or by
    a `kernel` [h, w] of odd sides, which sums to what it likes.

    boundary: what lies beyond the edge, the image reflected in it or zero.
    Raises: ConfigError where there is not one of the two, or where they cannot work.
    """

    def __init__(
        self,
        width: float | None = None,
        std: float = 0.0,
        kernel: Tensor | None = None,
        boundary: Literal["reflect", "zero"] = "reflect",
    ) -> None:
        self.std, self.boundary = checked_std(std), boundary
        if (width is None) == (kernel is None):
            raise ConfigError("a blur takes either a width in pixels or a kernel; give one of them")
        if boundary not in ("reflect", "zero"):
            raise ConfigError(f"a blur's boundary is reflect or zero, not {boundary!r}")
        if kernel is None:
            assert width is not None
            if not 0 < width < math.inf:
                raise ConfigError(f"a blur's width must be above 0 pixels, got {width:g}")
            reach = math.ceil(3 * width)
            line = torch.arange(-reach, reach + 1, dtype=torch.float64)
            line = torch.exp(-0.5 * (line / width).square())
            kernel = torch.outer(line, line) / line.sum().square()
        if kernel.dim() != 2 or not all(side % 2 for side in kernel.shape):
            raise ConfigError(
                f"a blur's kernel has two odd sides, such as 5 by 5; got {list(kernel.shape)}"
            )
        self.kernel = kernel

    def __call__(self, x0: Tensor) -> Tensor:
        _images(x0, "a blur")
        top, left = (side // 2 for side in self.kernel.shape)
        if self.boundary == "reflect" and (top >= x0.shape[2] or left >= x0.shape[3]):
            raise ConfigError(
                f"a blur that reaches {max(top, left)} pixels is too wide for images of "
                f"{x0.shape[2]} by {x0.shape[3]} that are reflected at their edges; give a smaller "
                "width, or boundary='zero'"
            )
        mode = "reflect" if self.boundary == "reflect" else "constant"
        around = torch.nn.functional.pad(x0, (left, left, top, top), mode=mode)
        channels = x0.shape[1]
        weight = self.kernel.to(x0).expand(channels, 1, *self.kernel.shape)
        return torch.nn.functional.conv2d(around, weight.flip(2, 3), groups=channels)

    def seen(self, y: Tensor) -> Tensor:
        return y

    def back(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """y itself."""
        return y


class Downsample:
    """The mean of each square of `factor` by `factor` pixels, for super-resolution.

    Its pseudo-inverse, and `back`, repeats each pixel. Raises: ConfigError for a factor below 2.
    """

    def __init__(self, factor: int, std: float = 0.0) -> None:
        self.factor, self.std = factor, checked_std(std)
        if factor < 2:
            raise ConfigError(f"down-sampling takes a factor of 2 or more, got {factor}")

    def __call__(self, x0: Tensor) -> Tensor:
        _images(x0, "down-sampling")
        if any(side % self.factor for side in x0.shape[2:]):
            raise ConfigError(
                f"images of {x0.shape[2]} by {x0.shape[3]} cannot be down-sampled by "
                f"{self.factor}; give a factor that divides both sides"
            )
        return torch.nn.functional.avg_pool2d(x0, self.factor)

    def seen(self, y: Tensor) -> Tensor:
        return y

    def back(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Grey:
    """The luminance of red, green and blue, [B, 1, H, W], for colouring."""

    def __init__(self, std: float = 0.0) -> None:
        self.std = checked_std(std)

    def __call__(self, x0: Tensor) -> Tensor:
        _images(x0, "grey", channels=3)
        return torch.einsum("bchw,c->bhw", x0, x0.new_tensor(LUMINANCE)).unsqueeze(1)

    def seen(self, y: Tensor) -> Tensor:
        return y

    def back(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """A grey image of three channels."""
        return y.expand(-1, 3, -1, -1)


class Operator:
    """Any differentiable function of x0 [B, *], linear or not, that treats each sample by itself.

    function: x0 [B, *] -> [B, *]. `back` takes the best step from 0 along Aᵀ y.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], std: float = 0.0) -> None:
        self.function, self.std = function, checked_std(std)

    def __call__(self, x0: Tensor) -> Tensor:
        y = self.function(x0)
        if y.dim() < 1 or len(y) != len(x0):
            raise ConfigError(
                f"a measurement of {len(x0)} samples gave {list(y.shape)} numbers; its first "
                "dimension must be that of the batch"
            )
        return y

    def seen(self, y: Tensor) -> Tensor:
        return y

    def back(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        zero = y.new_zeros(len(y), *shape)
        left = y - self(zero)
        way = adjoint(self, zero, left)
        ahead = tangent(self, zero, way)
        step = dot(left, ahead) / dot(ahead, ahead).clamp(min=torch.finfo(y.dtype).tiny)
        return step.view(-1, *[1] * len(shape)) * way


def measured(measurement: Measurement, x0: Tensor, noise: Noise) -> Tensor:
    """y of x0 [B, *], with noise; 0 where it says nothing about x0."""
    y = measurement(x0)
    if measurement.std == 0:
        return y
    z = noise.normal(0, y.shape[1:], y.dtype).to(y.device)
    return measurement.seen(y + measurement.std * z)


def adjoint(measurement: Callable[[Tensor], Tensor], x0: Tensor, u: Tensor) -> Tensor:
    """Jᵀ u, J being the Jacobian of A at x0: what u [B, *y] has to say about x0 [B, *]."""
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        (pulled,) = torch.autograd.grad(measurement(x0), x0, u)
    return pulled


def tangent(measurement: Callable[[Tensor], Tensor], x0: Tensor, v: Tensor) -> Tensor:
    """J v: how y moves as x0 moves by v [B, *]."""
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        return pushing(measurement(x0), x0)(v)


def pushing(y: Tensor, x0: Tensor, again: bool = False) -> Callable[[Tensor], Tensor]:
    """v ↦ J v for the J = ∂y/∂x0 of a graph that leads from x0 to y.

    Jᵀ u is linear in u, so that its pull-back is J: reverse mode twice (J. Townsend 2017, "A new
    trick for calculating Jacobian vector products"). Forward mode would want every operation of a
    measurement to have it. again: whether J v will be differentiated in turn.
    """
    with torch.enable_grad():
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x0, u, create_graph=True)

    def push(v: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True, create_graph=again)
        return pushed

    return push


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, [B]."""
    return (a * b).flatten(1).sum(1)


def checked_std(std: float) -> float:
    """Raises: ConfigError where it is no noise level."""
    if not 0 <= std < math.inf:
        raise ConfigError(f"a measurement's noise std must be 0 or more, got {std:g}")
    return float(std)


def _images(x: Tensor, who: str, channels: int | None = None) -> None:
    if x.dim() != 4 or channels not in (None, x.shape[1]):
        want = "[C, H, W]" if channels is None else f"[{channels}, H, W]"
        raise ConfigError(f"{who} takes images {want}, not samples of shape {list(x.shape[1:])}")
