"""Speed of a training step beside other projects: images/s, GFLOP/s and share of peak.

    EDM_SOURCE=/path/to/edm python benchmarks/train_step.py [--peers PYTHON] [--threads 2]
        [--rounds 3] [--cases 32,8,small] [--device cpu]

Updates of networks of the same plan: levels (1, 2, 2, 2), two blocks a level, attention at 16×16,
3×32×32 (case 32), and two levels for 1×8×8 digits (case 8), batch 64. Case small has the peers of
case 8 beside ours as it plans small images, with one block a level and no attention, at as many
operations and parameters or more. Ours is what `train` does:
data, keyed noise, objective, forward, backward, gradient norm and clipping, check of finiteness,
AdamW, average. A peer's is forward, backward, AdamW and the usual loop of an average, with noise
by `randn_like`. PYTHON is an interpreter that has the peers (see peers.py); who is not there is
named and left out.

Every measurement is a process of its own, contenders take turns, and the figure is the median over
rounds of the median over updates. A second row gives every contender the settings of the memory
allocator that ours asks for itself. *GFLOP per image* is of forward and backward as executed; a
network of ours executes fewer than the plan says, since a ×2 and its convolution are one operation.
Peak is a float32 (on a GPU: bfloat16) matrix product on the same threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TWO = ["blocks=2", "middle_attention=true"]
ONE = ["blocks=1", "middle_attention=false"]
CASES: dict[str, tuple[tuple[int, int, int], list[str]]] = {
    "32": ((3, 32, 32), ["channels=[32,64,64,64]", "attention=[2]", *TWO]),
    "8": ((1, 8, 8), ["channels=[16,32]", *TWO]),
    "small": ((1, 8, 8), ["channels=[16,48]", *ONE]),
}
NAMES = ("ornstein", "diffusers", "lucidrains", "edm")
BATCH = 64
KEPT = {  # what our allocator.py asks of glibc, by its environment variables
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def ours(case: str, device: str) -> tuple[Iterator[float], dict[str, float]]:
    """Seconds of one update after another of `train`, and what is known of the network."""
    import numpy as np
    import torch

    from ornstein.data.info import DataInfo, Dataset
    from ornstein.data.stream import Stream
    from ornstein.recipe import Recipe, named
    from ornstein.settings import resolve
    from ornstein.training import TrainState, flops_per_sample, train

    shape, network = CASES[case]
    words = [f"model.network.{word}" for word in network]
    words = ["model.network=unet", *words, f"optim.batch={BATCH}", "optim.compile=auto"]
    recipe = resolve(Recipe, named("edm"), None, words).value
    x = np.random.default_rng(0).integers(0, 256, (4096, *shape), dtype=np.uint8)
    info = DataInfo(
        name="noise", kind="image", shape=shape, range=(0, 255), bins=256, count=len(x),
        mean=127.5, std=74.0, fingerprint="",
    )  # fmt: skip
    dataset = Dataset(info, x, None, np.arange(len(x)), np.arange(0))
    learner = recipe.learner(info, lambda reference: reference).to(torch.device(device))
    source = Stream(dataset, 0, recipe.objective.range)
    facts = {
        "flops": flops_per_sample(learner, source, 0),
        "parameters": sum(p.numel() for p in learner.parameters()),
    }
    events = train(TrainState(learner, recipe.optim), source, recipe.optim, 10**12, 0)
    return (event.seconds for event in events), facts


def theirs(name: str, case: str, device: str) -> tuple[Iterator[float], dict[str, float]]:
    """The same of a peer, in a plain loop."""
    import copy

    import peers
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    (channels, side, _), _ = CASES[case]
    module, call = peers.build(name, "32" if side > 8 else "8", channels, side)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(torch.randn(2, channels, side, side), torch.rand(2)).square().mean().backward()
    module.to(device)
    average = copy.deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    images = torch.randn(4096, channels, side, side)
    on_gpu = device != "cpu"
    if on_gpu:
        module.compile()

    def updates() -> Iterator[float]:
        while True:
            started = time.perf_counter()
            x0 = images[torch.randint(len(images), (BATCH,))].to(device)
            t = torch.rand(BATCH, device=device)
            noise = torch.randn_like(x0)
            mixed = t.view(-1, 1, 1, 1)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                predicted = call((1 - mixed) * x0 + mixed * noise, t)
            (predicted.float() - noise).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                for kept, p in zip(average.parameters(), module.parameters(), strict=True):
                    kept.lerp_(p, 0.001)
            if on_gpu:
                torch.cuda.synchronize()
            yield time.perf_counter() - started

    facts = {
        "flops": counter.get_total_flops() / 2,
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    return updates(), facts


def measure(name: str, case: str, threads: int, device: str) -> dict[str, Any]:
    """One contender, in this process."""
    import torch

    torch.set_num_threads(threads)
    seconds, facts = ours(case, device) if name == "ornstein" else theirs(name, case, device)
    taken: list[float] = []
    for one in seconds:
        taken.append(one)
        if len(taken) >= 10 and sum(taken[3:]) > 8:
            break
    return {"seconds": statistics.median(taken[3:]), "peak": peak(device), **facts}


def peak(device: str) -> float:
    """FLOP/s of a matrix product, the best of many."""
    import torch

    size, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, spent = 0.0, 0.0
    while spent < 0.5:
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        taken = time.perf_counter() - started
        best, spent = max(best, 2 * size**3 / taken), spent + taken
    return best


def spawned(name: str, case: str, kept: bool, asked: argparse.Namespace) -> dict[str, Any] | None:
    """One measurement by a process of its own; None, and a line, where it cannot be made."""
    python = sys.executable if name == "ornstein" else asked.peers
    command = [python, __file__, "--one", name, "--cases", case]
    command += ["--threads", str(asked.threads), "--device", asked.device]
    environment = {**os.environ, **(KEPT if kept else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} left out: {done.stderr.strip().splitlines()[-1][:200]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="32,8,small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", default="")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.cases, asked.threads, asked.device)))
        return
    for case in asked.cases.split(","):
        found: dict[tuple[bool, str], list[dict[str, Any]]] = {}
        for _ in range(asked.rounds):
            for kept in (False, True):
                for name in NAMES:
                    if (one := spawned(name, case, kept, asked)) is not None:
                        found.setdefault((kept, name), []).append(one)
        table(case, found)


def table(case: str, found: dict[tuple[bool, str], list[dict[str, Any]]]) -> None:
    print(f"\n{'×'.join(map(str, CASES[case][0]))}, batch {BATCH}\n")
    head = ["network", "allocator", "parameters", "GFLOP per image", "ms", "images/s", "GFLOP/s"]
    print("|", " | ".join([*head, "of peak", "ours is faster by"]), "|")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    top = max(one["peak"] for rows in found.values() for one in rows)
    for kept in (False, True):
        base = statistics.median(one["seconds"] for one in found[kept, "ornstein"])
        for name in NAMES:
            if (kept, name) not in found:
                continue
            rows = found[kept, name]
            seconds = statistics.median(one["seconds"] for one in rows)
            rate, flops = BATCH / seconds, rows[0]["flops"]
            speed = rate * flops
            print(
                f"| {name} | {'tuned for all' if kept else 'as shipped'} "
                f"| {rows[0]['parameters']:,} | {flops / 1e9:.3f} | {1e3 * seconds:,.0f} "
                f"| {rate:,.1f} | {speed / 1e9:.0f} | {speed / top:.0%} | {seconds / base:.2f} |",
                flush=True,
            )
    print(f"\nPeak: {top / 1e9:.0f} GFLOP/s.")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
