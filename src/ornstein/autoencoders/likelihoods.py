"""What the decoder's outputs mean: the choices that a recipe can write for `likelihood`.

    normal      N(x; mean, std²), std fixed or learned; ‖x − mean‖² where std = √½ (notes eq 1)
    bernoulli   each value is one of two, black or white                  the VAE of the paper
    logistic    a discretised logistic law of whole numbers               8-bit images

x is at the model's scale: [−1, 1] where data have a range, standardised where they have not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ornstein.choice import Choice

if TYPE_CHECKING:
    from torch import nn

    from ornstein.data.info import DataInfo


class Normal(Choice):
    """N(mean, std²) for each value. std: null for one number that is learned.

    With std = √½ the loss is ‖x − mean‖² in squared units, up to a constant (notes eq 1).
    """

    kind: Literal["normal"] = "normal"
    std: float | None = Field(0.5**0.5, gt=0, description="at the model's scale; null: learned")

    @property
    def multiplier(self) -> int:
        """Outputs of the decoder for one value of x."""
        return 1

    def build(self, info: DataInfo) -> nn.Module:
        """The module. info: the data at the model's scale."""
        from ornstein.autoencoders.laws import NormalModule

        return NormalModule(info, self.std)


class Bernoulli(Choice):
    """log p(x|z) = Σ u log p + (1 − u) log(1 − p), u = (x − low)/(high − low), p from logits.

    binarise: what u is. `random`: 1 with probability u, drawn anew each time; `threshold`: whether
    u > ½; `none`: u itself, which makes it no law of anything (cross-entropy, a common misuse).
    """

    kind: Literal["bernoulli"] = "bernoulli"
    binarise: Literal["random", "threshold", "none"] = "random"

    @property
    def multiplier(self) -> int:
        """Outputs of the decoder for one value of x."""
        return 1

    def build(self, info: DataInfo) -> nn.Module:
        """The module. Raises: ConfigError for data without a range."""
        from ornstein.autoencoders.laws import BernoulliModule

        return BernoulliModule(info, self.binarise)


class Logistic(Choice):
    """Whole numbers by a logistic law, integrated over the bin of each (D. Kingma et al. 2016,
    "Improving variational inference with inverse autoregressive flow", arXiv:1606.04934, §B;
    the bins at the ends reach to infinity). Each value has a mean; scale: one for all of a channel,
    or one predicted for each value."""

    kind: Literal["logistic"] = "logistic"
    scale: Literal["channel", "value"] = "channel"

    @property
    def multiplier(self) -> int:
        """Outputs of the decoder for one value of x."""
        return 2 if self.scale == "value" else 1

    def build(self, info: DataInfo) -> nn.Module:
        """The module. Raises: ConfigError for data that are no whole numbers."""
        from ornstein.autoencoders.laws import LogisticModule

        return LogisticModule(info, self.scale)


LikelihoodChoice = Annotated[Normal | Bernoulli | Logistic, Field(discriminator="kind")]
