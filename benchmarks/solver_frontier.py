"""Error against evaluations with exact denoisers: our solvers beside the best of everyone else's.

    python benchmarks/solver_frontier.py --peers PYTHON [--problems 2d-vp,2d-edm,64d-vp,64d-edm]
        [--seeds 100,101,102] [--only REGEX] [--without REGEX] [--cache FOLDER] [--write FILE]

Problems are the Gaussian mixtures of `mixtures.py`; errors are ‖x − reference‖/√D of a sample, as
their median and root mean square over 512. Every evaluation is charged: a solver takes the most
steps that the budget pays for. The *frontier* is, budget by budget, the best of all the solvers of
`solver_peers.py`, which run in the interpreter PYTHON; who holds it is named. Ours are the
configurations of `ours` below, each the same at all budgets; *ratio* is its error over the
frontier's, in each cell, with its geometric mean over the seven and the worst of them.

Seeds 0 to 9 are those that the default was chosen on, and are not reported.
--only says which of the peers are measured, --without which have no say in the frontier. What is
cached is never measured again: FOLDER/PROBLEM-seedN.json has the peers' errors, by solver and
budget, as [median, RMS], and PROBLEM-seedN.npy the reference [512, D].
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtures import BUDGETS, STD, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.diffusion.walk import SamplerStep

HERE = Path(__file__).parent
PROBLEMS = ("2d-vp", "2d-edm", "64d-vp", "64d-edm")
KINDS = ("median", "RMS")
Errors = dict[str, dict[str, tuple[float, float]]]
"""By solver and budget: median and RMS."""


def ours() -> dict[str, tuple[Any, Any]]:
    """By name: step and grid."""
    from ornstein.diffusion.grid import LogSNR
    from ornstein.diffusion.multistep import Multistep
    from ornstein.diffusion.sampling import Sampling

    default = Sampling()
    return {
        "default": (default.step, default.grid),
        "order 2, x0, log-SNR": (Multistep(order=2, field="x0", clock="log_snr"), LogSNR()),
    }


def measured(problem: Problem) -> dict[int, Errors]:
    """By seed: the errors of ours; infinite where a grid is refused."""
    import torch

    from ornstein.errors import ConfigError

    found: dict[int, Errors] = {seed: {} for seed in problem.seeds}
    for name, (step, grid) in ours().items():
        for budget in BUDGETS:
            try:
                x = walk(problem, step, grid, budget)
            except ConfigError as error:
                print(f"{name} at {budget} evaluations: {error}", file=sys.stderr)
                x = torch.full_like(problem.reference, math.inf)
            for seed, errors in problem.errors(x).items():
                found[seed].setdefault(name, {})[str(budget)] = errors
    return found


def walk(problem: Problem, step: Any, grid: Any, budget: int) -> Tensor:
    """The samples by a step and a grid of ours, with the most steps that the budget pays for."""
    from ornstein.diffusion.levels import Level
    from ornstein.diffusion.prediction import Prediction
    from ornstein.diffusion.process import VE, VP
    from ornstein.diffusion.walk import sample
    from ornstein.noise import Noise

    high, low = problem.ratios
    process = VP() if problem.process == "vp" else VE(sigma_min=low, sigma_max=high)
    step, grid = with_std(step), with_std(grid)
    levels = grid(process, affordable(step, budget))
    calls = 0

    def denoise(x: Tensor, level: Level) -> Prediction:
        nonlocal calls
        calls += 1
        alpha, sigma = float(level.alpha), float(level.sigma)
        return Prediction.from_x0(x, level, problem.x0(x / alpha, sigma / alpha))

    first = levels[0]
    x = float(first.alpha) * problem.start(float(first.sigma / first.alpha))
    for state in sample(denoise, process, levels, step, x, Noise.of(0, "steps", len(x))):
        x = state.x
    if calls > budget:
        raise RuntimeError(f"{step} asked {calls} times, and had a budget of {budget}")
    return x


def with_std(choice: Any) -> Any:
    """A step or a grid with σ_d as measured from the data, as `Sampling` fills it in."""
    if getattr(choice, "sigma_data", STD) is None:
        return choice.model_copy(update={"sigma_data": STD})
    return choice


def affordable(step: SamplerStep, budget: int) -> int:
    """The most steps whose evaluations are within the budget."""
    return max(n for n in range(1, budget + 1) if (step.evaluations(n) or math.inf) <= budget)


def peers(
    python: str, problem: str, seeds: list[int], cache: Path | None, only: str = ""
) -> dict[int, Errors]:
    """By seed: the errors of everyone else's whose name matches, from the cache where they are in
    it."""
    found = {}
    for seed in seeds:
        file = cache and cache / f"{problem}-seed{seed}.json"
        if file and file.exists():
            found[seed] = json.loads(file.read_text())
    if missing := [seed for seed in seeds if seed not in found]:
        dim, process = problem.split("d-")
        asked = ",".join(map(str, missing))
        command = [python, str(HERE / "solver_peers.py"), dim, process, asked, only]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for seed, errors in json.loads(done.stdout.splitlines()[-1]).items():
            found[int(seed)] = errors
            if cache:
                cache.mkdir(parents=True, exist_ok=True)
                (cache / f"{problem}-seed{seed}.json").write_text(json.dumps(errors))
    return found


def posed(problem: str, seeds: list[int], cache: Path | None) -> Problem:
    """The problem, with the references of its seeds from the cache where they are in it."""
    import numpy as np
    import torch

    dim, process = problem.split("d-")
    found = Problem(int(dim), process, *seeds)
    files = [cache / f"{problem}-seed{seed}.npy" for seed in seeds] if cache else []
    if files and all(file.exists() for file in files):
        found.reference = torch.cat([torch.from_numpy(np.load(file)) for file in files])
    elif cache:
        cache.mkdir(parents=True, exist_ok=True)
        for file, part in zip(files, found.reference.chunk(len(seeds)), strict=True):
            np.save(file, part.numpy(), allow_pickle=False)
    return found


def frontier(errors: Errors, kind: int) -> dict[int, tuple[float, str]]:
    """By budget: the smallest error, and whose it is."""
    held = {budget: str(budget) for budget in BUDGETS}
    return {
        budget: min((by[key][kind], name) for name, by in errors.items() if key in by)
        for budget, key in held.items()
    }


def table(problem: str, seed: int, theirs: Errors, mine: Errors) -> list[str]:
    """Markdown: the frontier and ours, errors × 1e-3, with our ratios to it."""
    lines = [f"**{problem}, seed {seed}** ({len(theirs)} solvers of others; errors × 1e-3)", ""]
    for kind, title in enumerate(KINDS):
        best = frontier(theirs, kind)
        lines += [
            f"| {title} |" + "".join(f" {budget} |" for budget in BUDGETS) + " geo. mean | worst |",
            "|---|" + "---:|" * (len(BUDGETS) + 2),
            "| frontier |" + "".join(f" {1e3 * best[b][0]:.3g} |" for b in BUDGETS) + " | |",
            "| held by |" + "".join(f" {best[b][1]} |" for b in BUDGETS) + " | |",
        ]
        for name, by in mine.items():
            errors = [by[str(b)][kind] for b in BUDGETS]
            ratios = [e / best[b][0] for e, b in zip(errors, BUDGETS, strict=True)]
            lines += [
                f"| ours, {name} |" + "".join(f" {1e3 * e:.3g} |" for e in errors) + " | |",
                "| ... ratio |"
                + "".join(f" {ratio:.2f} |" for ratio in ratios)
                + f" {geometric(ratios):.2f} | {max(ratios):.2f} |",
            ]
        lines.append("")
    return lines


def summary(found: dict[tuple[str, int], tuple[Errors, Errors]]) -> list[str]:
    """Markdown: the geometric mean and the worst of the ratios of every problem and seed."""
    names = list(next(iter(found.values()))[1])
    lines = [
        "Ratios to the frontier, geometric mean over the budgets / worst of them:",
        "",
        "| problem | seed |" + "".join(f" {name}, {kind} |" for name in names for kind in KINDS),
        "|---|---:|" + "---:|" * (len(names) * len(KINDS)),
    ]
    for (problem, seed), (theirs, mine) in found.items():
        cells = ""
        for name in names:
            for kind in range(len(KINDS)):
                best = frontier(theirs, kind)
                ratios = [mine[name][str(b)][kind] / best[b][0] for b in BUDGETS]
                cells += f" {geometric(ratios):.2f} / {max(ratios):.2f} |"
        lines.append(f"| {problem} | {seed} |{cells}")
    return [*lines, ""]


def geometric(ratios: Iterable[float]) -> float:
    return statistics.geometric_mean(ratios)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", default="100,101,102")
    parser.add_argument("--only", default="", help="which of the peers, a regular expression")
    parser.add_argument("--without", help="who has no say in the frontier, another one")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    found = {}
    for problem in asked.problems.split(","):
        theirs = peers(asked.peers, problem, seeds, asked.cache, asked.only)
        mine = measured(posed(problem, seeds, asked.cache))
        for seed in seeds:
            names = [n for n in theirs[seed] if not (asked.without and re.search(asked.without, n))]
            found[problem, seed] = {name: theirs[seed][name] for name in names}, mine[seed]
    lines = summary(found)
    for (problem, seed), (others, own) in found.items():
        lines += table(problem, seed, others, own)
    text = "\n".join(lines)
    if asked.write:
        asked.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
