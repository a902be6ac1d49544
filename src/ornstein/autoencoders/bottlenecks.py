"""What a code may be: the choices that a recipe or the command line can write for `bottleneck`.

    plain      any numbers, or numbers in (0, 1)                 autoencoders
    top_k      the k largest of them, the others 0               k-sparse autoencoders
    gaussian   N(mean(x), std(x)²), against a prior N(0, I)      VAE, β-VAE
    vq         the nearest of K learned vectors                  VQ-VAE
    fsq        each number rounded to one of a few               finite scalar quantisation
    hierarchy  two levels of vectors, one at half the size       VQ-VAE-2

`features` says how many numbers of the encoder make one number of the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from ornstein.choice import Choice

if TYPE_CHECKING:
    from torch import nn

    from ornstein.autoencoders.quantizers import VQModule


class Plain(Choice):
    """z = h, or its sigmoid, which lies in (0, 1) as KL-sparsity wants it (notes eq 1)."""

    kind: Literal["plain"] = "plain"
    activation: Literal["none", "sigmoid", "relu", "tanh"] = "none"

    @property
    def features(self) -> int:
        """Numbers of the encoder for one of the code."""
        return 1

    def build(self, latent: tuple[int, ...]) -> nn.Module:
        """The module. latent: the shape of one z."""
        from ornstein.autoencoders.continuous import PlainModule

        return PlainModule(latent, self.activation)


class TopK(Choice):
    """The k largest units of a sample keep their values, the others are 0, and so are their
    gradients (A. Makhzani, B. Frey 2013, "k-sparse autoencoders", arXiv:1312.5663; notes §1.1.3).

    start: times k units are kept at first, and evenly fewer until half of the training is done:
    with few from the start most units would never be used (§2.2 of the paper). evaluated: times k
    once training is over, the paper's α.
    """

    kind: Literal["top_k"] = "top_k"
    k: int = Field(25, ge=1, le=1_000_000)
    start: float = Field(4.0, ge=1, le=1000, description="times k, at first")
    evaluated: float = Field(1.0, ge=1, le=100, description="times k, outside of training")

    @property
    def features(self) -> int:
        """Numbers of the encoder for one of the code."""
        return 1

    def build(self, latent: tuple[int, ...]) -> nn.Module:
        """The module. Raises: ConfigError where there are fewer than k units."""
        from ornstein.autoencoders.continuous import TopKModule

        return TopKModule(latent, self.k, self.start, self.evaluated)


class Gaussian(Choice):
    """q(z|x) = N(mean, std²) with a prior N(0, I), drawn by z = mean + std ε (notes eq 5-7)."""

    kind: Literal["gaussian"] = "gaussian"

    @property
    def features(self) -> int:
        """Numbers of the encoder for one of the code."""
        return 2

    def build(self, latent: tuple[int, ...]) -> nn.Module:
        """The module."""
        from ornstein.autoencoders.continuous import GaussianModule

        return GaussianModule(latent)


class VQ(Choice):
    """The nearest of `codes` vectors, which follow what falls to them (notes eq 11-13).

    update: `ema` moves the vectors by eq 13, `gradient` by the second term of eq 12. commitment: β
    of eq 12. decay: γ of eq 13. restart: a vector that is used less often than this share of an
    even use is put where the data are. kmeans: whether the vectors start as the means of a k-means
    of the first features.
    """

    kind: Literal["vq"] = "vq"
    codes: int = Field(256, ge=2, le=1_000_000, description="K, vectors in the codebook")
    update: Literal["ema", "gradient"] = "ema"
    commitment: float = Field(0.25, ge=0, description="β")
    decay: float = Field(0.99, ge=0, lt=1, description="γ")
    restart: float = Field(0.03, ge=0, lt=1, description="share of an even use; 0: never")
    kmeans: bool = True

    @property
    def features(self) -> int:
        """Numbers of the encoder for one of the code."""
        return 1

    def build(self, latent: tuple[int, ...]) -> VQModule:
        """The module; the vectors have latent[0] numbers."""
        from ornstein.autoencoders.quantizers import VQModule

        return VQModule(
            latent,
            self.codes,
            update=self.update,
            commitment=self.commitment,
            decay=self.decay,
            restart=self.restart,
            kmeans=self.kmeans,
        )


class FSQ(Choice):
    """Each number bounded and rounded to one of `levels` values: a codebook of their product
    that nobody learns (F. Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple",
    arXiv:2309.15505). A code has as many numbers as there are levels."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = Field((8, 6, 5), description="values of each number, 2 or more")

    @field_validator("levels")
    @classmethod
    def _some(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or not all(2 <= count <= 4096 for count in levels):
            raise ValueError(f"FSQ needs numbers of 2 to 4096 levels; got {list(levels)}")
        return levels

    @property
    def features(self) -> int:
        """Numbers of the encoder for one of the code."""
        return 1

    def build(self, latent: tuple[int, ...]) -> nn.Module:
        """The module. Raises: ConfigError where a code has another number of units."""
        from ornstein.autoencoders.fsq import FSQModule

        return FSQModule(latent, self.levels)


class Hierarchy(Choice):
    """Vectors of two codebooks, a coarse layout at half the size and a fine one that is chosen in
    view of it; the decoder gets both (A. Razavi et al. 2019, "Generating diverse high-fidelity
    images with VQ-VAE-2", arXiv:1906.00446; notes fig 1-10).

    Half of a code's units are the fine vector's, half say what the coarse one means there. top,
    bottom: the coarse and the fine quantiser. channels, blocks: of the nets between the two.
    """

    kind: Literal["hierarchy"] = "hierarchy"
    top: VQ = VQ()
    bottom: VQ = VQ()
    channels: int = Field(64, ge=1, le=8192, description="of the nets between the levels")
    blocks: int = Field(1, ge=0, le=64, description="residual blocks of each of them")

    @property
    def features(self) -> int:
        """Numbers of the encoder for one of the code."""
        return 1

    def build(self, latent: tuple[int, ...]) -> nn.Module:
        """The module; vectors have latent[0]/2 numbers.

        Raises: ConfigError where codes have no layout, or an odd number of units.
        """
        from ornstein.autoencoders.hierarchical import HierarchyModule

        return HierarchyModule(latent, self.top, self.bottom, self.channels, self.blocks)


BottleneckChoice = Annotated[
    Plain | TopK | Gaussian | VQ | FSQ | Hierarchy, Field(discriminator="kind")
]
