"""VQ-VAE-2 (Razavi et al. 2019): a codec of two levels, a prior of the coarse, one of the fine."""

from ornstein.plan import Plan, Stage
from ornstein.recipes.code_prior import RECIPE as COARSE
from ornstein.recipes.code_prior_fine import RECIPE as FINE
from ornstein.recipes.vq_vae_2_codec import RECIPE as CODEC

PLAN = Plan(
    name="vq_vae_2",
    stages=(
        Stage(name="codec", recipe=CODEC),
        Stage(name="top", recipe=COARSE),
        Stage(name="bottom", recipe=FINE),
    ),
)
