"""Speed of a training step: milliseconds, images/s, GFLOP/s and share of peak.

    python benchmarks/train_step.py [THREADS]

Whole updates (forward, backward, AdamW, averages, keyed noise, data) of two networks, as `train`
does them; the median after a warm-up, with the C library keeping freed memory and without. Each
configuration runs in a process of its own, and the two settings alternate.
"""

import json
import os
import statistics
import subprocess
import sys

CASES = {
    "digits 1×8×8, batch 64": ("demo", (1, 8, 8), []),
    "32×32 colour, batch 64": (
        "edm",
        (3, 32, 32),
        ["model.network=unet", "model.network.channels=[32,64,64,64]", "model.network.blocks=2",
         "model.network.attention=[2]", "model.network.middle_attention=true", "optim.batch=64"],
    ),
}  # fmt: skip
ROUNDS = 3


def measure(name: str, threads: int) -> dict[str, float]:
    """One configuration, in this process."""
    import numpy as np
    import torch

    from ornstein.data.info import DataInfo, Dataset
    from ornstein.data.stream import Stream
    from ornstein.recipe import Recipe, named
    from ornstein.settings import resolve
    from ornstein.training import TrainState, flops_per_sample, matmul_peak, train

    torch.set_num_threads(threads)
    recipe_name, shape, words = CASES[name]
    recipe = resolve(Recipe, named(recipe_name), None, words).value
    x = np.random.default_rng(0).integers(0, 256, (512, *shape), dtype=np.uint8)
    info = DataInfo(
        name="noise", kind="image", shape=shape, range=(0, 255), bins=256, count=512,
        mean=127.5, std=74.0, fingerprint="",
    )  # fmt: skip
    dataset = Dataset(info, x, None, np.arange(512), np.arange(0))
    learner = recipe.learner(info, lambda reference: reference)
    source = Stream(dataset, 0, recipe.objective.range)
    flops = flops_per_sample(learner, source, 0)
    seconds: list[float] = []
    for event in train(TrainState(learner, recipe.optim), source, recipe.optim, 10**9, 0):
        seconds.append(event.seconds)
        if len(seconds) > 8 and sum(seconds) > 10:
            break
    return {
        "ms": 1e3 * statistics.median(seconds[3:]),
        "batch": recipe.optim.batch,
        "flops": flops,
        "parameters": sum(p.numel() for p in learner.parameters()),
        "peak": matmul_peak(torch.device("cpu"), torch.float32),
    }


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print("| network | parameters | memory kept | ms | images/s | GFLOP/s | of peak |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for name in CASES:
        found: dict[str, list[dict[str, float]]] = {"1": [], "0": []}
        for _ in range(ROUNDS):
            for kept in found:
                command = [sys.executable, __file__, "--one", name, str(threads)]
                environment = {**os.environ, "ORNSTEIN_MALLOC": kept}
                out = subprocess.run(
                    command, env=environment, check=True, capture_output=True, text=True
                )
                found[kept].append(json.loads(out.stdout.splitlines()[-1]))
        peak = max(one["peak"] for rows in found.values() for one in rows)
        for kept, rows in found.items():
            ms = statistics.median(one["ms"] for one in rows)
            rate = rows[0]["batch"] / ms * 1e3
            speed = rate * rows[0]["flops"]
            print(
                f"| {name} | {rows[0]['parameters']:,} | {'yes' if kept == '1' else 'no'} | "
                f"{ms:.0f} | {rate:,.0f} | {speed / 1e9:.0f} | {speed / peak:.0%} |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
