"""DDPM (Ho et al. 2020, arXiv:2006.11239): a table of 1000 steps, the target ε, L_simple."""

from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import Tabulated
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral
from ornstein.objectives.denoising import Denoising, Discrete
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="ddpm",
    # β from 1e-4 to 0.02 in 1000 steps (notes §2.2.3), ε from x_t and t (notes eq 27-30).
    model=Diffusion(process=Tabulated(rule="linear", steps=1000), target=Eps()),
    objective=Denoising(levels=Discrete(steps=1000)),
    optim=Optim(
        lr=1e-3, samples=2_000_000, decay="none", averages=(HalfLife(samples=50_000, ramp=0.05),)
    ),
    # Algorithm 2 with the variance β, all 1000 steps and x̂0 within the data's range, as published.
    generation=Sampling(step=Ancestral(spread=1.0), grid=Trailing(), steps=1000, clip=True),
    preview=Sampling(grid=Trailing()),  # a grid that suits any process
)
