"""The contractive autoencoder: a code that small changes of the data hardly move (notes eq 4)."""

from ornstein.autoencoders.bottlenecks import Plain
from ornstein.autoencoders.penalties import Contraction
from ornstein.nn.codecnets import Dense
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.recipes.autoencoder import RECIPE as AUTOENCODER

RECIPE = AUTOENCODER.but(
    name="contractive_autoencoder",
    # One layer, whose Jacobian has a closed form.
    model=AUTOENCODER.model.but(
        nets=Dense(hidden=()), units=256, bottleneck=Plain(activation="sigmoid")
    ),
    objective=Autoencoding(contraction=Contraction(weight=5.0)),
)
