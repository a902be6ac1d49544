"""EDM (Karras et al. 2022, arXiv:2206.00364): preconditioning, log-normal levels, Heun's method."""

from ornstein.diffusion.grid import Karras
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import EDM
from ornstein.diffusion.process import VE
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Heun
from ornstein.objectives.denoising import Denoising, LogNormal
from ornstein.optim import Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="edm",
    # Table 1: σ from 0.002 to 80, the preconditioned target F, the label ¼ ln σ.
    model=Diffusion(process=VE(sigma_min=0.002, sigma_max=80.0), target=EDM(), label="log_sigma"),
    # P_mean and P_std of table 1; the weight λ(σ) is w = 1 in the target F.
    objective=Denoising(levels=LogNormal(mean=-1.2, std=1.2)),
    optim=Optim(lr=2e-3, batch=64, samples=2_000_000),
    # 18 steps of Heun's method are 35 evaluations, the paper's choice for CIFAR-10.
    generation=Sampling(step=Heun(), grid=Karras(rho=7.0), steps=18),
)
