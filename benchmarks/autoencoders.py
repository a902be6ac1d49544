"""What the notes say that each autoencoder is for, measured beside the same net without it.

    python benchmarks/autoencoders.py PATH [PART ...] [--samples 300_000] [--number 2000]
        [--runs FOLDER] [--filters PICTURE.png] [--sparsity CHART.png] [KEY=VALUE ...]

denoising     (notes eq 2) mean squared error of what is restored from corrupted held-out images,
              trained on one strength of each kind and measured at several; "as is": of the
              corrupted images themselves
sparse        (eq 3, fig 1-3) how active the units are on held-out images: ρ̂ of the least active
              one, the middle one and the most active one; Σ_j KL(ρ ‖ ρ̂_j); the share of units that
              are above ½. The chart draws KL(¼ ‖ ρ̂) over ρ̂, and ρ̂ of all units
k_sparse      (§1.1.3, fig 1-4) at several k: the reconstruction, the share of units that any image
              uses, and over how many pixels the filter of a unit spreads, (Σ w²)² / Σ w⁴ of its
              decoder weights w about their mean. The picture shows filters of the most used units,
              in grey where no image uses one
contractive   (eq 4) how far a code moves when its image does, each as a share of its own spread,
              √(E‖Δz‖² / tr Cov z) / √(E‖Δx‖² / tr Cov x): along the data, in the plane through
              an image and its nearest neighbours of the training split, and across it

PATH is what `ornstein train --data` takes, such as MNIST's Parquet files; all parts are measured
unless some are named. Errors are mean squares per value where a range is 1 wide; codes are the
likeliest ones, weights the runs' average. Run again, only what is not trained yet is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein import Run
from ornstein.autoencoders.corruption import Corruption, GaussianNoise, Masking, SaltAndPepper
from ornstein.autoencoders.penalties import coin_kl, jacobian_norm
from ornstein.charts import Curve, Panel, chart
from ornstein.cli.request import request
from ornstein.noise import Noise, permutation
from ornstein.pictures import grid

# What is trained on, and what is measured under.
CORRUPTIONS: tuple[tuple[Corruption, tuple[Corruption, ...]], ...] = (
    (Masking(p=0.5), tuple(Masking(p=p) for p in (0.0, 0.25, 0.5, 0.75))),
    (GaussianNoise(std=1.0), tuple(GaussianNoise(std=std) for std in (0.0, 0.5, 1.0, 1.5))),
    (SaltAndPepper(p=0.25), tuple(SaltAndPepper(p=p) for p in (0.0, 0.1, 0.25, 0.5))),
)
RHOS = (0.05, 0.1, 0.25)
KS = (70, 40, 25, 10)
WEIGHTS = (1.0, 5.0, 20.0)
NEIGHBOURS, SHOWN = 10, 64


class Row(NamedTuple):
    """A line of the table: what was measured, of which net, and of the same net without it."""

    recipe: str
    measure: str
    value: float
    plain: float | None = None

    def line(self) -> str:
        plain = "" if self.plain is None else f"{self.plain:.4g}"
        return f"| {self.recipe} | {self.measure} | {self.value:.4g} | {plain} |"


class Trained(NamedTuple):
    """A codec and held-out images x [n, C, H, W], at its scale."""

    run: Run
    model: Any
    x: Tensor

    @property
    def z(self) -> Tensor:
        """The likeliest codes of x, [n, units]."""
        z: Tensor = self.model.encode(self.x).z
        return z

    def error(self, seen: Tensor) -> float:
        """Of what is made of `seen`, against x."""
        return squares(self.model.reconstruct(seen) - self.x)


def squares(error: Tensor) -> float:
    """Mean square per value, where a range is 1 wide; the model's is 2."""
    return error.square().mean().item() / 4


class Bench(NamedTuple):
    """What all parts share."""

    options: argparse.Namespace
    overrides: list[str]

    def trained(self, recipe: str, *overrides: str) -> Trained:
        """The run of a recipe, trained as far as asked for."""
        options = self.options
        words = [*overrides, *self.overrides]
        length = {"optim.samples": options.samples}
        asked = request(recipe, options.data, None, length, words).recipe
        name = "-".join([recipe, *(word.split(".", 1)[1].replace("=", "-") for word in overrides)])
        run = Run.create(asked, options.runs, f"{name}-{options.samples}")
        for _ in run.train(previews=False):
            pass
        unseen = run.dataset.held_out
        rows = permutation(0, "measured", 0, len(unseen))[: options.number].numpy()
        x = run.dataset.batch(np.sort(unseen[rows]), run.recipe.objective.range).x
        return Trained(run, run.learner().model, x)


def denoising(bench: Bench) -> Iterator[Row]:
    """Errors of what is restored."""
    plain = bench.trained("denoising_autoencoder", "objective.corruption=null")
    info = plain.run.recipe.at_model_scale(plain.run.info)
    for chosen, levels in CORRUPTIONS:
        name, value = strength(chosen)
        words = (f"kind={chosen.kind}", f"{name}={value}")
        words = tuple(f"objective.corruption.{word}" for word in words)
        ours = bench.trained("denoising_autoencoder", *words)
        for level in levels:
            seen = level(ours.x, Noise.of(0, level.kind, len(ours.x)), info)
            measure = f"error at {name}={strength(level)[1]:g}"
            measure += f"; as is {squares(seen - ours.x):.4f}"
            recipe = f"denoising, {chosen.kind} {name}={value:g}"
            yield Row(recipe, measure, ours.error(seen), plain.error(seen))


def strength(corruption: Corruption) -> tuple[str, float]:
    """The field that says how much is corrupted, and its value."""
    ((name, value),) = corruption.model_dump(include={"p", "std"}).items()
    return name, value


def sparse(bench: Bench) -> Iterator[Row]:
    """Activations at each ρ, and their chart."""
    plain = bench.trained("sparse_autoencoder", "objective.sparsity=null")
    active = {"plain": plain.z.mean(0)}
    for rho in RHOS:
        ours = bench.trained("sparse_autoencoder", f"objective.sparsity.rho={rho}")
        active[f"rho = {rho:g}"] = ours.z.mean(0)
        both = [found.z.double() for found in (ours, plain)]
        for name, take in (("least", 0.0), ("median", 0.5), ("largest", 1.0)):
            yield Row(
                f"sparse, ρ={rho}", f"ρ̂, {name}", *(z.mean(0).quantile(take).item() for z in both)
            )
        cost = (coin_kl(rho, z.mean(0)).sum().item() for z in both)
        yield Row(f"sparse, ρ={rho}", "Σ KL(ρ ‖ ρ̂), nats", *cost)
        share = ((z > 0.5).double().mean().item() for z in both)
        yield Row(f"sparse, ρ={rho}", "share of units above ½", *share)
        yield Row(f"sparse, ρ={rho}", "error", ours.error(ours.x), plain.error(plain.x))
    if bench.options.sparsity is not None:
        q = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
        curves = [Curve(q.numpy(), coin_kl(0.25, q).numpy())]
        ranks = np.linspace(0, 1, len(plain.z[0]))
        sorted_ = [Curve(ranks, np.sort(v.numpy()), name) for name, v in active.items()]
        panels = [
            Panel(curves, "KL of coins, 0.25 from q, in nats", "q"),
            Panel(sorted_, "mean activations on held-out images", "share of units"),
        ]
        chart(panels).save(bench.options.sparsity)


def k_sparse(bench: Bench) -> Iterator[Row]:
    """Filters at each k, and their picture."""
    plain = bench.trained("k_sparse_autoencoder", "model.bottleneck.kind=plain")
    shown = []
    for k in KS:
        ours = bench.trained("k_sparse_autoencoder", f"model.bottleneck.k={k}")
        use = (ours.z != 0).double().mean(0)
        filters = decoder_filters(ours)
        yield Row(f"k-sparse, k={k}", "error", ours.error(ours.x), plain.error(plain.x))
        yield Row(f"k-sparse, k={k}", "share of units in use", (use > 0).double().mean().item(), 1)
        spread = (pixels(w).median().item() for w in (filters[use > 0], decoder_filters(plain)))
        yield Row(f"k-sparse, k={k}", "pixels of a filter, median", *spread)
        first = use.argsort(descending=True)[:SHOWN]
        first_used = filters[first] * (use[first] > 0).unsqueeze(1)  # others are as they began
        shown.append(tile(first_used, ours.run.info.shape))
    if bench.options.filters is not None:
        grid(np.stack(shown), columns=len(shown)).save(bench.options.filters)


def decoder_filters(found: Trained) -> Tensor:
    """What each unit adds to the picture, [units, values]."""
    weights: Tensor = found.model.decoder.net[0].weight
    return weights.T


def pixels(filters: Tensor) -> Tensor:
    """Over how many values each filter spreads: all of them if they are alike but for signs."""
    w = filters - filters.mean(1, keepdim=True)
    return w.square().sum(1).square() / w.pow(4).sum(1)


def tile(filters: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Filters as one square picture uint8 [H, W, C], each from its own black to its own white."""
    side = math.isqrt(len(filters))
    w = filters[: side * side]
    reach = w.abs().amax(1, keepdim=True).clamp(min=1e-12)
    bytes_ = (127.5 + 127.5 * w / reach).round().to(torch.uint8).view(-1, *shape)
    rows = bytes_.permute(0, 2, 3, 1).unflatten(0, (side, side))
    framed = torch.nn.functional.pad(rows, (0, 0, 0, 1, 0, 1), value=40)
    return framed.transpose(1, 2).flatten(0, 1).flatten(1, 2).numpy()


def contractive(bench: Bench) -> Iterator[Row]:
    """Sensitivity along the data and across."""
    plain = bench.trained("contractive_autoencoder", "objective.contraction=null")
    without = sensitivity(plain)
    for weight in WEIGHTS:
        ours = bench.trained("contractive_autoencoder", f"objective.contraction.weight={weight}")
        recipe = f"contractive, λ={weight:g}"
        for name, value in sensitivity(ours).items():
            yield Row(recipe, name, value, without[name])
        yield Row(recipe, "error", ours.error(ours.x), plain.error(plain.x))


def sensitivity(found: Trained) -> dict[str, float]:
    """Names and values of what part `contractive` measures."""
    model, x = found.model, found.x[:500]
    info, data = found.run.info, found.run.dataset
    train = data.batch(data.train, found.run.recipe.objective.range).x.flatten(1)
    near = torch.cdist(x.flatten(1), train).topk(NEIGHBOURS, largest=False).indices
    planes = torch.linalg.qr((train[near] - x.flatten(1).unsqueeze(1)).transpose(1, 2)).Q
    spread_x, spread_z = (v.flatten(1).var(0).sum() for v in (found.x, found.z))
    scale = spread_x / spread_z

    def encode(x: Tensor) -> Tensor:
        z: Tensor = model.encode(x).z
        return z

    with torch.no_grad():
        whole = jacobian_norm(encode, x)
    along = torch.zeros(len(x))
    for i in range(NEIGHBOURS):
        way = planes[:, :, i].view_as(x)
        moved: Tensor = torch.func.jvp(encode, (x,), (way,))[1]
        along += moved.square().sum(1)
    across = (whole - along) / (math.prod(info.shape) - NEIGHBOURS)
    along = along / NEIGHBOURS
    result = {
        "‖∂z/∂x‖², at the model's scale": whole.mean().item(),
        "sensitivity along the data": (along.mean() * scale).sqrt().item(),
        "sensitivity across": (across.mean() * scale).sqrt().item(),
        "along / across": (along.mean() / across.mean()).sqrt().item(),
    }
    for std in (0.1, 0.3):
        noisy = x + std * Noise.of(0, "perturbed", len(x)).normal(0, x.shape[1:])
        moved = (encode(noisy) - encode(x)).square().sum(1).mean()
        result[f"change under noise of std {std}"] = (moved / spread_z).sqrt().item()
    return result


PARTS = {
    "denoising": denoising,
    "sparse": sparse,
    "k_sparse": k_sparse,
    "contractive": contractive,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("words", nargs="*", help="parts, all if none is named, and overrides")
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--runs", type=Path, default=Path("runs/autoencoders"))
    parser.add_argument("--filters", type=Path, help="a picture of part k_sparse")
    parser.add_argument("--sparsity", type=Path, help="a chart of part sparse")
    options = parser.parse_args()
    named = [word for word in options.words if "=" not in word] or list(PARTS)
    bench = Bench(options, [word for word in options.words if "=" in word])
    print("| recipe | measure | with | without |\n|---|---|---:|---:|")
    for name in named:
        for row in PARTS[name](bench):
            print(row.line(), flush=True)


if __name__ == "__main__":
    main()
