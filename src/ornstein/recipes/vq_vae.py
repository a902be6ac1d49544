"""The VQ-VAE (van den Oord et al. 2017): a picture of codes, from a codebook that follows them."""

from ornstein.autoencoders.bottlenecks import VQ
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.likelihoods import Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.nn.codecnets import Conv
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="vq_vae",
    # Places are a quarter as many a side as pixels.
    model=Autoencoder(
        nets=Conv(channels=(16, 32, 64), flat=False),
        units=16,
        bottleneck=VQ(codes=128),
        likelihood=Normal(std=0.5**0.5),
    ),
    objective=Autoencoding(),
    optim=Optim(lr=1e-3, batch=64, samples=150_000, warmup=5_000, averages=(Power(width=0.07),)),
    generation=Decoding(),
)
