"""TD-VAE (Gregor et al. 2019): beliefs about a sequence, and jumps between their states."""

from ornstein.autoencoders.rollout import Rollout
from ornstein.autoencoders.tdvae import TDVAE
from ornstein.data.sources import Moving
from ornstein.objectives.temporal import Jumps
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="td_vae",
    data=Moving(name="moving_digits"),
    model=TDVAE(),
    objective=Jumps(),
    optim=Optim(lr=3e-3, batch=32, samples=200_000, warmup=5_000, averages=(Power(width=0.07),)),
    generation=Rollout(),
)
