"""NCSN (Song & Ermon 2019, arXiv:1907.05600): 10 noise levels, annealed Langevin dynamics."""

from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.langevin import Annealed, Corrected, Keep, Langevin
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VE
from ornstein.diffusion.sampling import Sampling
from ornstein.objectives.denoising import Denoising, Gridded
from ornstein.optim import Optim
from ornstein.recipe import Recipe

LEVELS = 10


def langevin(updates: int, eps: float) -> Sampling:
    """Annealed Langevin dynamics over the training levels."""
    corrector = Langevin(updates=updates, form="half", size=Annealed(eps=eps))
    step = Corrected(corrector=corrector, predictor=Keep())
    return Sampling(step=step, grid=LogSNR(), steps=LEVELS)


RECIPE = Recipe(
    name="ncsn",
    # σ from 1 to 0.01 for data in [0, 1]. The target is ε = −σ s, so that w = 1 is the paper's
    # weight λ(σ) = σ² of the score's error (notes eq 1.14-1.15) but for its ½.
    model=Diffusion(process=VE(sigma_min=0.01, sigma_max=1.0), target=Eps(), label="log_sigma"),
    objective=Denoising(levels=Gridded(steps=LEVELS), range=(0.0, 1.0)),
    optim=Optim(lr=2e-3, batch=64, samples=2_000_000),  # with an average, which is NCSNv2's
    # Algorithm 1 (fig 1.3): ε = 2e-5, T = 100, the noise of the last level left in.
    generation=langevin(updates=100, eps=2e-5),
    # Ten times as quick. Not by the flow: σ_1 = 1 is small beside distances between images, so
    # what it would start from is not yet the law of the first level; Langevin steps get there.
    preview=langevin(updates=10, eps=5e-5),
)
