"""The first stage of latent diffusion (Rombach et al. 2022): a code that is a smaller picture."""

from ornstein.autoencoders.bottlenecks import Gaussian
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.likelihoods import Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.nn.codecnets import Conv
from ornstein.objectives.autoencoding import Autoencoding, Beta
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="autoencoder_kl",
    model=Autoencoder(
        # Patches of 2 and one halving: f = 4. One size fewer is f = 2, one more f = 8.
        nets=Conv(channels=(48, 96), flat=False, patch=2),
        units=4,
        bottleneck=Gaussian(),
        # Squared errors, summed over a sample, which is what the weight below is beside.
        likelihood=Normal(std=0.5**0.5),
    ),
    # As published: of nats per sample. It keeps codes near the origin and gives no prior.
    objective=Autoencoding(divergence=Beta(weight=1e-6)),
    optim=Optim(lr=1e-3, batch=64, samples=150_000, warmup=5_000, averages=(Power(width=0.07),)),
    generation=Decoding(),
)
