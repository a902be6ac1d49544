"""DDIM (Song et al. 2021, arXiv:2010.02502): DDPM's network, drawn from in 50 even steps."""

from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Jump
from ornstein.recipes.ddpm import RECIPE as DDPM

# Training is DDPM's; η = 0 makes generation a deterministic function of the starting noise.
RECIPE = DDPM.but(name="ddim", generation=Sampling(step=Jump(eta=0.0), grid=Trailing(), steps=50))
