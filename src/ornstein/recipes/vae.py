"""The VAE as published (Kingma & Welling 2013): Gaussian codes, binary pixels, the ELBO."""

from ornstein.autoencoders.bottlenecks import Gaussian
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.likelihoods import Bernoulli
from ornstein.autoencoders.model import Autoencoder
from ornstein.nn.codecnets import Dense
from ornstein.objectives.autoencoding import Autoencoding, Beta
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="vae",
    model=Autoencoder(
        nets=Dense(hidden=(512, 256)),
        units=16,
        bottleneck=Gaussian(),
        # Grey values are chances of white, drawn anew each time: it cannot overfit a drawing.
        likelihood=Bernoulli(binarise="random"),
    ),
    objective=Autoencoding(divergence=Beta(weight=1.0)),
    optim=Optim(
        lr=1e-3, batch=128, samples=1_500_000, warmup=10_000, averages=(Power(width=0.07),)
    ),
    generation=Decoding(samples=100),
)
