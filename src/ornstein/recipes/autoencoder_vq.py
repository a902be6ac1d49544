"""The first stage of VQGAN (Esser et al. 2021): a smaller picture of entries of a codebook."""

from ornstein.autoencoders.bottlenecks import VQ
from ornstein.recipe import Recipe
from ornstein.recipes.autoencoder_kl import RECIPE as AUTOENCODER_KL

RECIPE: Recipe = AUTOENCODER_KL.but(
    name="autoencoder_vq",
    # Few numbers in an entry: more of the codebook is used (J. Yu et al. 2021, arXiv:2110.04627).
    model=AUTOENCODER_KL.model.but(bottleneck=VQ(codes=512), units=8),
)
