"""Rectified flow (Liu et al. 2023, arXiv:2209.03003): straight paths, the velocity, Euler steps."""

from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Velocity
from ornstein.diffusion.process import Straight
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Jump
from ornstein.objectives.denoising import Denoising, LogitNormal
from ornstein.optim import Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="flow",
    model=Diffusion(process=Straight(), target=Velocity()),
    # Most often the middle times, where the paths of different images cross (Esser et al. 2024,
    # arXiv:2403.03206, whose best law this is).
    objective=Denoising(levels=LogitNormal(mean=0.0, std=1.0)),
    optim=Optim(lr=2e-3, batch=64, samples=2_000_000),
    # On straight paths the jump from t to s is x + (s − t) v, Euler's rule.
    generation=Sampling(step=Jump(eta=0.0), grid=Trailing(), steps=50),
)
