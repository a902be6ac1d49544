"""Vectors per second through a quantiser in training, beside vector-quantize-pytorch.

    python benchmarks/quantizers.py [--peers PYTHON] [--threads 1] [--rounds 3]

A step is forward, backward to the features and what follows an update: sums of eq 13, dead codes,
counts. Both get the same features, γ = 0.99, β = 0.25, plain straight-through gradients, and a
restart below 3 % of an even use. Ours also keeps the uses of each place for its law of codes.
Every measurement is a process of its own, and contenders take turns; memory is what the process
grew by at its largest, from before the first step. The peer lives in an environment of its own:

    pip install torch && pip install vector-quantize-pytorch
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CASES = {  # name: kind, samples, D, side of the places, K or levels
    "vq K=512 D=64, 64 × 7×7": ("vq", 64, 64, 7, 512),
    "vq K=1024 D=64, 64 × 16×16": ("vq", 64, 64, 16, 1024),
    "vq K=8192 D=32, 16 × 16×16": ("vq", 16, 32, 16, 8192),
    "vq K=512 D=64, 1024 × 1": ("vq", 1024, 64, 1, 512),
    "fsq 8·5·5·5, 64 × 16×16": ("fsq", 64, 4, 16, (8, 5, 5, 5)),
}
SECONDS = 0.6  # of steps, in each process


def ours(kind: str, h: Any, received: Any, codes: Any) -> Callable[[], None]:
    import torch

    from ornstein.autoencoders.fsq import FSQModule
    from ornstein.autoencoders.quantizers import VQModule
    from ornstein.noise import Noise

    latent = tuple(h.shape[1:])
    module: Any = (
        VQModule(latent, codes, kmeans=False) if kind == "vq" else FSQModule(latent, codes)
    )
    noise, one = Noise.of(0, "train", len(h)), Noise.of(0, "after step", 1)
    at = 0

    def step() -> None:
        nonlocal at
        code = module(h, noise.at(at))
        costs = sum(penalty.sum() for penalty in code.penalties.values())
        ((code.z * received).sum() + costs).backward()
        with torch.no_grad():
            module.after_step(code.stats, one.at(at))
        h.grad = None
        at += 1

    return step


def theirs(kind: str, h: Any, received: Any, codes: Any) -> Callable[[], None]:
    from vector_quantize_pytorch import FSQ, VectorQuantize

    if kind == "vq":
        module: Any = VectorQuantize(
            dim=h.shape[1],
            codebook_size=codes,
            decay=0.99,
            commitment_weight=0.25,
            threshold_ema_dead_code=0.03 * h.numel() / h.shape[1] / codes,
            accept_image_fmap=True,
            rotation_trick=False,
        )
    else:
        module = FSQ(list(codes), channel_first=True)

    def step() -> None:
        z, _, *cost = module(h)
        loss = (z * received).sum()
        (loss + cost[0].sum() if cost else loss).backward()
        h.grad = None

    return step


def measure(who: str, case: str, threads: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind, samples, dim, side, codes = CASES[case]
    h = torch.randn(samples, dim, side, side, requires_grad=True)
    received = torch.randn_like(h)
    step = {"ours": ours, "theirs": theirs}[who](kind, h, received, codes)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    for _ in range(3):
        step()
    taken: list[float] = []
    while sum(taken) < SECONDS or len(taken) < 5:
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"rate": samples * side * side / statistics.median(taken), "grown": grown / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", help="only cases whose name has this")
    parser.add_argument("--one", nargs=2)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one, asked.threads)))
        return
    print("| vectors per second | ours | peer | ratio (of rounds) | MiB, ours | peer |")
    print("|---|---:|---:|---:|---:|---:|")
    for case in CASES:
        if (asked.case or "") not in case:
            continue
        found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(asked.rounds):
            for who, python in (("ours", sys.executable), ("theirs", asked.peers)):
                command = [python, __file__, "--one", who, case, "--threads", str(asked.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{who}: {done.stderr.strip()[-300:]}")
                found[who].append(json.loads(done.stdout.splitlines()[-1]))
        pairs = zip(found["ours"], found["theirs"], strict=True)
        ratios = sorted(a["rate"] / b["rate"] for a, b in pairs)
        rate, grown = (
            {who: statistics.median(one[key] for one in each) for who, each in found.items()}
            for key in ("rate", "grown")
        )
        print(
            f"| {case} | {rate['ours']:,.0f} | {rate['theirs']:,.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {grown['ours']:.0f} | {grown['theirs']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
