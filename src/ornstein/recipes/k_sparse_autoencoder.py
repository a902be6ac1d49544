"""The k-sparse autoencoder: of 1,000 linear units the 25 largest are kept (notes §1.1.3)."""

from ornstein.autoencoders.bottlenecks import TopK
from ornstein.nn.codecnets import Dense
from ornstein.recipes.autoencoder import RECIPE as AUTOENCODER

RECIPE = AUTOENCODER.but(
    name="k_sparse_autoencoder",
    model=AUTOENCODER.model.but(
        nets=Dense(hidden=(), mirrored=True), units=1000, bottleneck=TopK(k=25)
    ),
)
