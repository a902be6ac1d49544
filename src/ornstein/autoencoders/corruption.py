"""What is done to a sample before it is encoded, so that it has to be restored (notes eq 2).

    masking           x̃ = x, but with probability p a pixel is black
    gaussian          x̃ = x + std ε,  ε ~ N(0, I)
    salt_and_pepper   x̃ = x, but with probability p a pixel is black or white, either one as likely

P. Vincent, H. Larochelle, Y. Bengio, P.-A. Manzagol, "Extracting and composing robust features
with denoising autoencoders", ICML 2008; the latter two are from §3.3 of their "Stacked denoising
autoencoders", JMLR 11, 2010. To restore x its code has to hold how pixels go together, which
copying does not.

x is at the model's scale. A pixel is masked or flipped as a whole, all its channels alike: one
channel would give away the others. In data that are no images every number stands for itself.
Gaussian noise is of each number, and is not clipped to the range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import DataInfo
    from ornstein.noise import Noise


class Masking(Choice):
    """With probability p a pixel is `value`.

    value: null for the low end of the data's range, which is black, and the 0 of the papers, who
    scale to [0, 1]; where data have no range, for 0, their mean once they are standardised.
    """

    kind: Literal["masking"] = "masking"
    p: float = Field(0.25, ge=0, le=1, description="chance that a pixel is masked")
    value: float | None = Field(None, description="at the model's scale; null: black")

    def __call__(self, x: Tensor, noise: Noise, info: DataInfo) -> Tensor:
        """x [B, *] corrupted; info: of x, at its scale."""
        black = info.range[0] if info.range else 0.0
        value = black if self.value is None else self.value
        return x.masked_fill(_of_pixels(info, noise) < self.p, value)

    def check(self, info: DataInfo) -> None:
        """Any data can be masked."""


class GaussianNoise(Choice):
    """N(0, std²) is added to each number; std at the model's scale, where a range is 2 wide."""

    kind: Literal["gaussian"] = "gaussian"
    std: float = Field(0.5, ge=0, description="at the model's scale")

    def __call__(self, x: Tensor, noise: Noise, info: DataInfo) -> Tensor:
        """x [B, *] corrupted; info: of x, at its scale."""
        return x + self.std * noise.normal(0, x.shape[1:], x.dtype)

    def check(self, info: DataInfo) -> None:
        """Noise can be added to any data."""


class SaltAndPepper(Choice):
    """With probability p a pixel is at an end of the range, at either one as likely."""

    kind: Literal["salt_and_pepper"] = "salt_and_pepper"
    p: float = Field(0.25, ge=0, le=1, description="chance that a pixel is black or white")

    def __call__(self, x: Tensor, noise: Noise, info: DataInfo) -> Tensor:
        """x [B, *] corrupted; info: of x, at its scale. Raises: as `check`."""
        low, high = _ends(info)
        u = _of_pixels(info, noise)  # one number says both whether and to which end
        return x.masked_fill(u < self.p, high).masked_fill(u < 0.5 * self.p, low)

    def check(self, info: DataInfo) -> None:
        """Raises: ConfigError for data without a range, which has no ends."""
        _ends(info)


Corruption = Annotated[Masking | GaussianNoise | SaltAndPepper, Field(discriminator="kind")]


def _ends(info: DataInfo) -> tuple[float, float]:
    if info.range is None:
        raise ConfigError(
            "salt and pepper are the ends of the data's range, and these data have none; write "
            "corruption.kind=masking or corruption.kind=gaussian"
        )
    return info.range


def _of_pixels(info: DataInfo, noise: Noise) -> Tensor:
    """Uniform numbers that broadcast to samples, one for a pixel of images [C, H, W], else for
    each number. Compared with p, they know 23 bits of it."""
    shape = (1, *info.shape[1:]) if info.kind == "image" else info.shape
    return noise.masking(0, shape)
