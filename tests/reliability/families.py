"""What is killed, cut off and resumed: every family of models, by name, in miniature.

A new family joins with one line in `FAMILIES`: a function that is given a folder, in which it may
put data, and returns a recipe of about a second. Whatever makes resuming hard should be in one of
them: dropout, micro-batches, several averages, weights and buffers of the objective's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ornstein.autoencoders.bottlenecks import FSQ, VQ, Hierarchy, TopK
from ornstein.autoencoders.prior import PixelCNN
from ornstein.choice import RunRef
from ornstein.data.sources import Digits, Moving, Toy
from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.sampling import Sampling
from ornstein.nn.codecnets import Conv, Dense
from ornstein.nn.networks import MLP, UNet
from ornstein.objectives.adversarial import Adversarial
from ornstein.objectives.autoencoding import Autoencoding, Beta, Constrained
from ornstein.objectives.perceptual import Perceptual
from ornstein.objectives.score_matching import ScoreMatching
from ornstein.objectives.variational import Variational
from ornstein.optim import HalfLife, Optim, Power
from ornstein.recipe import Recipe, named
from ornstein.run import Run
from tests.contracts.families import ToyRecipe
from tests.contracts.test_contracts import follow, rollout, vq

OPTIM = Optim(
    batch=16,
    micro_batch=10,
    warmup=320,
    samples=16,
    averages=(HalfLife(samples=500), Power(width=0.1)),
)
UNET = UNet(channels=(8,), blocks=1, middle_attention=False, dropout=0.1)
TOY = MLP(width=32, depth=2)


def recipe(name: str, updates: int, data: Any, network: Any, **changed: Any) -> Recipe:
    """A recipe of the library with a small network, for so many updates."""
    whole = named(name)
    optim = OPTIM.model_copy(update={"samples": OPTIM.batch * updates - 3, "lr": whole.optim.lr})
    changed |= {"data": data, "optim": optim, "preview": Sampling(grid=Trailing(), steps=2)}
    changed["model"] = whole.model.model_copy(update={"network": network})
    return whole.model_copy(update=changed)


def longer(toy: ToyRecipe, updates: int) -> ToyRecipe:
    """A toy family that trains for so many updates."""
    optim = OPTIM.model_copy(update={"samples": OPTIM.batch * updates})
    return toy.model_copy(update={"optim": optim})


MOONS = Toy(name="moons", count=500)

# Scores and SDEs: levels that are measured, networks that are told none, second derivatives. Their
# previews are drawn as they would draw themselves, in a few steps.
SCORES: dict[str, tuple[str, dict[str, Any]]] = {
    "ncsn": ("ncsn", {}),
    "ncsnv2": ("ncsnv2", {}),
    "ve-sde": ("ve_sde", {}),
    "vp-sde": ("vp_sde", {}),
    "subvp-sde": ("subvp_sde", {}),
    "scoreflow": ("scoreflow", {}),
    "explicit": ("vp_sde", {"objective": ScoreMatching(trace="exact")}),
    "sliced": ("vp_sde", {"objective": ScoreMatching(trace="sliced", projections=2)}),
}


def score_family(name: str, _: Path) -> Recipe:
    """One of `SCORES`, on points in the plane."""
    of, changed = SCORES[name]
    how = named(of).generation
    drawn = how.but(steps=2) if how.steps is not None else how
    return recipe(of, 60, MOONS, TOY, **changed).model_copy(update={"preview": drawn})


# Autoencoders: penalties that look at the whole batch first, a multiplier and a codebook that are
# learned without a gradient, moments of codes; a discriminator of the objective's own.
SHORT = OPTIM.model_copy(update={"samples": OPTIM.batch * 30 - 3})
JUDGED = Autoencoding(
    divergence=Beta(weight=1e-6),
    perceptual=Perceptual(),
    adversarial=Adversarial(channels=(4, 8), start=0.4),
)
CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": ("autoencoder", {}),
    "denoising-autoencoder": ("denoising_autoencoder", {}),
    "sparse-autoencoder": ("sparse_autoencoder", {}),
    "k-sparse-autoencoder": ("k_sparse_autoencoder", {}),
    "contractive-autoencoder": ("contractive_autoencoder", {}),
    "vae": ("vae", {}),
    "beta-vae": ("beta_vae", {}),
    "constrained-vae": ("vae", {"objective": Autoencoding(divergence=Constrained(delta=5.0))}),
    "vq-vae": ("vq_vae", {}),
    "fsq-vae": ("fsq_vae", {}),
    "vq-vae-2-codec": ("vq_vae_2_codec", {}),
    "first-stage": ("autoencoder_kl", {"objective": JUDGED, "optim": SHORT}),
}


def codec_family(name: str, _: Path) -> Recipe:
    """One of `CODECS`, small, on digits."""
    of, changed = CODECS[name]
    whole = named(of)
    if isinstance(whole.model.nets, Conv):
        nets: Any = Conv(channels=(8, 8), flat=False)
    else:
        nets = Dense(hidden=(16,) if whole.model.nets.hidden else ())
    units = whole.model.units if isinstance(whole.model.bottleneck, FSQ) else 6
    bottleneck = whole.model.bottleneck
    if isinstance(bottleneck, TopK):
        bottleneck = TopK(k=3)
    if isinstance(bottleneck, VQ):
        bottleneck = VQ(codes=16)
    if isinstance(bottleneck, Hierarchy):
        bottleneck = Hierarchy(top=VQ(codes=8), bottom=VQ(codes=16), channels=8)
    model = whole.model.but(nets=nets, units=units, bottleneck=bottleneck)
    optim = OPTIM.model_copy(update={"samples": OPTIM.batch * 80 - 3, "lr": whole.optim.lr})
    return whole.but(**{"data": Digits(), "model": model, "optim": optim, **changed})


# Models of sequences: times that are drawn, and states along a whole sequence.
SEQUENCES = {"td-vae": "td_vae", "state-space": "state_space"}


def sequence_family(name: str, _: Path) -> Recipe:
    """One of `SEQUENCES`, small, on short sequences."""
    whole = named(SEQUENCES[name])
    small = {"nets": Dense(hidden=(16,)), "features": 8, "belief": 8, "units": 3, "hidden": 8}
    if name == "td-vae":
        small["reach"] = 3
    data = Moving(name="moving_digits", frames=5, size=8, count=300)
    optim = OPTIM.model_copy(update={"samples": OPTIM.batch * 60 - 3, "lr": whole.optim.lr})
    return whole.but(data=data, model=whole.model.but(**small), optim=optim)


def prior_family(folder: Path) -> Recipe:
    """A prior over the codes of a codec, whose run stands in the folder after one update."""
    codec = codec_family("vq-vae", folder)
    once = codec.optim.model_copy(update={"samples": OPTIM.batch})
    run = Run.create(codec.model_copy(update={"optim": once}), folder, "codec")
    for _ in run.train(previews=False):
        pass
    whole, reference = named("code_prior"), RunRef(path=str(run.path))
    network = PixelCNN(channels=8, layers=1, dropout=0.2)
    optim = OPTIM.model_copy(update={"samples": OPTIM.batch * 80 - 3, "lr": whole.optim.lr})
    return whole.but(
        data=Digits(),
        encoding=whole.encoding.but(codec=reference),
        model=whole.model.but(codec=reference, network=network),
        optim=optim,
    )


FAMILIES: dict[str, Callable[[Path], Recipe]] = {
    "ddpm": lambda _: recipe("ddpm", 40, Digits(), UNET),
    "ddpm-mlp": lambda _: recipe("ddpm", 90, MOONS, TOY),
    "improved-ddpm": lambda _: recipe("improved_ddpm", 80, MOONS, TOY),
    # Its objective keeps buffers, from which it chooses its steps.
    "variational": lambda _: recipe(
        "improved_ddpm", 80, MOONS, TOY, objective=Variational(steps=1000)
    ),
    "flow": lambda _: recipe("flow", 100, MOONS, TOY),
    "edm": lambda _: recipe("edm", 40, Digits(), UNET),
    **{name: partial(score_family, name) for name in SCORES},
    **{name: partial(codec_family, name) for name in CODECS},
    **{name: partial(sequence_family, name) for name in SEQUENCES},
    "code-prior": prior_family,
    "vector-quantised": lambda folder: longer(vq(folder), 200),
    "teacher-student": lambda folder: longer(follow(folder), 200),
    "sequence": lambda folder: longer(rollout(folder), 120),
}


def schema(made: Recipe) -> type[Recipe]:
    """What `Run.open` needs to know of a family that the library does not have."""
    return type(made)
