"""VP SDE (Song et al. 2021, arXiv:2011.13456): DDPM in continuous time, by Euler-Maruyama."""

from ornstein.diffusion.grid import Uniform
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VP
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.stochastic import EulerMaruyama
from ornstein.objectives.denoising import Denoising, UniformTime
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="vp_sde",
    # β(t) from 0.1 to 20, the limit of DDPM's table (notes eq 1.19). The error of ε is the score's
    # with λ(t) = σ², as notes eq 1.21 asks for.
    model=Diffusion(process=VP(beta_min=0.1, beta_max=20.0), target=Eps()),
    objective=Denoising(levels=UniformTime()),
    optim=Optim(
        lr=1e-3, samples=2_000_000, decay="none", averages=(HalfLife(samples=50_000, ramp=0.05),)
    ),
    # The reverse SDE (notes eq 1.20) in the paper's 1000 even steps; the last one gives x̂0.
    generation=Sampling(step=EulerMaruyama(eta=1.0), grid=Uniform(), steps=1000),
    preview=Sampling(),  # the flow of the same model, in 20 steps
)
