"""Finite scalar quantisation (Mentzer et al. 2023): a VQ-VAE whose codebook nobody learns."""

from ornstein.autoencoders.bottlenecks import FSQ
from ornstein.recipes.vq_vae import RECIPE as VQ_VAE

RECIPE = VQ_VAE.but(
    name="fsq_vae", model=VQ_VAE.model.but(bottleneck=FSQ(levels=(5, 5, 5)), units=3)
)
