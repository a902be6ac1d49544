"""Bits per dimension of our recipes on one data set: the notes' fig 2-6 in miniature.

    python benchmarks/bits_per_dim.py digits|PATH [RECIPE ...] [--samples 60_000] [--number 256]
        [--bound 250] [--probes 1] [--runs FOLDER] [KEY=VALUE ...]

Every recipe trains for the same number of samples, so that a busy machine changes nothing but the
time, with one schedule of the rate and one average for all (SCHEDULE; overrides come after it).
Run again, it goes on where it was, and what is trained already is only measured. Then the same
held-out samples are measured in three ways, each with its 95 % interval over samples and probes:

flow    of the probability flow from t = 1 (`step=adaptive`), whole numbers made real by uniform
        noise in their bin, as is usual, or by noise of the model's smallest level
bound   the variational bound of `--bound` ancestral steps (0 for none), with the variance β, or the
        learned one; x̂0 clipped to the data's range; steps even in t or, where the process has
        signal left at t = 1, in log-SNR, whichever bound is smaller

All are upper bounds on average. PATH is anything that `ornstein train --data` takes, such as
MNIST's Parquet files. It prints a table in Markdown, row by row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ornstein import Run
from ornstein.cli.request import request
from ornstein.diffusion.flow import Adaptive
from ornstein.diffusion.grid import LogSNR, Trailing, Uniform
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral
from ornstein.evaluation import bound_of
from ornstein.noise import permutation
from ornstein.scores import Bound

# `ddim` is `ddpm` with another sampler; `demo` is `edm` for a minute; ddpm_cifar10 is for a GPU.
RECIPES = (
    *("ddpm", "improved_ddpm", "v_prediction", "flow", "edm"),
    *("ncsnv2", "ve_sde", "vp_sde", "subvp_sde", "scoreflow"),
)
SCHEDULE = (
    *("optim.lr=3e-3", "optim.batch=32", "optim.warmup=5000", "optim.decay=cosine"),
    "optim.averages=[{kind: power, width: 0.1}]",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("words", nargs="*", help="recipes, all if none is named, and overrides")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--number", type=int, default=256)
    parser.add_argument("--bound", type=int, default=250)
    parser.add_argument("--probes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/bits_per_dim"))
    options = parser.parse_args()
    recipes = [word for word in options.words if "=" not in word] or RECIPES
    overrides = [*SCHEDULE, *(word for word in options.words if "=" in word)]
    columns = ("recipe", "flow, uniform noise", "flow, own noise", "bound", "samples")
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    for name in recipes:
        run = trained(name, options.data, options.samples, options.runs, overrides)
        unseen = run.dataset.held_out
        rows = permutation(0, "likelihood", 0, len(unseen))[: options.number].numpy()
        x = run.dataset.x[np.sort(unseen[rows])]
        cells = [f"`{name}`"]
        for noise in ("uniform", "noise"):
            flow = {"probes": options.probes, "dequantise": noise}
            cells.append(words(measured(run, follow().but(flow=flow), x)))
        bounds = [measured(run, chain, x) for chain in chains(run, options.bound)]
        smallest = min(bounds, key=lambda found: found.bits_per_dim.value, default=None)
        cells.append("" if smallest is None else words(smallest))
        print(f"| {' | '.join([*cells, f'{run.samples:,}'])} |", flush=True)
    print(f"\n{len(x):,} held-out samples of {run.info.name}, {list(run.info.shape)}")


def trained(recipe: str, data: str, samples: int, runs: Path, overrides: list[str]) -> Run:
    """The run of a recipe after so many samples."""
    length = {"optim.samples": samples}
    asked = request(recipe, data, None, length, overrides).recipe
    run = Run.create(asked, runs, f"{recipe}-{samples}-{asked.data.kind}")
    for _ in run.train(previews=False):
        pass
    return run


def follow() -> Sampling:
    """The flow from t = 1 to the smallest level of the process."""
    return Sampling(step=Adaptive(), grid=Uniform(), steps=2)


def chains(run: Run, steps: int) -> list[Sampling]:
    """Ancestral chains of so many steps, by grid."""
    signal = float(run.recipe.model.process(torch.ones(1, dtype=torch.float64))[0]) > 0
    grids = [Trailing(), LogSNR()] if signal else [Trailing()]
    step = Ancestral(spread=1.0)
    return [Sampling(step=step, grid=grid, steps=steps, clip=True) for grid in grids if steps]


def measured(run: Run, how: Sampling, x: np.ndarray) -> Bound:
    """−log p of some held-out samples."""
    return bound_of(run.nats(x, generation=how, batch=128), run.info.shape, "held_out")


def words(found: Bound) -> str:
    """A value with its interval."""
    bits = found.bits_per_dim
    return f"{bits.value:.3f} ({bits.low:.3f} to {bits.high:.3f})"


if __name__ == "__main__":
    main()
