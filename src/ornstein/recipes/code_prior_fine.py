"""A gated PixelCNN over the finer codes of a VQ-VAE-2, given the coarser ones."""

from ornstein.autoencoders.prior import PixelCNN
from ornstein.choice import RunRef
from ornstein.recipes.code_prior import RECIPE as CODE_PRIOR

RECIPE = CODE_PRIOR.but(
    name="code_prior_fine",
    model=CODE_PRIOR.model.but(
        level=1, given=RunRef(path="stage:top"), network=PixelCNN(channels=32, dropout=0.1)
    ),
)
