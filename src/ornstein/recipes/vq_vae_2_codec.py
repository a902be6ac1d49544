"""The codec of VQ-VAE-2 (Razavi et al. 2019): a coarse level of codes and a fine one."""

from ornstein.autoencoders.bottlenecks import VQ, Hierarchy
from ornstein.recipes.vq_vae import RECIPE as VQ_VAE

RECIPE = VQ_VAE.but(
    name="vq_vae_2_codec",
    # The places of `vq_vae`, and above them half as many a side. Each level has vectors of 16.
    model=VQ_VAE.model.but(
        units=32, bottleneck=Hierarchy(top=VQ(codes=128), bottom=VQ(codes=128), channels=32)
    ),
)
