"""What a sampler costs beyond the network: microseconds per evaluation, beside diffusers.

    python benchmarks/sampling_overhead.py [--peers PYTHON] [--threads 2] [--rounds 5]

Images 3×32×32 at batch 1 and 64 and a network that hands back its input. Ours is all of `sample`
with a `Denoiser`: scale and label of the input, the prediction, the step, its bookkeeping; of peers
`scheduler.step` alone, plus `scale_model_input` where there is one. 50 steps, whose levels and
coefficients are made before the clock starts where a library can; first step left out. Every
measurement is a process of its own, and contenders take turns. *Floor* is two bare operations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STEPS = 50
SHAPE = (3, 32, 32)
REPEATS = 30
SCHEDULERS = {  # name: class in diffusers, options, order
    "Euler": ("EulerDiscreteScheduler", {}, 1),
    "DDIM": ("DDIMScheduler", {}, 1),
    "EDM Euler": ("EDMEulerScheduler", {}, 1),
    "DDPM": ("DDPMScheduler", {}, 1),
    "Heun": ("HeunDiscreteScheduler", {}, 2),
    "DPM++2M": ("DPMSolverMultistepScheduler", {}, 2),
    "EDM DPM++2M": ("EDMDPMSolverMultistepScheduler", {}, 2),
    "UniPC-2": ("UniPCMultistepScheduler", {}, 2),
    "DPM++3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}, 3),
    "DEIS-3": ("DEISMultistepScheduler", {"solver_order": 3}, 3),
}


def ours(batch: int) -> dict[str, float]:
    import torch

    from ornstein.diffusion.denoiser import Denoiser, bind
    from ornstein.diffusion.grid import LogSNR
    from ornstein.diffusion.multistep import Multistep, Suited
    from ornstein.diffusion.prediction import EDM, Eps
    from ornstein.diffusion.process import VE, VP
    from ornstein.diffusion.steps import Ancestral, Heun, Jump
    from ornstein.diffusion.walk import sample
    from ornstein.noise import Noise

    class Free(torch.nn.Module):
        def forward(self, x, label, cond):  # type: ignore[no-untyped-def]
            return x

    two = Multistep(order=2, clock="log_snr")
    found = {}
    x, noise = torch.randn(batch, *SHAPE), Noise.of(0, "steps", batch)
    for family, process, target in (
        ("VP", VP(), Eps()),
        ("EDM", VE(sigma_min=0.002, sigma_max=80), EDM(sigma_data=0.5)),
    ):
        denoise = bind(Denoiser(Free(), process, target, sigma_data=0.5))
        levels = LogSNR()(process, STEPS)
        for step, order in (
            (Jump(), 1), (Jump(eta=1.0), 1), (Ancestral(), 1), (Heun(), 2), (two, 2), (Suited(), 4)
        ):  # fmt: skip
            name = f"{step.kind}{'(1)' if step == Jump(eta=1.0) else ''}, {family}, order {order}"

            def walk(
                step: object = step,
                denoise: object = denoise,
                levels: object = levels,
                process: object = process,
            ):  # type: ignore[no-untyped-def]
                states = sample(denoise, process, levels, step, x, noise)  # type: ignore[arg-type]
                next(states)
                started = time.perf_counter()
                for _ in states:
                    pass
                return time.perf_counter() - started

            evaluations = step.evaluations(STEPS) - step.evaluations(2) + step.evaluations(1)
            found[name] = timed(walk) / evaluations
    return found


def theirs(batch: int) -> dict[str, float]:
    import peers
    import torch

    peers.allow_torchvision()
    import diffusers

    found = {}
    x = torch.randn(batch, *SHAPE)
    for name, (kind, options, order) in SCHEDULERS.items():
        if not hasattr(diffusers, kind):
            continue

        def walk(kind: str = kind, options: dict[str, int] = options) -> float:
            scheduler = getattr(diffusers, kind)(**options)
            scheduler.set_timesteps(STEPS)
            sample, started = x, 0.0
            for i, t in enumerate(scheduler.timesteps):
                if i == 1:
                    started = time.perf_counter()
                scaled = scheduler.scale_model_input(sample, t)
                sample = scheduler.step(scaled, t, sample, return_dict=False)[0]
            taken = time.perf_counter() - started
            return taken * (STEPS - 1) / (len(scheduler.timesteps) - 1)  # as for STEPS calls

        with torch.no_grad():
            found[f"diffusers {name}, order {order}"] = timed(walk) / (STEPS - 1)
    return found


def timed(walk: Callable[[], float]) -> float:
    for _ in range(3):
        walk()
    return statistics.median(walk() for _ in range(REPEATS))


def floor(batch: int) -> float:
    import torch

    x, y = torch.randn(batch, *SHAPE), torch.randn(batch, *SHAPE)

    def walk() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            torch.add(x * 0.3, y, alpha=0.2)
        return time.perf_counter() - started

    return timed(walk) / STEPS


def measure(who: str, batch: int, threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    found = {"floor": floor(batch)} | (ours(batch) if who == "ours" else theirs(batch))
    return {name: 1e6 * seconds for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2)
    asked = parser.parse_args()
    if asked.one:
        who, batch = asked.one
        print(json.dumps(measure(who, int(batch), asked.threads)))
        return
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(asked.rounds):
        for batch in (1, 64):
            for who, python in (("ours", sys.executable), ("peers", asked.peers)):
                command = [python, __file__, "--one", who, str(batch)]
                command += ["--threads", str(asked.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{who} left out: {done.stderr.strip()[-200:]}", file=sys.stderr)
                    continue
                for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                    found.setdefault(name, {}).setdefault(batch, []).append(value)
    print("| µs per evaluation | batch 1 | batch 64 |\n|---|---:|---:|")
    for name, batches in found.items():
        print(f"| {name} |", *(f"{statistics.median(batches[b]):,.0f} |" for b in (1, 64)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
