"""Nets of autoencoders: the choices for `nets`, each an encoder and a decoder that mirror.

    dense   flat: hidden layers of a sample laid out as a vector, for data of any shape
    conv    residual blocks at each size of the picture, halved from one to the next; the code keeps
            the layout, or is flat

A choice knows sizes only; `build` is told the shape of one sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from ornstein.choice import Choice
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


class Dense(Choice):
    """Hidden layers of these widths on the way in, and the same backwards on the way out; none:
    one linear layer each way.

    mirrored: weights of the decoder start as those of the encoder transposed, and biases so that
    what is black says nothing: as tied weights of [0, 1] data would.
    """

    kind: Literal["dense"] = "dense"
    hidden: tuple[int, ...] = Field((512, 256), description="widths, the sample's side first")
    activation: Literal["silu", "relu", "tanh", "softplus"] = "silu"
    mirrored: bool = Field(False, description="the decoder starts as the encoder turned round")

    @field_validator("hidden")
    @classmethod
    def _positive(cls, hidden: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= width <= 65536 for width in hidden):
            raise ValueError(f"hidden layers are 1 to 65536 wide; got {list(hidden)}")
        return hidden

    def build(
        self, shape: tuple[int, ...], units: int, features: int, multiplier: int, low: float = 0.0
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        """Encoder x [B, *shape] -> [B, features], decoder z [B, units] -> [B, multiplier·C, *],
        and the shape of z. low: what is black in x."""
        from ornstein.nn.codec import DenseDecoder, DenseEncoder, mirror

        encoder = DenseEncoder(shape, self.hidden, features, self.activation)
        out = (multiplier * shape[0], *shape[1:])
        decoder = DenseDecoder(units, self.hidden[::-1], out, self.activation)
        if self.mirrored:
            mirror(encoder.net, decoder.net, low)
        return encoder, decoder, (units,)


class Conv(Choice):
    """Residual blocks, for images of any size: sizes that cannot be halved are rounded up.

    channels: widths, the finest size first; from one to the next the picture is halved. flat: the
    code is one vector; otherwise it keeps the layout, reduced by 2^(levels − 1).
    """

    kind: Literal["conv"] = "conv"
    channels: tuple[int, ...] = Field((16, 32, 64), description="of each size, the finest first")
    blocks: int = Field(1, ge=1, le=64, description="residual blocks at each size")
    flat: bool = Field(True, description="one vector; false: the code keeps the picture's layout")
    patch: int = Field(1, ge=1, le=16, description="side of the squares of pixels seen as one")

    @field_validator("channels")
    @classmethod
    def _positive(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not channels or not all(1 <= width <= 8192 for width in channels):
            raise ValueError(f"at least one size, of 1 to 8192 channels; got {list(channels)}")
        return channels

    def build(
        self, shape: tuple[int, ...], units: int, features: int, multiplier: int, low: float = 0.0
    ) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
        """As `Dense.build`, with features and z laid out [*, h, w] where it is not flat.

        Raises: ConfigError for data that are no images, or are too small for so many sizes.
        """
        from ornstein.nn.codec import ConvDecoder, ConvEncoder, reduced

        if len(shape) != 3:
            raise ConfigError(
                f"data of shape {shape} are no images (C, H, W), which convolutions need: "
                "write model.nets=dense"
            )
        if min(shape[1:]) < self.patch * 2 ** (len(self.channels) - 1):
            raise ConfigError(
                f"images of {shape[1]} x {shape[2]} pixels cannot be halved "
                f"{len(self.channels) - 1} times in patches of {self.patch}; "
                "write model.nets.channels with fewer sizes"
            )
        encoder = ConvEncoder(shape, self.channels, self.blocks, features, self.flat, self.patch)
        out = (multiplier * shape[0], *shape[1:])
        decoder = ConvDecoder(units, self.channels, self.blocks, out, self.flat, self.patch)
        layout = () if self.flat else reduced(shape, len(self.channels), self.patch)
        return encoder, decoder, (units, *layout)


CodecNet = Annotated[Dense | Conv, Field(discriminator="kind")]
