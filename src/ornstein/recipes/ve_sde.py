"""VE SDE (Song et al. 2021, arXiv:2011.13456): NCSN in continuous time, predictor and corrector."""

from ornstein.diffusion.grid import Uniform
from ornstein.diffusion.langevin import Corrected, Langevin, SignalToNoise
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VE
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral
from ornstein.objectives.denoising import Denoising, UniformTime
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="ve_sde",
    # σ from 0.01, geometric in t, to the largest distance between training samples: by this rule
    # CIFAR-10 has 50. The network is told ln σ and says ε, λ(t) = σ² (notes eq 1.21).
    model=Diffusion(process=VE(sigma_min=0.01, sigma_max=None), target=Eps(), label="log_sigma"),
    # Images in [0, 1], to which these σ belong.
    objective=Denoising(levels=UniformTime(), range=(0.0, 1.0)),
    optim=Optim(
        lr=1e-3, samples=2_000_000, decay="none", averages=(HalfLife(samples=50_000, ramp=0.05),)
    ),
    # Reverse diffusion, which for VE is the ancestral step with the variance σ_t² − σ_s², after
    # one update of Langevin dynamics at the signal-to-noise ratio 0.16, the paper's for CIFAR-10.
    generation=Sampling(
        step=Corrected(
            corrector=Langevin(updates=1, size=SignalToNoise(ratio=0.16)),
            predictor=Ancestral(spread=1.0),
        ),
        grid=Uniform(),
        steps=1000,
    ),
    preview=Sampling(),  # the flow of the same model, in 20 steps
)
