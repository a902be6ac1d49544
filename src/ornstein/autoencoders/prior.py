"""A prior over the codes of a trained codec, as it is chosen: one level of them, place by place.

    p(k) = Π_levels p(k_level | coarser levels, y)        coarsest first, a run for each level

(A. Razavi, A. van den Oord, O. Vinyals 2019, "Generating diverse high-fidelity images with
VQ-VAE-2", arXiv:1906.00446, §3.2; notes fig 1-10; of one level, A. van den Oord et al. 2017,
arXiv:1711.00937, §3.3.) The codec is that of the recipe's encoding, through which data are seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from ornstein.choice import Choice, Load, RunRef
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from ornstein.autoencoders.discrete import Level
    from ornstein.autoencoders.prior_model import CodePriorModule
    from ornstein.data.info import DataInfo, Measure


class PixelCNN(Choice):
    """A gated PixelCNN (`nn/pixelcnn.py`).

    kernel: of a convolution if it saw both sides. attention: whether places attend to all earlier
    ones, in the middle and at the end; without it a place sees layers · (kernel // 2) columns to
    either side. Razavi et al. train with dropout, since priors learn their data by heart.
    """

    channels: int = Field(64, ge=1, le=8192)
    layers: int = Field(6, ge=1, le=1000, description="gated layers")
    kernel: Literal[3, 5, 7, 9, 11] = 3
    attention: bool = True
    head_width: int = Field(32, ge=1, description="channels of an attention head, about")
    dropout: float = Field(0.1, ge=0, lt=1)


class CodePrior(Choice):
    """p(k_level | coarser levels, class) of one level of a codec's codes.

    codec: the run that the recipe's encoding names. level: which one, the coarsest first. given:
    the run of the prior of the next coarser level, which is drawn first; null for level 0. classes:
    whether the class is known to it; null: where the data have any.
    """

    kind: Literal["code_prior"] = "code_prior"
    codec: RunRef
    level: int = Field(0, ge=0, le=100, description="0: the coarsest, or the only one")
    given: RunRef | None = Field(None, description="the prior of the level before")
    network: PixelCNN = PixelCNN()
    classes: bool | None = Field(None, description="null: where the data have classes")

    @model_validator(mode="after")
    def _given_what_comes_before(self) -> Self:
        if self.level > 0 and self.given is None:
            raise ValueError(
                f"codes of level {self.level} are drawn after those of level {self.level - 1}; "
                "write model.given.path= with the run of a prior of these"
            )
        if self.level == 0 and self.given is not None:
            raise ValueError(
                "nothing is coarser than level 0; write model.given=null, or the level of this "
                "prior as model.level=1"
            )
        return self

    def fitted(self, info: DataInfo, farthest: Measure | None = None) -> CodePrior:
        """This choice with `classes` filled in, if that was left to the data."""
        if self.classes is not None:
            return self
        return self.model_copy(update={"classes": bool(info.classes)})

    def build(self, info: DataInfo, load: Load) -> CodePriorModule:
        """The untrained model. info: of the codes. Raises: ConfigError where codec, codes and the
        prior of the coarser level do not go together."""
        from ornstein.autoencoders.prior_model import CodePriorModule

        levels = _levels(load(self.codec), self.codec)
        count = sum(one.places for one in levels)
        if info.shape != (count,):
            raise ConfigError(
                f"the codec {self.codec.path} has {count} codes for a sample, and the data have "
                f"samples of shape {list(info.shape)}; name that codec in encoding.codec, too, "
                "with encoding.form=codes"
            )
        if self.level >= len(levels):
            raise ConfigError(
                f"the codec {self.codec.path} has {len(levels)} level"
                f"{'s' if len(levels) > 1 else ''} of codes, numbered from 0; got "
                f"model.level={self.level}"
            )
        classes = self.fitted(info).classes
        if classes and not info.classes:
            raise ConfigError("the data have no classes; write model.classes=false")
        return CodePriorModule(
            levels[: self.level + 1],
            self.network,
            len(info.classes) if classes else 0,
            self._before(load, levels, bool(classes)),
            self.codec.weights,
        )

    def _before(
        self, load: Load, levels: tuple[Level, ...], classes: bool
    ) -> CodePriorModule | None:
        """The prior of the next coarser level. Raises: ConfigError where it is of other codes."""
        from ornstein.autoencoders.prior_model import CodePriorModule

        if self.given is None:
            return None
        given, path = load(self.given), self.given.path
        if not isinstance(given, CodePriorModule):
            raise ConfigError(f"{path} is no prior over codes; name a run of code_prior")
        if given.levels != levels[: self.level]:
            raise ConfigError(
                f"{path} is a prior of the levels {_shown(given.levels)}, and before level "
                f"{self.level} this codec has {_shown(levels[: self.level])}; name a run of "
                f"model.level={self.level - 1} for this codec"
            )
        if given.codec != self.codec.weights and given.codec and self.codec.weights:
            raise ConfigError(
                f"{path} was trained on codes of another codec than {self.codec.path}; train it "
                "again on codes of this one"
            )
        if classes and not given.classes:
            raise ConfigError(
                f"{path} knows no classes, so its codes are of any; write model.classes=false, or "
                "train it with model.classes=true"
            )
        return given


def _levels(codec: object, reference: RunRef) -> tuple[Level, ...]:
    levels = getattr(getattr(codec, "bottleneck", None), "levels", None)
    if levels is None:
        raise ConfigError(
            f"{reference.path} has no codebook, whose entries a prior could be of; name a run of "
            "vq_vae, vq_vae_2_codec or fsq_vae"
        )
    return tuple(levels)


def _shown(levels: tuple[Level, ...]) -> str:
    """For instance "7 × 7 of 128 codes"."""
    return ", ".join(
        f"{' × '.join(map(str, one.size)) or '1'} of {one.codes} codes" for one in levels
    )
