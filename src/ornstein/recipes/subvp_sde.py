"""Sub-VP SDE (Song et al. 2021, arXiv:2011.13456): VP's signal with less noise at every time."""

from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import SubVP
from ornstein.recipes.vp_sde import RECIPE as VP_SDE

# Made for likelihoods: α as for VP, σ = 1 − α² instead of its root. All else is as for VP.
RECIPE = VP_SDE.but(
    name="subvp_sde",
    model=Diffusion(process=SubVP(beta_min=0.1, beta_max=20.0), target=Eps()),
)
