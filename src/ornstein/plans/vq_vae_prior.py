"""A VQ-VAE and a prior over its codes (van den Oord et al. 2017), on one level."""

from ornstein.plan import Plan, Stage
from ornstein.recipes.code_prior import RECIPE as PRIOR
from ornstein.recipes.vq_vae import RECIPE as CODEC

PLAN = Plan(
    name="vq_vae_prior",
    stages=(Stage(name="codec", recipe=CODEC), Stage(name="prior", recipe=PRIOR)),
)
