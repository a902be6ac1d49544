"""NCSNv2 (Song & Ermon 2020, arXiv:2006.09011): levels and steps by rules, s(x, σ) = s(x)/σ."""

from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.langevin import Annealed, Corrected, Keep, Langevin
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.ncsn import SIGMA_MIN, UPDATES
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VE
from ornstein.diffusion.sampling import Sampling
from ornstein.objectives.denoising import Denoising, Gridded
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe

BATCH = 64

RECIPE = Recipe(
    name="ncsnv2",
    # What is None is measured or computed when the run is made. Technique 1: σ_max is the largest
    # distance between training samples. Technique 3: one network for all levels, f = ε = −s(x).
    model=Diffusion(process=VE(sigma_min=SIGMA_MIN, sigma_max=None), target=Eps(), label="none"),
    # Technique 2: as many levels as notes eq 1.16 says. The error of ε is λ(σ) = σ² of the score's.
    objective=Denoising(levels=Gridded(steps=None), range=(0.0, 1.0)),
    # Technique 5: the average of the weights with m = 0.999 an update (notes eq 1.18), which
    # forgets half in 693 updates.
    optim=Optim(
        lr=2e-3,
        batch=BATCH,
        samples=2_000_000,
        decay="none",
        averages=(HalfLife(samples=693 * BATCH, ramp=0.05),),
    ),
    # Technique 4: the step that notes eq 1.17 finds for T updates; then x̂0, without the last noise.
    generation=Sampling(
        step=Corrected(
            corrector=Langevin(updates=UPDATES, form="full", size=Annealed(eps=None)),
            predictor=Keep(denoise=True),
        ),
        grid=LogSNR(),
        steps=None,
    ),
)
