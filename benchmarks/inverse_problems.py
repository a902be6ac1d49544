"""How far from the posterior each method samples, where the posterior is known.

    python benchmarks/inverse_problems.py

Data are a Gaussian or mixtures of five with full covariances, standard deviation 1 over all
dimensions; the first half of the coordinates is measured, y = x0[: D/2] + std n. The posterior is
of the same kind, so that exact samples can be drawn:

    p(x0 | y) = Σ_k w_k' N(m_k + G_k (y − A m_k), (I − G_k A) C_k),   w_k' ∝ w_k N(y; A m_k, S_k)
    S_k = A C_k Aᵀ + std² I,   G_k = C_k Aᵀ S_k⁻¹

The denoiser is exact, and what is off is the method's and the grid's. A cell is the sliced
Wasserstein distance (order 2, 128 directions; root mean square over seeds and y) between its
samples and exact ones; `floor` is that between two sets of exact ones. `flow` is the probability
flow by second-order multistep, `SDE` the ancestral step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.inverse import DPS, MMPS, Method, PiGDM, posterior
from ornstein.diffusion.measurements import Mask, measured
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.oracle import Mixture
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import VP
from ornstein.diffusion.repaint import RePaint
from ornstein.diffusion.steps import Jump
from ornstein.diffusion.walk import SamplerStep, sample
from ornstein.noise import Noise

PROCESS = VP()
DIRECTIONS = 128
STDS = (0.0, 0.2, 1.0)
METHODS: dict[str, Method] = {
    "DPS": DPS(),
    "ΠGDM": PiGDM(),
    "MMPS, 2 iterations": MMPS(),
    "MMPS, 5 iterations": MMPS(iterations=5),
}
STEPS: dict[str, SamplerStep] = {"flow": Multistep(), "SDE": Jump(eta=1)}


class Size(NamedTuple):
    """How much is measured: seeds of the data, y of each, samples of each y, and grid steps."""

    seeds: int = 2
    measurements: int = 4
    samples: int = 256
    steps: int = 40


def main() -> None:
    torch.set_num_threads(1)
    started, size = time.perf_counter(), Size()
    for components, dim in ((1, 8), (5, 2), (5, 8)):
        found = table(components, dim, size)
        law = "a Gaussian" if components == 1 else f"mixtures of {components} Gaussians"
        print(f"\n{law} in {dim} dimensions, {size.steps} steps")
        print(f"{'':28}" + "".join(f"std {std:<8g}" for std in STDS))
        for name, row in found.items():
            cells = ("" if math.isnan(cell) else f"{cell:.3f}" for cell in row)
            print(f"{name:28}" + "".join(f"{cell:<12}" for cell in cells), flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")


def table(components: int, dim: int, size: Size) -> dict[str, list[float]]:
    """The distances of every way of sampling, by name, at each noise level of the measurement."""
    found: dict[str, list[float]] = {}
    for std in STDS:
        squares: dict[str, list[float]] = {}
        for seed in range(size.seeds):
            for name, distances in problem(mixture(seed, components, dim), seed, std, size).items():
                squares.setdefault(name, []).extend(d**2 for d in distances)
        for name, values in squares.items():
            found.setdefault(name, [math.nan] * len(STDS))
            found[name][STDS.index(std)] = math.sqrt(sum(values) / len(values))
    return found


def problem(data: Mixture, seed: int, std: float, size: Size) -> dict[str, list[float]]:
    """The distance for each y, by name, for these data."""
    dim = data.means.shape[1]
    measurement = Mask(torch.arange(dim) < dim // 2, std)
    noise = Noise.of(seed, "problem", size.measurements)
    y = measured(measurement, data.sample(noise.child("data")), noise.child("read"))
    own = [conditional(data, measurement, row) for row in y]

    def exact(purpose: str) -> Tensor:
        keyed = Noise.of(seed, purpose, size.samples)
        return torch.stack([one.sample(keyed.child(str(i))) for i, one in enumerate(own)])

    truth = exact("truth")
    each = y.repeat_interleave(size.samples, 0)

    def far(x: Tensor) -> list[float]:
        return sliced(x.view_as(truth), truth, seed)

    def drawn(denoise: Denoise, step: SamplerStep) -> Tensor:
        levels = LogSNR()(PROCESS, size.steps)
        keyed = Noise.of(seed, "walk", len(each))
        x = keyed.child("start").normal(0, (dim,), torch.float64)
        *_, last = sample(denoise, PROCESS, levels, step, x, keyed)
        return last.x

    found = {"floor": far(exact("again")), "no guidance": far(drawn(data, Multistep()))}
    for (kind, step), (name, method) in ((s, m) for m in METHODS.items() for s in STEPS.items()):
        guided = posterior(data, measurement, each, method)
        found[f"{name}, {kind}"] = far(drawn(guided, step))
    if std == 0:
        for visits in (1, 10):
            step = RePaint(Jump(eta=1), measurement.mask, each, visits)
            found[f"RePaint, {visits} of each step"] = far(drawn(data, step))
    return found


def mixture(seed: int, components: int, dim: int) -> Mixture:
    """Gaussians of unequal weights and tilts; mean 0 and variance 1 over all dimensions."""
    noise = Noise.of(seed, f"mixture {dim}", components)
    weights = 0.5 + noise.uniform(0, (), torch.float64)
    weights = weights / weights.sum()
    means = noise.normal(1, (dim,), torch.float64)
    means = means - weights @ means
    roots = 0.35 * noise.normal(2, (dim, dim), torch.float64) / math.sqrt(dim)
    covariances = roots @ roots.mT + 0.02 * torch.eye(dim, dtype=torch.float64)
    trace = covariances.diagonal(dim1=1, dim2=2).sum(1)
    scale = ((weights @ (means.square().sum(1) + trace)) / dim).sqrt()
    return Mixture(weights, means / scale, covariances / scale**2)


def conditional(data: Mixture, measurement: Callable[[Tensor], Tensor], y: Tensor) -> Mixture:
    """The law of x0 given one y [D], where `measurement` is a `Mask`."""
    assert isinstance(measurement, Mask)
    a = torch.eye(len(y), dtype=torch.float64)[measurement.mask]
    left = y[measurement.mask] - data.means @ a.T
    noise = measurement.std**2 * torch.eye(len(a), dtype=torch.float64)
    own = a @ data.covariances @ a.T + noise
    gain = torch.linalg.solve(own, a @ data.covariances).mT
    energy = (left * torch.linalg.solve(own, left)).sum(1) + torch.logdet(own)
    means = data.means + torch.einsum("kij,kj->ki", gain, left)
    covariances = data.covariances - gain @ a @ data.covariances
    weights = torch.softmax(data.weights.log() - 0.5 * energy, 0)
    return Mixture(weights, means, 0.5 * (covariances + covariances.mT))


def sliced(x: Tensor, y: Tensor, seed: int) -> list[float]:
    """Sliced Wasserstein distances of order 2 between samples [N, B, D] and [N, B, D], N of them:
    the root of the mean over directions, times √D, so that a shift by d is at a distance |d|."""
    way = Noise.of(seed, "directions", DIRECTIONS).normal(0, x.shape[-1:], torch.float64)
    way = way / way.norm(dim=1, keepdim=True)
    gaps = (x @ way.T).sort(dim=1).values - (y @ way.T).sort(dim=1).values
    return (x.shape[-1] * gaps.square().mean((1, 2))).sqrt().tolist()


if __name__ == "__main__":
    main()
