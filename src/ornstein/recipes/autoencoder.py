"""The autoencoder: through a narrow code and back, in squared error (notes eq 1)."""

from ornstein.autoencoders.bottlenecks import Plain
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.likelihoods import Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.nn.codecnets import Dense
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="autoencoder",
    # std √½: the loss is ‖x − x̂‖², up to a constant.
    model=Autoencoder(
        nets=Dense(hidden=(512, 256)), units=16, bottleneck=Plain(), likelihood=Normal(std=0.5**0.5)
    ),
    objective=Autoencoding(),
    optim=Optim(lr=1e-3, batch=128, samples=600_000, warmup=10_000, averages=(Power(width=0.07),)),
    generation=Decoding(),
)
