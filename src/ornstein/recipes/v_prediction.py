"""Prediction of v (Salimans & Ho 2022, arXiv:2202.00512) in continuous time, down to no signal."""

from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import V
from ornstein.diffusion.process import Cosine
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Jump
from ornstein.objectives.denoising import Denoising, UniformTime
from ornstein.optim import Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="v_prediction",
    # At t = 1 this process is pure noise: there ε says nothing of the image, and v = −x0 all.
    model=Diffusion(process=Cosine(), target=V()),
    # The error of v is the paper's weight SNR + 1 on the image.
    objective=Denoising(levels=UniformTime()),
    optim=Optim(lr=2e-3, batch=64, samples=2_000_000),
    generation=Sampling(step=Jump(eta=0.0), grid=Trailing(), steps=50),
)
