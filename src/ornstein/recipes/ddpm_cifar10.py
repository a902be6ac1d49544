"""DDPM as published for CIFAR-10 (Ho et al. 2020, appendix B): 35.7 million parameters, flips."""

from ornstein.data.augment import Augment
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import Tabulated
from ornstein.nn.networks import UNet
from ornstein.optim import HalfLife, Optim
from ornstein.recipes.ddpm import RECIPE as DDPM

# 800,000 updates of 128 images at the rate 2e-4, warmed up over 5,000 of them, averaged with
# 0.9999 an update: a half-life of 6,931 updates. A day of a fast GPU; never on a processor.
BATCH = 128

RECIPE = DDPM.but(
    name="ddpm_cifar10",
    augment=Augment(flip=True),
    model=Diffusion(
        process=Tabulated(rule="linear", steps=1000),
        target=Eps(),
        # Four levels of 128 and 256 channels, attention at 16×16, dropout 0.1.
        network=UNet(
            channels=(128, 256, 256, 256), blocks=2, attention=(2,), head_width=256, dropout=0.1
        ),
    ),
    optim=Optim(
        lr=2e-4,
        batch=BATCH,
        samples=800_000 * BATCH,
        warmup=5_000 * BATCH,
        decay="none",
        averages=(HalfLife(samples=6_931 * BATCH, ramp=0.05),),
    ),
)
