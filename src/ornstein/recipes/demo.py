"""The minute's job: EDM on 8×8 digits, small and quick, with a high rate that decays."""

from ornstein.diffusion.grid import Karras
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.prediction import EDM
from ornstein.diffusion.process import VE
from ornstein.diffusion.sampling import Sampling
from ornstein.nn.networks import UNet
from ornstein.objectives.denoising import Denoising, LogNormal
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="demo",
    model=Diffusion(
        process=VE(sigma_min=0.002, sigma_max=80.0),
        target=EDM(),
        label="log_sigma",
        network=UNet(channels=(24, 48), blocks=1, middle_attention=False),
    ),
    # Most of what there is to see in 8×8 scans is decided at σ around 0.45.
    objective=Denoising(levels=LogNormal(mean=-0.8, std=1.2)),
    # A minute is some thousand cheap steps: a high rate that falls to zero, and a short average.
    optim=Optim(lr=3e-3, batch=64, minutes=0.85, warmup=5_000, averages=(Power(width=0.07),)),
    generation=Sampling(step=Multistep(order=2, clock="log_snr"), grid=Karras(), steps=20),
)
