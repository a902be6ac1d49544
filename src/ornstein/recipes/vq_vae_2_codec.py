"""The codec of VQ-VAE-2 (Razavi et al. 2019): a coarse level of codes and a fine one."""

from ornstein.autoencoders.bottlenecks import VQ, Hierarchy
from ornstein.nn.codecnets import Conv
from ornstein.recipes.vq_vae import RECIPE as VQ_VAE

RECIPE = VQ_VAE.but(
    name="vq_vae_2_codec",
    # Places of the bottom are a quarter as many a side as pixels, those of the top an eighth, as in
    # the paper. Squares of 2 x 2 pixels are seen as one: so a few minutes are enough.
    model=VQ_VAE.model.but(
        nets=Conv(channels=(32, 64), patch=2, flat=False),
        units=32,
        bottleneck=Hierarchy(top=VQ(codes=128), bottom=VQ(codes=128), channels=32),
    ),
    optim=VQ_VAE.optim.but(samples=90_000),
)
