"""The autoencoding objective: reconstruction log-likelihood and penalties, for every autoencoder.

    L = −log p(x|z) + D(KL(q(z|x) ‖ p(z))) + penalties,      z = encode(corrupted x), in nats

    autoencoder   normal likelihood with std √½: ‖x − f(g(x))‖²               (notes eq 1)
    denoising     corruption                                                  (eq 2)
    sparse        Σ_j KL(ρ ‖ ρ̂_j), ρ̂ over the global batch                    (eq 3)
    contractive   ‖∂z/∂x‖²_F                                                  (eq 4)
    VAE           D = KL: L is −ELBO, whose minimum over q is −log p(x)       (eq 6 and 7)
    β-VAE         D = β KL, β |KL − C| with a capacity C that grows, or λ (KL − δ) with a multiplier
                  λ ≥ 0 that rises while KL > δ                               (eq 8-10)
    VQ-VAE        its bottleneck's own penalties                              (eq 12)
    first stages  a perceptual and an adversarial term, see the files of these names

I. Higgins et al. 2017, "β-VAE: learning basic visual concepts with a constrained variational
framework"; C. Burgess et al. 2018, "Understanding disentangling in β-VAE", arXiv:1804.03599;
D. Rezende, F. Viola 2018, "Taming VAEs", arXiv:1810.00597, which moves a multiplier likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ornstein.autoencoders.corruption import Corruption
from ornstein.autoencoders.penalties import Contraction, Sparsity
from ornstein.choice import Choice, Load
from ornstein.errors import ConfigError
from ornstein.objectives.adversarial import Adversarial
from ornstein.objectives.perceptual import Perceptual

if TYPE_CHECKING:
    from ornstein.autoencoders.codec import Codec
    from ornstein.data.info import DataInfo
    from ornstein.objectives.autoencoding_loss import AutoencodingLoss


class Beta(Choice):
    """β KL (notes eq 10). weight: β; 1 is the VAE.

    warmup: the share of the training over which β rises from 0 to its value.
    """

    kind: Literal["beta"] = "beta"
    weight: float = Field(1.0, ge=0, description="β")
    warmup: float = Field(0.0, ge=0, le=1, description="share of the training")


class Capacity(Choice):
    """γ |KL − C|, C rising evenly from 0 to `capacity` over the share `rise` of the training
    (Burgess et al. 2018, eq 8)."""

    kind: Literal["capacity"] = "capacity"
    capacity: float = Field(25.0, gt=0, description="C at its end, nats")
    weight: float = Field(100.0, gt=0, description="γ")
    rise: float = Field(0.8, gt=0, le=1, description="share of the training")


class Constrained(Choice):
    """λ (KL − δ), λ ≥ 0: the Lagrangian of "as likely as can be, subject to KL ≤ δ" (notes eq 8-9).

    log λ moves by `rate` (KL/δ − 1) at each update, KL being the mean over the global batch, so
    that it ends where KL = δ.
    """

    kind: Literal["constrained"] = "constrained"
    delta: float = Field(20.0, gt=0, description="δ, nats per sample")
    rate: float = Field(0.02, gt=0, le=1, description="of the multiplier, per update")
    start: float = Field(1.0, gt=0, description="λ at first")


Divergence = Annotated[Beta | Capacity | Constrained, Field(discriminator="kind")]


class Autoencoding(Choice):
    """What an autoencoder is trained with; `divergence` counts where codes are Gaussian."""

    kind: Literal["autoencoding"] = "autoencoding"
    corruption: Corruption | None = None
    divergence: Divergence = Beta()
    sparsity: Sparsity | None = None
    contraction: Contraction | None = None
    perceptual: Perceptual | None = None
    adversarial: Adversarial | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The range in which bounded data must arrive."""
        return (-1.0, 1.0)

    def build(self, model: Codec, info: DataInfo, load: Load) -> AutoencodingLoss:
        """The objective with what it keeps. Raises: ConfigError for penalties that this model, or
        a corruption or terms that these data cannot have."""
        from ornstein.autoencoders.continuous import GaussianModule
        from ornstein.objectives.autoencoding_loss import AutoencodingLoss

        if self.corruption is not None:
            self.corruption.check(info)
        for penalty in (self.sparsity, self.contraction):
            if penalty is not None:
                penalty.check(model)
        gaussian = isinstance(model.bottleneck, GaussianModule)
        if isinstance(self.divergence, Constrained) and not gaussian:
            raise ConfigError(
                "a constrained divergence is of Gaussian codes; write "
                "model.bottleneck.kind=gaussian, or objective.divergence.kind=beta"
            )
        return AutoencodingLoss(self, model, info)
