"""ScoreFlow (Song et al. 2021, arXiv:2101.09258): trained for likelihood, sampled by the flow."""

from ornstein.diffusion.flow import Adaptive
from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VP
from ornstein.diffusion.sampling import Sampling
from ornstein.objectives.denoising import SNR, Denoising, UniformLogSNR
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe

RECIPE = Recipe(
    name="scoreflow",
    # The likelihood weighting depends on the ends of log-SNR and not on the way between them. VP's
    # smallest σ, 0.01, is about a bin of 8-bit images; sub-VP's is 1e-4 at the same time, and
    # most of its levels would tell nothing of whole numbers.
    model=Diffusion(process=VP(beta_min=0.1, beta_max=20.0), target=Eps()),
    # λ(t) = g² with importance-sampled t: log-SNR uniform and the plain error of ε (notes ref 7).
    objective=Denoising(levels=UniformLogSNR(), weighting=SNR()),
    optim=Optim(
        lr=1e-3, samples=2_000_000, decay="none", averages=(HalfLife(samples=50_000, ramp=0.05),)
    ),
    # The probability flow (notes eq 1.22), whose likelihood `ornstein evaluate` computes.
    generation=Sampling(step=Adaptive(tolerance=1e-3), grid=LogSNR(), steps=2),
    preview=Sampling(),
)
