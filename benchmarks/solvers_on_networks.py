"""Fréchet distance against evaluations on a trained network: our solvers beside diffusers'.

    python benchmarks/solvers_on_networks.py RUN [--peers PYTHON] [--samples 2000] [--seed 0]
        [--budgets 5,8,10,15,20,35,50] [--only REGEX] [--write FILE] [--threads 1]

All drive the same weights of the run from the same noise, and one reference scores all of them: the
features of the classifier that `ornstein evaluate` would use, against the training split. Every
evaluation is charged: a solver takes the most steps that the budget pays for. Peers run in the
interpreter PYTHON, which needs the packages of this project beside those of `solver_peers.py`; they
are asked at exactly their own σ. Below the table stands where the default loses beyond its
interval: where another's distance is under the lower end of the default's. An interval is that of
other samples; since all start from the same noise, differences are surer than it says.

A network's own flow does not end at the data, so a solver that follows it badly may score better
than the flow itself. The flow is therefore a row of its own, by the default with 200 evaluations,
and a second table says how far from its samples each solver ends, starting from the same noise:
the root mean square over values, in standard deviations of the data.

A run of a minute:  ornstein train demo --run NAME
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from ornstein.run import Run
    from ornstein.scores import Estimate

BUDGETS = "5,8,10,15,20,35,50"
BATCH = 250
FLOW = 200  # evaluations that follow the flow to within what rounded values show
PEERS = (  # of the names in `solver_peers.diffusers_solvers`, with what each is known for
    *("DDIM trailing", "DDIM linspace", "Euler karras", "Heun karras", "Heun exponential"),
    *("EDMEuler karras", "PNDM linspace", "LMS karras"),
    *("DPM++2M karras", "DPM++2M exponential", "DPM++2M linspace", "DPM++2M trailing"),
    *("DPM++3M karras", "DPM++3M exponential", "DPM++3M linspace"),
    *("DPM++2S karras", "DPM++3S karras", "DPM++3S exponential"),
    *("UniPC-2 bh2 karras", "UniPC-2 bh2 exponential", "UniPC-2 bh2 linspace"),
    *("UniPC-3 bh2 karras", "UniPC-3 bh2 exponential", "UniPC-3 bh1 noise linspace"),
    *("DEIS-2 karras", "DEIS-2 linspace", "DEIS-3 karras", "DEIS-3 exponential", "DEIS-3 linspace"),
    *("EDM-DPM++3M heun karras", "SA-33 exponential"),
)


class Cell(NamedTuple):
    """Of a solver at a budget: the Fréchet distance, and how far off the flow it ends."""

    frechet: Estimate
    off: float


def ours() -> dict[str, Any]:
    """By name: the `Sampling` whose step and grid are used at all budgets."""
    from ornstein.diffusion.grid import LogSNR
    from ornstein.diffusion.multistep import Multistep
    from ornstein.diffusion.sampling import Sampling

    before = Sampling(step=Multistep(order=2, field="x0", clock="log_snr"), grid=LogSNR())
    return {"default": Sampling(), "order 2, x0, log-SNR": before}


def drawn(run: Run, how: Any, budget: int, count: int, seed: int) -> np.ndarray:
    """Samples of ours in native values, with the most steps that the budget pays for."""
    steps = max(n for n in range(1, budget + 1) if (how.step.evaluations(n) or math.inf) <= budget)
    how = how.model_copy(update={"steps": steps})
    return run.generate(count, seed, generation=how, batch=BATCH)


def theirs(asked: argparse.Namespace, budgets: list[int]) -> None:
    """In the peers' interpreter: write every solver's samples, and print their files as JSON."""
    import numpy as np
    import torch
    from solver_peers import Task, diffusers_solvers, solve

    from ornstein.diffusion.denoiser import bind
    from ornstein.diffusion.levels import level_of_log_snr
    from ornstein.noise import Noise
    from ornstein.run import Run

    run = Run.open(asked.run)
    model = run.learner("").model.eval()
    info, process, denoise = run.recipe.at_model_scale(run.info), model.process, bind(model)
    ends = process(torch.tensor([1.0, process.smallest], dtype=torch.float64))
    high, low = (ends[1] / ends[0]).tolist()
    vp = process.kind != "ve"

    def x0(y: Any, ratio: float) -> Any:
        level = level_of_log_snr(process, -2 * math.log(ratio))
        return denoise(y * float(level.alpha), level).x0

    def task(ids: range) -> Task:
        noise = Noise.of(asked.seed, "generate", torch.tensor(ids))
        z = noise.child("start").normal(0, info.shape)
        return Task(x0, lambda r: z * math.sqrt(r**2 + model.sigma_data**2), (high, low), vp)

    parts = [range(i, min(i + BATCH, asked.samples)) for i in range(0, asked.samples, BATCH)]
    tasks = [task(part) for part in parts]
    files: dict[str, dict[str, str]] = {}
    solvers = diffusers_solvers(vp)
    for name in (f"diffusers {peer}" for peer in PEERS):
        if name not in solvers or not re.search(asked.only, name):
            continue
        for budget in budgets:
            found = [solve(solvers[name], one, budget) for one in tasks]
            if any(x is None or not bool(torch.isfinite(x).all()) for x in found):
                continue
            file = asked.out / f"{len(files)}-{budget}.npy"
            native = np.concatenate([run.native(x) for x in found])
            np.save(file, native, allow_pickle=False)
            files.setdefault(name, {})[str(budget)] = str(file)
    print(json.dumps(files))


def measured(
    asked: argparse.Namespace, budgets: list[int]
) -> tuple[Estimate, dict[str, dict[int, Cell]]]:
    """Of the flow: the Fréchet distance; by solver and budget: that, and how far off the flow."""
    import numpy as np

    from ornstein.data.images import cache_folder
    from ornstein.evaluation import reference_for
    from ornstein.features.select import extractor_for
    from ornstein.metrics.frechet import frechet
    from ornstein.run import Run

    run = Run.open(asked.run)
    eye = extractor_for(run.dataset, 0, cache_folder(), "", run.device)
    real = reference_for(run.dataset, eye, 0, count=asked.samples, cache=cache_folder()).real

    flow = drawn(run, ours()["default"], FLOW, asked.samples, asked.seed)

    def cell(samples: np.ndarray) -> Cell:
        apart = samples.astype(float) - flow.astype(float)
        off = float(np.sqrt(np.mean(apart**2))) / run.info.std
        return Cell(frechet(eye.features(samples), real.gaussian), off)

    found: dict[str, dict[int, Cell]] = {}
    for name, how in ours().items():
        found[f"ours, {name}"] = {
            budget: cell(drawn(run, how, budget, asked.samples, asked.seed)) for budget in budgets
        }
    with tempfile.TemporaryDirectory() as folder:
        command = [asked.peers, __file__, *sys.argv[1:], "--out", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for name, files in json.loads(done.stdout.splitlines()[-1]).items():
            found[name] = {int(b): cell(np.load(file)) for b, file in files.items()}
    return cell(flow).frechet, found


def table(flow: Estimate, found: dict[str, dict[int, Cell]], budgets: list[int]) -> list[str]:
    """Markdown, with what the default loses beyond its interval."""
    head = "".join(f" {b} |" for b in budgets)
    line = "|---|" + "---:|" * len(budgets)
    default = found["ours, default"]
    lines = [f"| Fréchet distance at |{head}", line]
    for name, by in found.items():
        lines.append(f"| {name} |" + _row({b: c.frechet.value for b, c in by.items()}, budgets))
        if name == "ours, default":
            ends = (default[b].frechet for b in budgets)
            lines.append(
                "| ... 95 % interval |" + "".join(f" {e.low:.2f}-{e.high:.2f} |" for e in ends)
            )
    lost = []
    for b in budgets:
        others = ((by[b].frechet.value, name) for name, by in found.items() if b in by)
        value, name = min(others)
        if value < default[b].frechet.low:
            lost.append(f"at {b}, {value:.2f} of {name}, below {default[b].frechet.low:.2f}")
    lines += [
        "",
        f"The flow itself: {flow.value:.2f} ({flow.low:.2f} to {flow.high:.2f}). The default loses "
        f"beyond its interval: {'; '.join(lost) if lost else 'nowhere'}.",
        "",
        f"| off the flow at |{head}",
        line,
    ]
    for name, by in found.items():
        lines.append(f"| {name} |" + _row({b: c.off for b, c in by.items()}, budgets, 3))
    return [*lines, ""]


def _row(values: dict[int, float], budgets: list[int], digits: int = 2) -> str:
    return "".join(f" {values[b]:.{digits}f} |" if b in values else " |" for b in budgets)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", default=BUDGETS)
    parser.add_argument("--only", default="", help="which of the peers, a regular expression")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    budgets = [int(budget) for budget in asked.budgets.split(",")]
    if asked.out:
        theirs(asked, budgets)
        return
    text = "\n".join(table(*measured(asked, budgets), budgets))
    if asked.write:
        asked.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]
    main()
