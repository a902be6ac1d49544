"""Improved DDPM (Nichol & Dhariwal 2021, arXiv:2102.09672): cosine table, learned variance."""

from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import Tabulated
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral
from ornstein.objectives.variational import Hybrid
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="improved_ddpm",
    # Notes eq 34 for the table and eq 35 for the variance. The paper's T is 4000; at 1000 the
    # table's ends stay where the network can see a difference between rows.
    model=Diffusion(process=Tabulated(rule="cosine", steps=1000), target=Eps(), variance="learned"),
    # L_simple + 0.001 L_vlb: the mean learns from the first, the variance from the second.
    objective=Hybrid(steps=1000, weight=0.001),
    optim=Optim(
        lr=1e-3, samples=2_000_000, decay="none", averages=(HalfLife(samples=50_000, ramp=0.05),)
    ),
    # With a learned variance 100 of the steps do almost as well as all (the paper's figure 8).
    generation=Sampling(step=Ancestral(), grid=Trailing(), steps=100, clip=True),
    preview=Sampling(grid=Trailing()),  # a grid that suits any process
)
