"""A state-space model step by step (Krishnan et al. 2015), with TD-VAE's nets, as its baseline."""

from ornstein.autoencoders.rollout import Rollout
from ornstein.autoencoders.tdvae import StateSpace
from ornstein.data.sources import Moving
from ornstein.objectives.temporal import WholeSequence
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="state_space",
    data=Moving(name="moving_digits"),
    model=StateSpace(),
    objective=WholeSequence(),
    optim=Optim(lr=3e-3, batch=32, samples=200_000, warmup=5_000, averages=(Power(width=0.07),)),
    generation=Rollout(),
)
