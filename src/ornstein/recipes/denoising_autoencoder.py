"""The denoising autoencoder: half of the pixels are masked and have to be restored (notes eq 2)."""

from ornstein.autoencoders.corruption import Masking
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.recipes.autoencoder import RECIPE as AUTOENCODER

RECIPE = AUTOENCODER.but(
    name="denoising_autoencoder",
    model=AUTOENCODER.model.but(units=64),
    objective=Autoencoding(corruption=Masking(p=0.5)),
)
