"""Which network: the choices that a recipe or the command line can write for `network`.

A choice knows sizes only; `build` is told the shape of one sample and makes the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ornstein.choice import Choice
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from ornstein.nn.mlp import MLPModule
    from ornstein.nn.unet import UNetModule


class UNet(Choice):
    """The U-Net of DDPM, for images of any size (`nn/unet.py`).

    DDPM's CIFAR-10 model is channels [128,256,256,256], attention [2], dropout 0.1.
    """

    kind: Literal["unet"] = "unet"
    channels: tuple[int, ...] = Field(
        (32, 64, 128), description="width of each level, the finest first"
    )
    blocks: int = Field(2, ge=1, le=64, description="residual blocks a level on the way down")
    attention: tuple[int, ...] = Field(
        (), description="reductions of the image at which pixels attend to each other: 1, 2, 4, …"
    )
    middle_attention: bool = Field(True, description="attention at the coarsest level's middle")
    head_width: int = Field(64, ge=1, description="channels of an attention head, about")
    dropout: float = Field(0.0, ge=0, lt=1)
    patch: int = Field(1, ge=1, le=16, description="side of the squares of pixels seen as one")

    @field_validator("channels")
    @classmethod
    def _positive(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not channels or not all(1 <= width <= 8192 for width in channels):
            raise ValueError(
                f"a U-Net needs at least one level, of 1 to 8192 channels; got {list(channels)}"
            )
        return channels

    @model_validator(mode="after")
    def _levels_exist(self) -> UNet:
        reductions = [2**level for level in range(len(self.channels))]
        if not set(self.attention) <= set(reductions):
            raise ValueError(
                f"attention {list(self.attention)} names reductions that {len(self.channels)} "
                f"levels of channels do not have; they are {reductions}"
            )
        return self

    def build(
        self,
        shape: tuple[int, ...],
        out_multiplier: int = 1,
        *,
        vector: int | None = None,
        image: int = 0,
    ) -> UNetModule:
        """The network of images (C, H, W), with `out_multiplier`·C channels out.

        vector, image: width of `cond.vector` and channels of `cond.image`, where there are any.
        """
        from ornstein.nn.unet import UNetModule

        if len(shape) != 3:
            raise ConfigError(
                f"data of shape {shape} is {_named(shape)}, and a U-Net takes images (C, H, W): "
                "write model.network=mlp"
            )
        return UNetModule(
            shape[0],
            shape[0] * out_multiplier,
            channels=self.channels,
            blocks=self.blocks,
            attention=self.attention,
            middle_attention=self.middle_attention,
            head_width=self.head_width,
            dropout=self.dropout,
            image=image,
            vector=vector,
            patch=self.patch,
        )


class MLP(Choice):
    """A residual network of vectors (`nn/mlp.py`)."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(256, ge=1, le=65536, description="of the hidden vectors")
    depth: int = Field(4, ge=1, le=1000, description="residual blocks")
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(
        self, shape: tuple[int, ...], out_multiplier: int = 1, *, vector: int | None = None
    ) -> MLPModule:
        """The network of vectors (D,), with `out_multiplier`·D numbers out.

        vector: width of `cond.vector`, where there is one that is not as wide as the network.
        """
        from ornstein.nn.mlp import MLPModule

        if len(shape) != 1:
            raise ConfigError(
                f"data of shape {shape} is {_named(shape)}, and an MLP takes vectors (D,): "
                "write model.network=unet"
            )
        return MLPModule(
            shape[0], shape[0] * out_multiplier, self.width, self.depth, self.dropout, vector
        )


Network = Annotated[UNet | MLP, Field(discriminator="kind")]


def _named(shape: tuple[int, ...]) -> str:
    return {1: "a vector", 3: "an image"}.get(len(shape), f"an array of {len(shape)} dimensions")
