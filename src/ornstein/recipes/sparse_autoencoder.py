"""The sparse autoencoder: many units, each active for a twentieth of the data (notes eq 3)."""

from ornstein.autoencoders.bottlenecks import Plain
from ornstein.autoencoders.penalties import Sparsity
from ornstein.nn.codecnets import Dense
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.recipes.autoencoder import RECIPE as AUTOENCODER

RECIPE = AUTOENCODER.but(
    name="sparse_autoencoder",
    # One layer each way: what a unit stands for can be seen in its weights.
    model=AUTOENCODER.model.but(
        nets=Dense(hidden=()), units=256, bottleneck=Plain(activation="sigmoid")
    ),
    objective=Autoencoding(sparsity=Sparsity(rho=0.05, weight=5.0)),
)
